"""Trained parameters by name with their optimizers, and how an update is applied or skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dollar.parallel.checkpoint import State
from dollar.parallel.shard import assign, is_sharded, own, whole
from dollar.parallel.world import World

Schedule = Callable[[int, int], float]  # (cycle, cycles) -> the share of the learning rate


class Stepped(NamedTuple):
    """An update: the gradient's norm before it was clipped, and whether it was finite and so was applied."""

    norm: float
    sound: bool


def constant(cycle: int, cycles: int) -> float:
    """A rate that stays."""
    return 1.0


@dataclass
class Learner:
    """Trainable parameters by name, with the optimizers that share them out.

    clip: the largest norm of a gradient; rate: how the learning rates change over the run; use: the context in which
    its network computes with these parameters, held through backward; remedy: what helps where gradients stay not
    finite, an imperative; keeps: whether its state holds the parameters, which otherwise another learner's does.
    skipped: updates that were, in_a_row: without one in between that was not.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]
    clip: float = 1.0
    rate: Schedule = constant
    use: Callable[[], AbstractContextManager[Any]] = nullcontext
    remedy: str = ""
    keeps: bool = True
    skipped: int = 0
    in_a_row: int = 0
    _rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rates = [group["lr"] for group in self._groups]

    @property
    def tensors(self) -> list[nn.Parameter]:
        """Its parameters, in the order of their names' listing."""
        return list(self.parameters.values())

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def has_gradients(self) -> bool:
        """Whether any gradient has come back since the last update."""
        return any(p.grad is not None for p in self.tensors)

    def gradients(self) -> list[Tensor]:
        """A copy of this process's share of the gradients as they stand, zeros where there is none yet."""
        return [own(torch.zeros_like(p) if p.grad is None else p.grad).clone() for p in self.tensors]

    def set_rate(self, cycle: int, cycles: int) -> None:
        """Set the learning rates of a cycle."""
        for group, first in zip(self._groups, self._rates, strict=True):
            group["lr"] = self.rate(cycle, cycles) * first

    def step(self, world: World) -> Stepped:
        """Average over the processes, clip, and step, unless a gradient of any process is not finite."""
        if not any(is_sharded(p) for p in self.tensors):  # sharded ones were averaged on their way back
            world.average([p.grad for p in self.tensors])
        norm = whole(nn.utils.clip_grad_norm_(self.tensors, self.clip))
        sound = not world.any(not bool(torch.isfinite(norm)))
        if sound:
            for optimizer in self.optimizers:
                optimizer.step()
        self.forget_gradients()
        return Stepped(float(norm), sound)

    def forget_gradients(self) -> None:
        """Drop the gradients."""
        for p in self.tensors:
            p.grad = None

    def count(self, sound: bool) -> None:
        """Count an update that was applied, or skipped."""
        self.in_a_row = 0 if sound else self.in_a_row + 1
        self.skipped += not sound

    def broken(self) -> list[str]:
        """The names of its weights and moments that hold what is no finite number, in this process."""
        return not_finite(self.state().tensors)

    def state(self) -> State:
        """Weights and moments by name, and how many updates were skipped."""
        tensors: dict[str, Tensor] = dict(self.parameters) if self.keeps else {}
        for place, name, p in self._placed():
            moments = self.optimizers[place].state.get(p, {})
            tensors |= {f"optim/{name}/{key}": torch.as_tensor(value) for key, value in moments.items()}
        return State(tensors, {"skipped": self.skipped, "in_a_row": self.in_a_row})

    def _placed(self) -> list[tuple[int, str, Tensor]]:
        """Each parameter's optimizer, by its place, with its name."""
        names = {id(p): name for name, p in self.parameters.items()}
        return [
            (place, names[id(p)], p)
            for place, optimizer in enumerate(self.optimizers)
            for group in optimizer.param_groups
            for p in group["params"]
        ]

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Take up a `state`, on any number of processes."""
        tensors, plain = state
        for name, parameter in self.parameters.items() if self.keeps else ():
            saved = tensors.get(name)
            if saved is None or saved.shape != parameter.shape:
                raise ValueError(
                    f"the state of the {self.name} is of another network: its {name} is "
                    f"{None if saved is None else list(saved.shape)} and {list(parameter.shape)} is needed"
                )
            assign(parameter, saved)
        moments = _moments(tensors)
        for place, name, p in self._placed():
            for key, value in moments.get(name, {}).items():
                if key == "step":  # a fused optimizer counts on the device
                    fused = self.optimizers[place].defaults.get("fused")
                    self.optimizers[place].state[p][key] = value.clone().to(p.device if fused else "cpu")
                else:
                    self.optimizers[place].state[p][key] = torch.zeros_like(p)
                    # Earlier versions kept a convolution's momentum as a matrix.
                    assign(self.optimizers[place].state[p][key], value.reshape(p.shape))
        self.skipped, self.in_a_row = plain["skipped"], plain["in_a_row"]


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors, sharded or not, whose share in this process has a value that is no finite number."""
    names = [name for name, t in tensors.items() if t.is_floating_point()]
    if not names:
        return []
    sound = torch.stack([own(tensors[name]).isfinite().all().cpu() for name in names])
    return [name for name, fine in zip(names, sound.tolist(), strict=True) if not fine]


def _moments(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Moments by the parameter's name and then their own."""
    found: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        if full.startswith("optim/"):
            name, _, key = full.removeprefix("optim/").rpartition("/")
            found.setdefault(name, {})[key] = value
    return found


class Gathered:
    """Gradients of several cycles that make one update together."""

    def __init__(self, learner: Learner, every: int, world: World) -> None:
        self.learner, self.every, self.world = learner, every, world
        self.held: list[Tensor] = []
        self.count = 0

    def add(self) -> bool:
        """Take the learner's gradients away; True where enough were gathered, whose mean it then has."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.learner.tensors]
        self.learner.forget_gradients()
        if not any(map(is_sharded, gradients)):
            self.world.average(gradients)  # what is kept must be the same in every process
        if not self.held:
            self.held = [torch.zeros_like(g) for g in gradients]
        for held, gradient in zip(self.held, gradients, strict=True):
            held.add_(gradient)
        self.count += 1
        if self.count < self.every:
            return False
        for p, held in zip(self.learner.tensors, self.held, strict=True):
            p.grad = held / self.count
        self.held, self.count = [], 0
        return True

    def state(self) -> State:
        """The sums, and of how many cycles; where every process holds all, the mean of the processes' own."""
        return State({str(i): g for i, g in enumerate(self.held)}, {"count": self.count})

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Take up a `state`."""
        self.count = state.plain["count"]
        self.held = [torch.zeros_like(p) for p in self.learner.tensors] if self.count else []
        for i, held in enumerate(self.held):
            assign(held, state.tensors[str(i)])
