"""The fake score's turn: it learns the score of the student's samples (Algorithm 1, lines 12-14)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.losses.score_matching import score_matching
from dollar.losses.term import check_choice
from dollar.methods.ingredients import Ingredients
from dollar.methods.student import Drawn, StudentUpdate
from dollar.training.turn import Moment, Pullback, Scalars


class FakeScore:
    """The diffusion loss of the fake score on samples of the student. form: `native` or `cv` (Eq. 4).

    draws: (cycle, update) -> those of an update; the first one takes the sample of the student's own turn.
    """

    def __init__(
        self,
        run: Ingredients,
        student: StudentUpdate,
        draws: Callable[[int, int], Draws],
        scalars: Scalars,
        form: str = "native",
    ) -> None:
        check_choice("fake.loss", form, ("native", "cv"))
        self.run, self.student, self.draws, self.scalars, self.form = run, student, draws, scalars, form
        self._losses: list[float] = []

    def losses(self, when: Moment) -> Iterator[Pullback]:
        """The branches of one update."""
        draws = self.draws(when.cycle, when.update)
        total = 0.0
        for part, drawn in self._samples(draws, fresh=when.update > 0):
            share = len(part.indices) / len(draws.indices)
            loss = self.loss(part, drawn).mean()
            total += float(loss.detach()) * share
            yield Pullback("fake", loss, loss.detach().new_full((), share))
        self._losses.append(total)

    def _samples(self, draws: Draws, fresh: bool) -> Iterator[tuple[Draws, Drawn]]:
        if not fresh:
            yield from zip(draws.split(self.run.micro_batch), self.student.drawn, strict=True)
            return
        for micro in self.run.micro_batches(draws, latents=self.student.input == "noised_data"):
            yield micro.draws, self.student.draw(micro)

    def loss(self, draws: Draws, drawn: Drawn) -> Tensor:
        """The diffusion loss on the student's samples x_hat [B, C, F, h, w] (Eq. 4), [B]."""
        fake, objective = self.run.roles["fake"].denoiser, self.run.objective
        u, noise = draws.uniform("fake time"), draws.normal("fake noise", self.run.latent_shape)
        x_t, t, x_0, eps, weight = objective.fake_sample(
            drawn.context.sampler, drawn.sample, u, noise, self.student.progress, fake.schedule
        )
        output = fake.output(x_t, t, drawn.condition)
        return weight * score_matching(output, x_0, eps, x_t, t, fake.prediction, fake.schedule, self.form)

    def end(self, cycle: int) -> None:
        """The turn has ended: log the mean of its updates."""
        self.scalars["loss/fake"] = sum(self._losses) / max(len(self._losses), 1)
        self._losses = []
