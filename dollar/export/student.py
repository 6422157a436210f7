"""A finished student as a folder: the network and scheduler as diffusers writes them, and what it was trained for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollar.contents import contents_of
from dollar.diffusion.prediction import SAMPLE, Prediction
from dollar.diffusion.timesteps import FewStep, check_timesteps
from dollar.models.denoiser import Denoiser
from dollar.models.lora import FILE as LORA_FILE
from dollar.models.pipeline import Weights, diffusers_class, lack
from dollar.models.pruned import Pruning
from dollar.models.teacher import Teacher
from dollar.sampling.samplers import Sampler, student_sampler

CARD = "student.json"
KEYS = ("teacher_name", "timesteps", "steps", "between")  # what every card has

FORCED = ", or force=true to see what it does"  # a way that launch/sample.py has


@dataclass
class Student:
    """A student that was read from its folder. few_steps: its samplers by step count; teacher: the one it came from."""

    folder: Path
    denoiser: Denoiser
    few_steps: dict[int, FewStep]
    card: dict[str, Any]
    teacher: Teacher

    def sampler(self, teacher: Teacher, steps: int, force: bool = False) -> Sampler:
        """Its sampler for a step count; ValueError for one it was not trained for, unless forced."""
        few_step = self.few_steps.get(steps)
        if few_step is None:
            if not force:
                check_trained(self.folder, list(self.few_steps), steps, FORCED)
            schedule = self.denoiser.schedule
            longest = self.few_steps[max(self.few_steps)]
            few_step = FewStep(schedule, schedule.grid(steps)[:-1], longest.between, longest.boundary)
        return student_sampler(teacher, self.denoiser, few_step, guided=self.guided)

    @property
    def guided(self) -> bool:
        """Whether it is a tuned teacher, which is sampled with its teacher's guidance."""
        return bool(self.card.get("guided", False))


@dataclass
class Students:
    """Students of one teacher as one, each at its own step counts, of which no two have any in common."""

    members: Sequence[Student]

    @property
    def few_steps(self) -> dict[int, FewStep]:
        """All samplers by step count."""
        return {count: sampler for member in self.members for count, sampler in member.few_steps.items()}

    def sampler(self, teacher: Teacher, steps: int) -> Sampler:
        """The sampler of the one that was trained for a step count."""
        owner = next((member for member in self.members if steps in member.few_steps), self.members[0])
        return owner.sampler(teacher, steps)


def check_trained(folder: str | Path, trained: Sequence[int], steps: int, further: str = "") -> None:
    """Raise ValueError for a step count that the student in a folder was not trained for.

    further: what else may be done, as the sentence's end.
    """
    if steps not in trained:
        counts = " or ".join(str(s) for s in sorted(trained, reverse=True))
        raise ValueError(
            f"steps is {steps}, but the student in {folder} was trained for {counts}; use one of these{further}"
        )


def check_steps(timesteps: Sequence[float] | None, steps: Sequence[int]) -> None:
    """Raise ValueError unless the step counts differ and each divides the number of timesteps, or their largest."""
    if not steps:
        raise ValueError("student.steps is empty; give the step counts to train for, such as [4,2,1]")
    if timesteps is not None:
        check_timesteps(timesteps)
    longest = max(steps) if timesteps is None else len(timesteps)
    for count in steps:
        if list(steps).count(count) > 1:
            raise ValueError(f"student.steps has {count} twice; give each step count once")
        if count < 1:
            raise ValueError(f"student.steps has {count}; a step count is 1 or more")
        if longest % count:
            fitting = [n for n in range(longest, 0, -1) if longest % n == 0]
            whose = "its largest" if timesteps is None else f"the {longest} of student.timesteps"
            raise ValueError(
                f"student.steps has {count}, which doesn't divide {whose}"
                f"{f', {longest}' * (timesteps is None)}; use some of {fitting}"
            )


def check_shares(shares: Sequence[float] | None, steps: Sequence[int]) -> None:
    """Raise ValueError unless there is a positive share for each step count, or None."""
    if shares is not None and (len(shares) != len(steps) or any(share <= 0 for share in shares)):
        raise ValueError(
            f"student.shares is {list(shares)}; give a positive share for each of student.steps, {list(steps)}, or "
            "null to draw all alike"
        )


def few_steps(
    teacher: Teacher, timesteps: Sequence[float] | None, steps: Sequence[int], between: str
) -> dict[int, FewStep]:
    """One sampler for each step count, every one taking evenly spaced members of `timesteps`.

    timesteps: the longest grid, None for the teacher's evenly spaced one; steps: the counts, each dividing its length.
    ValueError names the key at fault.
    """
    check_steps(timesteps, steps)
    times = teacher.family.even(max(steps)) if timesteps is None else list(timesteps)
    if timesteps is None and times[-1] <= 0:
        raise ValueError(f"student.steps has {max(steps)}, but this teacher has not so many times; give fewer")
    return {count: teacher.few_step(times[:: len(times) // count], between) for count in steps}


def denoiser_of(
    teacher: Teacher, network: nn.Module, few_step: FewStep, parameterization: str, compute_dtype: torch.dtype
) -> Denoiser:
    """The student's denoiser: the exported scheduler's numbers, and x_0 read by its own parameterisation (Eq. 8).

    A heterogeneous student (Table 8) gives x_0 itself; a homogeneous one predicts what its teacher predicts.
    """
    return Denoiser(network, few_step.schedule, prediction_of(teacher, parameterization), compute_dtype)


def prediction_of(teacher: Teacher, parameterization: str) -> Prediction:
    """What the student's output means."""
    return SAMPLE if parameterization == "heterogeneous" else teacher.denoiser.prediction


@torch.no_grad()
def read_as_x_0(network: nn.Module, prediction: Prediction) -> None:
    """Make a network's copy of which the output will be read as x_0 begin near it.

    The output of v and of flow is nearly minus x_0 where there is little signal, so its sign is turned; of v it is
    minus x_0 exactly where there is none.
    """
    if prediction.is_negative:
        for parameter in network.projection.parameters():  # type: ignore[union-attr]
            parameter.neg_()


def save_student(
    folder: Path,
    teacher: Teacher,
    network: nn.Module,
    samplers: Mapping[int, FewStep],
    card: Mapping[str, Any],
    lora: Mapping[str, Tensor] | None = None,
    pruning: Pruning | None = None,
) -> None:
    """Write transformer/, scheduler/ and student.json; the scheduler is that of the longest grid.

    lora: the factors of a student that is a LoRA, which is merged in `network`; written next to it for the pipeline's
    load_lora_weights. pruning: what of the teacher's blocks is left, which pruning.json keeps where any is gone.
    """
    longest = samplers[max(samplers)]
    aside = folder.with_name(folder.name + ".tmp")  # the old student stays until the new one is whole
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    prediction = prediction_of(teacher, card.get("parameterization", "homogeneous"))
    teacher.save_network(network, aside, longest, prediction)
    if lora and (pruning is None or not pruning.is_less):  # else there is no plain teacher to load it into
        kind = diffusers_class(teacher.family.pipeline_class)
        kind.save_lora_weights(aside, transformer_lora_layers=dict(lora), weight_name=LORA_FILE)
    full = {
        **card,
        "shift": getattr(longest.schedule, "shift", None),
        "teacher_name": teacher.name,
        "timesteps": list(longest.configured),
        "steps": sorted(samplers, reverse=True),
        "between": longest.between,
    }
    (aside / CARD).write_text(json.dumps(full, indent=1))
    if pruning is not None and pruning.is_less:
        pruning.write(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def read_card(folder: str | Path) -> dict[str, Any]:
    """What student.json says; ValueError where there is no student."""
    folder = Path(folder)
    if not (folder / CARD).is_file():
        near = next((str(p.parent) for p in sorted(folder.glob(f"**/{CARD}"))), None)
        hint = f"there is one in {near}" if near else "a finished run has one in runs/<run>/student"
        raise ValueError(f"no student in {folder}: it has no {CARD}; {hint}")
    try:
        card = dict(json.loads((folder / CARD).read_text()))
        if lacking := [key for key in KEYS if key not in card]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        numbers = (card["timesteps"] or []), card["steps"]
        if not all(isinstance(n, (int, float)) for part in numbers for n in part):
            raise ValueError(f"timesteps {card['timesteps']} or steps {card['steps']} are no numbers")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / CARD} can't be read ({error}); run the training command again to write it"
        ) from None
    return card


def student_weights(folder: str | Path) -> Weights:
    """The tensors of a student's transformer, to be read one by one; ValueError where there is no student."""
    folder = Path(folder)
    read_card(folder)
    if missing := lack(folder / "transformer", "transformer"):
        raise ValueError(f"the student in {folder} lacks {missing}; run the training command again to write it")
    return Weights.of(sorted((folder / "transformer").glob("*.safetensors")))


def weights_of(folder: str | Path) -> str:
    """What tells this student's weights from others'."""
    return contents_of(Path(folder) / "transformer").digest


def load_student(folder: str | Path, teacher: Teacher, compute_dtype: torch.dtype = torch.float32) -> Student:
    """Read a student that `save_student` wrote, for the teacher that it came from."""
    folder = Path(folder)
    card = read_card(folder)
    if card["teacher_name"] != teacher.name:
        raise ValueError(
            f"the student in {folder} came from the teacher {card['teacher_name']}, not {teacher.name}; "
            f"use teacher={card['teacher_name']}"
        )
    samplers = few_steps(teacher, card["timesteps"], card["steps"], card["between"])
    network = teacher.load_network(folder)
    parameterization = card.get("parameterization", "homogeneous")
    denoiser = denoiser_of(teacher, network, samplers[max(samplers)], parameterization, compute_dtype)
    return Student(folder, denoiser, samplers, card, teacher)
