"""The diffusion loss of a teacher or a fake score (Eq. 2-4), as the native prediction's error or as L_CV."""

from __future__ import annotations

from torch import Tensor

from dollar.diffusion.prediction import Prediction
from dollar.diffusion.schedule import Schedule, expand_like, mean_flat


def native(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the native prediction (Eq. 2 with w_t = 1); output, target [B, ...], returns [B]."""
    return mean_flat((output.float() - target.float()) ** 2)


def conjugate(x_0hat: Tensor, x_0: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """L_CV (Eq. 4) of a network of any prediction, from its x_0.

    x_0hat, x_0: [B, ...]; a, b: [B], b > 0. Returns [B].
    """
    # x_t fixes eps once x_0 is given, so the error of x_0 - eps is (1 + a/b) times the error of x_0.
    ratio = expand_like((a + b) / b, x_0hat.float())
    return mean_flat((ratio * (x_0hat.float() - x_0.float())) ** 2)


def score_matching(
    output: Tensor,
    x_0: Tensor,
    eps: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction: Prediction,
    schedule: Schedule,
    form: str = "native",
) -> Tensor:
    """The loss of a network's output at x_t = a x_0 + b eps, `native` or `cv`.

    output, x_0, eps, x_t: [B, ...]; t: [B]. Returns [B], float32. The two forms agree for flow and conjugate velocity;
    for v, `cv` is (a + b)^2 times `native`. ValueError for another form, and for `cv` where the output says nothing of
    x_0 (epsilon at zero signal).
    """
    output, x_0, eps, x_t = output.float(), x_0.float(), eps.float(), x_t.float()
    if form == "native":
        return native(output, prediction.target(x_0, eps, t, schedule))
    if form == "cv":
        a, b = schedule.coefficients(t)
        return conjugate(prediction.x_0(x_t, output, t, schedule), x_0, a, b)
    raise ValueError(f"the form of the loss is {form!r}; use native or cv")
