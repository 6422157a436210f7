"""A teacher and its student measured one system after the other, each figure kept as soon as it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from dollar.data import shapes
from dollar.diffusion.timesteps import FewStep
from dollar.evaluation.files import Guided, stored_figures, write_metrics
from dollar.evaluation.measures.appearance import MEASURES
from dollar.evaluation.measures.size import sizes
from dollar.evaluation.measures.speed import measure_speed
from dollar.evaluation.yardstick import Figures, Pairs, Yardstick, difference, latent_reward_figures, scored
from dollar.log import logger
from dollar.models.teacher import Teacher
from dollar.sampling.samplers import Sampler, make_clips, student_sampler, teacher_sampler
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward

TEACHER_STEPS = 50  # of the stored figures


class MeasuredStudent(Protocol):
    """A student: its few-step samplers by step count, and the sampler of a count."""

    @property
    def few_steps(self) -> Mapping[int, FewStep]: ...
    def sampler(self, teacher: Teacher, steps: int) -> Sampler: ...


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, by the keys of conf/evaluate.yaml. steps: the student's step counts, the most steps first."""

    clips: int
    teacher_clips: int
    teacher_steps: int
    repeats: int
    lrm_prompts: int
    real: bool
    untrained: bool
    steps: Sequence[int]


def needed_figures(stored_at: Path, teacher: Guided, clips: int, steps: int) -> dict[str, Any]:
    """The teacher's stored figures, where none of its clips are made; ValueError where they are of another."""
    stored = stored_figures(stored_at, teacher, clips) if steps == TEACHER_STEPS else None
    if stored is None:
        other = f", or teacher_steps={TEACHER_STEPS}" if steps != TEACHER_STEPS else ""
        raise ValueError(
            f"teacher_clips is 0, but {stored_at} has no figures of this teacher in {steps} steps for clips={clips}; "
            f"give teacher_clips=64{other}"
        )
    return stored


class Evaluation:
    """The figures of a teacher and its student, and the videos uint8 [N, T, C, H, W] that they are of.

    metrics: as metrics.json keeps them; clips: videos by system and step count, as "student 4".
    """

    def __init__(self, teacher: Teacher, yardstick: Yardstick, settings: EvaluationSettings, out: Path) -> None:
        self.teacher, self.yardstick, self.settings, self.out = teacher, yardstick, settings, out
        self.metrics: dict[str, Any] = {}
        if settings.real:
            self.metrics["real"] = yardstick.real_figures(settings.clips).metrics
        self.clips: dict[str, Tensor] = {}
        self.known: dict[str, list[Any]] = {}  # the teacher's verdicts pair by pair: `right` and `reward`

    def save(self) -> None:
        """Write metrics.json with what is known."""
        write_metrics(self.metrics, self.out)

    def _pairs(self, count: int) -> Pairs:
        chosen = self.yardstick.pairs
        return Pairs(chosen.prompts[:count], chosen.seeds[:count])

    def measure_teacher(self, stored_at: Path) -> Figures | None:
        """Measure the teacher, and take its figures of more clips from where they are stored; returns the fresh ones.

        ValueError where no clips are to be made and no figures of this teacher are stored.
        """
        how, few = self.settings, self.settings.teacher_clips < self.settings.clips
        usable = few and how.teacher_steps == TEACHER_STEPS
        if how.teacher_clips == 0:
            self._take(needed_figures(stored_at, self.teacher, how.clips, how.teacher_steps), {})
            return None
        n, sampler = how.teacher_clips, teacher_sampler(self.teacher, how.teacher_steps)
        videos = self.clips[f"teacher {sampler.steps}"] = make_clips(sampler, self.teacher, *self._pairs(n))
        fresh = self.yardstick.measure(videos)
        self.known = {"right": fresh.right.tolist(), "reward": fresh.reward.tolist()}
        self.metrics["teacher"] = {"steps": sampler.steps, **fresh.metrics}
        # The shipped figures are of the embedded teacher at its own 50 steps; a fresh check of fewer clips goes along.
        stored = stored_figures(stored_at, self.teacher, how.clips) if usable else None
        if stored is not None:
            self._take(stored, fresh.metrics)
            agree = sum(a == b for a, b in zip(self.known["right"], fresh.right.tolist(), strict=False)) / n
            self.metrics["teacher_fresh"] = {**fresh.metrics, "agreement_with_stored": agree}
            logger.info(f"teacher: stored figures of {how.clips} clips; {n} made afresh, {agree:.0%} judged alike")
        return fresh

    def _take(self, stored: dict[str, Any], fresh: dict[str, Any]) -> None:
        """Take stored figures; those that they lack, since measures come to be, from the fresh clips, and say so."""
        self.known, figures = stored["pairs"], stored["by_clips"][str(self.settings.clips)]
        self.metrics["teacher"] = {"steps": TEACHER_STEPS, **figures}
        lacking = [name for name in MEASURES if name not in figures]
        if lacking and fresh:
            self.metrics["teacher"] |= {name: fresh[name] for name in lacking} | {"of_fresh": lacking}
        if lacking:
            source = f"are of {fresh['clips']} clips made afresh" if fresh else "are left out; give teacher_clips=64"
            logger.warning(f"note: the teacher's stored figures lack {', '.join(lacking)}, which {source}")

    def measure_student(self, student: MeasuredStudent) -> None:
        """Measure the student at each step count, and the same sampler with the teacher's weights."""
        chosen = self._pairs(self.settings.clips)
        right, reward = np.array(self.known["right"]), np.array(self.known["reward"])
        self.metrics["student"] = {}
        for steps in self.settings.steps:
            videos = make_clips(student.sampler(self.teacher, steps), self.teacher, *chosen)
            self.clips[f"student {steps}"] = videos
            figures = self.yardstick.measure(videos)
            differing = difference(figures, right, reward, chosen.prompts)
            self.metrics["student"][str(steps)] = {**figures.metrics, "difference": differing}
        if self.settings.untrained:
            most = max(student.few_steps)
            sampler = student_sampler(self.teacher, self.teacher.denoiser, student.few_steps[most], "untrained")
            videos = self.clips[f"untrained {most}"] = make_clips(sampler, self.teacher, *chosen)
            self.metrics["untrained"] = {str(most): self.yardstick.measure(videos).metrics}

    def measure_scores(self, pixel: PixelReward | None) -> None:
        """Add a reward's scores, if there is one, of all clips, and of real ones where the teacher made some too."""
        if pixel is None:
            return
        prompts = self.yardstick.pairs.prompts
        for name, videos in self.clips.items():
            system, _, steps = name.partition(" ")
            figures = self.metrics["teacher"] if system == "teacher" else self.metrics[system][steps]
            figures["scored"] = scored(pixel, videos, prompts)
        if pixel.trouble:
            logger.warning(f"note: clips that got no reward are left out of its mean: {pixel.trouble}")
        if self.settings.real and self.settings.teacher_clips > 0:
            others = self.yardstick.others[: self.settings.clips]
            self.metrics["real"]["scored"] = scored(pixel, others, prompts)

    def measure_times(self, student: MeasuredStudent | None = None) -> None:
        """Add the seconds of a clip for the teacher, and for the student with its speed-up, all timed in turn."""
        how = self.settings
        if how.repeats == 0:
            return
        reference = teacher_sampler(self.teacher, how.teacher_steps)
        samplers = [] if student is None else [student.sampler(self.teacher, k) for k in how.steps]
        prompt = self.yardstick.pairs.prompts[0]
        seconds, speeds = measure_speed(self.teacher, reference, prompt, how.repeats, samplers)
        self.metrics["teacher"]["seconds"] = seconds
        for steps, speed in speeds.items():
            self.metrics["student"][str(steps)] |= speed

    def measure_sizes(self, student: MeasuredStudent | None = None) -> None:
        """Add the networks' parameters, the operations of one clip's forward, and how many forwards a clip takes."""
        samplers = {"teacher": teacher_sampler(self.teacher, self.settings.teacher_steps)}
        systems = {"teacher": self.metrics["teacher"]}
        for steps in () if student is None else self.settings.steps:
            samplers[str(steps)] = student.sampler(self.teacher, steps)  # type: ignore[union-attr]
            systems[str(steps)] = self.metrics["student"][str(steps)]
        networks = {name: sampler.denoiser.network for name, sampler in samplers.items()}
        for name, size in sizes(self.teacher, networks, repeats=0).items():
            forwards = samplers[name].steps * (1 + samplers[name].guided)
            systems[name]["size"] = {"parameters": size.parameters, "flops": size.flops, "forwards": forwards}

    def measure_latent_reward(self, folder: Path, student: MeasuredStudent, pixel: PixelReward | None) -> None:
        """Add the stored latent reward model's figures, if there is one, on clips of mixed quality.

        They are made by the teacher in 1 to 50 steps and by the student in its own.
        """
        count = self.settings.lrm_prompts
        if not (folder / "model.safetensors").is_file() or pixel is None or count == 0:
            return
        surrogate = LatentReward.from_folder(folder, self.teacher, pixel)
        prompts = shapes.captions("held_out")[:: max(1, 230 // count)][:count]
        samplers = [teacher_sampler(self.teacher, steps) for steps in (1, 2, 4, 10, TEACHER_STEPS)]
        samplers += [student.sampler(self.teacher, steps) for steps in student.few_steps]
        self.metrics["lrm"] = latent_reward_figures(surrogate, self.teacher, samplers, prompts)
