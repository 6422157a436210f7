"""The clips that the pixel reward has scored of late, which a fit takes its batches from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import expand_like
from dollar.parallel.checkpoint import State

TENSORS = ("latents", "reward", "usable", "frames")

Place = tuple[int, int]  # of a remembered clip: the place of its turn in the memory, and its own within that


class Observation(NamedTuple):
    """The pixel reward of one turn's clips: reward [B] in its own unit, usable [B] where it is a number.

    frames: [B, n] rewards of the n frames that are looked at, of which `reward` is the mean; None for a reward of
    whole clips.
    """

    turn: int
    prompts: list[str]
    latents: Tensor
    reward: Tensor
    usable: Tensor
    frames: Tensor | None = None


class Recalled(NamedTuple):
    """Remembered latents [B, C, F, h, w] with their prompts, rewards [B], or [B, n] of frames, and which are usable
    [B]; those that aren't are zeros."""

    latents: Tensor
    prompts: list[str]
    reward: Tensor
    usable: Tensor


class Memory:
    """The newest `size` observations. gather: collects [B, ...] from all processes."""

    def __init__(self, size: int, gather: Callable[[Tensor], Tensor]) -> None:
        if size < 1:
            raise ValueError(f"lrm.memory is {size}; an update needs the observations of at least 1 cycle")
        self.size, self.gather = size, gather
        self.past: list[Observation] = []

    def add(self, observation: Observation) -> None:
        """Take an observation in, and forget the oldest where they are too many."""
        self.past = [*self.past, observation][-self.size :]

    def chosen(self, draws: Draws, purpose: str, first: int, samples: int) -> list[Place]:
        """A clip of each group for each place of a micro-batch that begins at `first` of this process's `samples`.

        Which turn a place is taken from is drawn for that place, so that one process and several fit the same clips.
        """
        ages = draws.integers(purpose, len(self.past)).tolist()
        groups = -(-len(self.past[-1].prompts) // samples)  # real and generated clips of one sample stand a group apart
        return [(age, group * samples + first + i) for group in range(groups) for i, age in enumerate(ages)]

    def partners(
        self, draws: Draws, purpose: str, chosen: Sequence[Place], first: int, samples: int
    ) -> Sequence[Place]:
        """For each of `chosen` another clip of the same sample of the batch: of another turn or another group."""
        groups = len(chosen) // len(draws.indices)
        others = len(self.past) * groups - 1
        if others == 0:
            return chosen
        drawn = [draws.integers(f"{purpose} partner {group}", others).tolist() for group in range(groups)]
        found = []
        for age, place in chosen:
            group, sample = divmod(place, samples)
            other = drawn[group][sample - first]
            other += other >= age * groups + group  # all but itself
            found.append((other // groups, other % groups * samples + sample))
        return found

    def recall(self, chosen: Sequence[Place], device: torch.device, by_frames: bool = False) -> Recalled:
        """The clips at these places; by_frames: with the rewards of their frames. The memory may lie elsewhere, where
        it is more than the device can hold."""
        names = ("latents", "frames" if by_frames else "reward", "usable")
        latents, reward, usable = (
            torch.stack([getattr(self.past[age], name)[place] for age, place in chosen]).to(device) for name in names
        )
        # A nan would pass a mask of the loss in the backward pass.
        latents, reward = (torch.where(expand_like(usable.float(), t).bool(), t, 0.0) for t in (latents, reward))
        return Recalled(latents, [self.past[age].prompts[place] for age, place in chosen], reward, usable)

    def state(self) -> State:
        """Everything that is remembered, of all processes; which turns, in plain numbers."""
        tensors: dict[str, Tensor] = {}
        for i, observation in enumerate(self.past):
            held = {name: getattr(observation, name) for name in TENSORS}
            tensors |= {f"past/{i}/{name}": self.gather(t) for name, t in held.items() if t is not None}
        return State(tensors, {"past": [o.turn for o in self.past]})

    def load(self, state: State, prompts: Callable[[int], list[str]], own: slice, device: torch.device) -> None:
        """Take up a `state`; prompts: those of a turn's observation; own: this process's rows."""
        self.past = []
        for i, turn in enumerate(state.plain["past"]):
            names = {name: f"past/{i}/{name}" for name in TENSORS}
            if names["frames"] not in state.tensors:  # of a reward of whole clips
                del names["frames"]
            held: dict[str, Any] = {name: state.tensors[key][own].to(device) for name, key in names.items()}
            self.past.append(Observation(turn, prompts(turn), **held))
