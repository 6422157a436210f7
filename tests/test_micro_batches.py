"""Micro-batches: an update of 4 clips one at a time is the update of 4 at once, for every learner and every term."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import Redness
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.methods.sizes import Sizes
from dollar.parallel.shard import is_sharded, own, rows_of
from dollar.training.learner import Learner, Stepped
from dollar.training.loop import Loop

COMMON = ("batch=4", "lrm.clips=4", "lrm.warmup=0", "log.gradients_every=0")
ONE_BY_ONE = "parallel.micro_batch=1"
TOLERANCE = 1e-6  # of a gradient's norm
SMOOTH = ("reward._target_=test_micro_batches.Smooth", "beta_ft=0")
WAYS = {
    "joint": (),
    "separate": ("ft.update=separate", "ft.accumulate=1", "lrm.fit=pairwise", "lrm.noised=true", "lrm.mismatched=true"),
    "noised_data": ("student.input=noised_data", "balance=0.5", "cd.target=ema"),
    "ddpo": ("loss=ddpo", "student.steps=[4]", "beta_ft=0"),
    "draft": ("loss=draft", "rg.last=2", "rg.frames=2", *SMOOTH),
    "refl": ("loss=refl", "rg.frames=2", *SMOOTH),
    "pixels": ("lrm.backbone=pixels",),
    "small": ("loss=refl", "rg.frames=2", "rg.decoder=small", "lrm.warmup=1", *SMOOTH),
    "smooth": ("lrm.smooth=3", "ft.through=teacher", "ft.unit=vsd"),
    "adversarial": ("beta_adversarial=0.5", "adversarial.unit=loss", "beta_moments=0.5", "beta_ft=0"),
    "own": (
        "beta_adversarial=0.5",
        "adversarial.features=own",
        "adversarial.form=logistic",
        "adversarial.unit=loss",
        "beta_ft=0",
    ),
    "pull": ("beta_pull=0.5", "pull.steps=2", "beta_ft=0"),
}
UPDATES = {
    "joint": {"student": 1, "fake": 2, "lrm": 2},
    "pixels": {"student": 1, "fake": 2, "lrm": 2, "decoder": 8},
    "small": {"student": 1, "fake": 2, "decoder": 8},
    "smooth": {"student": 1, "fake": 2, "lrm": 2},
    **{way: {"student": 1, "fake": 2, "adversarial": 1} for way in ("adversarial", "own")},
    "separate": {"student": 2, "fake": 2, "lrm": 2},  # distillation and fine-tuning
    "noised_data": {"student": 1, "fake": 2, "lrm": 2},
}


class Smooth(Redness):
    """A reward with a gradient."""

    differentiable = True


@contextlib.contextmanager
def recorded() -> Iterator[dict[tuple, Tensor]]:
    """What is drawn for each sample inside the context, by (kind of number, turn, purpose, sample)."""
    drawn: dict[tuple, Tensor] = {}
    real = {kind: getattr(Draws, kind) for kind in ("normal", "uniform", "integers")}

    def watched(kind: str) -> Callable[..., Tensor]:
        def draw(self: Draws, purpose: str, *rest: Any) -> Tensor:
            found = real[kind](self, purpose, *rest)
            drawn.update({(kind, self.turn, purpose, i): x for i, x in zip(self.indices, found, strict=True)})
            return found

        return draw

    for kind in real:
        setattr(Draws, kind, watched(kind))
    try:
        yield drawn
    finally:
        for kind, method in real.items():
            setattr(Draws, kind, method)


@torch.no_grad()
def move(loop: Loop) -> None:
    """Lead student and fake score away from the teacher, and the latter further.

    VSD's gradient is a difference of predictions; where they are almost equal, rounding is a large share of it.
    """
    generator = torch.Generator().manual_seed(0)
    for name, role in loop.method.run.roles.items():
        size = {"student": 0.05, "fake": 0.2}[name]
        for p in role.parameters.values():
            own(p).add_(size * torch.randn(p.shape, generator=generator)[rows_of(p)])


def gradients_of(loop: Loop) -> list[tuple[str, Tensor]]:
    """This process's share of each update's gradient in a first cycle, all of them at the weights it began with."""
    found: list[tuple[str, Tensor]] = []
    move(loop)

    def step_of(learner: Learner) -> Callable[..., Stepped]:
        def step(world: Any) -> Stepped:
            present = [p.grad for p in learner.tensors if p.grad is not None]
            if not any(map(is_sharded, present)):
                world.average(present)
            found.append((learner.name, torch.cat([own(g).flatten().double() for g in present])))
            learner.forget_gradients()
            return Stepped(1.0, True)

        return step

    for learner in loop.learners.values():
        learner.step = step_of(learner)  # type: ignore[method-assign]
    loop.run_cycle(0)
    return found


def differences(found: list[tuple[str, Tensor]], expected: list[tuple[str, Tensor]]) -> list[float]:
    """How far each update's gradient is from the expected one, as a share of its norm."""
    assert [name for name, _ in found] == [name for name, _ in expected]
    pairs = zip(found, expected, strict=True)
    return [float((a - b).norm() / b.norm()) for (_, a), (_, b) in pairs]


@pytest.mark.parametrize("way", WAYS)
def test_clips_one_at_a_time_make_the_gradients_of_all_at_once(build: Callable[..., Loop], way: str) -> None:
    with recorded() as at_once:
        expected = gradients_of(build(*COMMON, *WAYS[way]))
    with recorded() as one_by_one:
        found = gradients_of(build(*COMMON, *WAYS[way], ONE_BY_ONE))
    names = [name for name, _ in expected]
    assert {name: names.count(name) for name in names} == UPDATES.get(way, {"student": 1, "fake": 2})
    assert all(float(gradient.norm()) > 0 for _, gradient in expected)
    assert max(differences(found, expected)) < TOLERANCE
    # Each clip has the noise, times and partners that it has among the others.
    assert one_by_one.keys() == at_once.keys()
    assert all(torch.equal(value, at_once[key]) for key, value in one_by_one.items())


def test_a_term_is_as_large_as_vsd_however_unequal_the_micro_batches() -> None:
    norms = {"vsd": [1.0, 1.0, 4.0], "ft": [1.0, 2.0, 1.0]}
    for split in ([3], [2, 1], [1, 1, 1]):
        sizes = Sizes(lambda t: t)
        for name, each in norms.items():
            for part in torch.tensor(each).split(split):
                sizes.add(name, part[:, None] * torch.tensor([0.6, 0.8]) / len(part))  # of the micro-batch's mean
        sizes.close()
        assert sizes.ratio("vsd", "ft") == pytest.approx(6 / 4)


def test_a_gradient_that_is_not_finite_is_no_size() -> None:
    """The update that it spoils is skipped; in the mean it would spoil all later ones, too."""
    sizes = Sizes(lambda t: t)
    for spoilt in (float("nan"), float("inf"), None):
        for name, size in (("vsd", 6.0), ("ft", 4.0)):
            sizes.add(name, torch.tensor([[size if spoilt is None else spoilt]]))
        sizes.close()
        assert sizes.ratio("vsd", "ft") == (1.5 if spoilt is None else 0.0)


def test_no_more_clips_than_a_micro_batch_go_through_a_network_at_once(build: Callable[..., Loop]) -> None:
    for size, most in (("null", 4), ("3", 3), ("1", 1)):
        loop, seen = build(*COMMON, "vsd.guidance_scale=1", "cd.guidance_scale=1", f"parallel.micro_batch={size}"), []
        for role in loop.method.run.roles.values():
            role.denoiser.network.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        loop.run_cycle(0)
        assert max(seen) == most
