"""A look at the student during training: fixed prompts and seeds, scores, and clips beside the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dollar import media
from dollar.diffusion.timesteps import FewStep
from dollar.evaluation.alignment import alignment
from dollar.latent_reward import Reward
from dollar.log import Log, progress
from dollar.models.denoiser import Denoiser
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.sampling import make_clips, student_sampler, teacher_sampler


def score_names(reward: Reward | None, steps: Sequence[int]) -> list[str]:
    """What a validation of these step counts scores."""
    measures = [] if reward is None else ["reward"]
    measures += ["alignment"] if hasattr(reward, "judge") else []
    return [f"{measure}_{count}" for measure in measures for count in sorted(steps, reverse=True)]


class Validation:
    """Samples the student at every step count it is trained for; scores are named `<measure>_<steps>`.

    count: prompts, evenly spaced through the list, each with its own fixed seed; shown: how many of them are logged as
    clips beside the teacher's, which are made once. Every process samples the same clips, since a sharded network runs
    on all or none; the first one writes.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Denoiser,
        few_steps: Mapping[int, FewStep],
        prompts: Sequence[str],
        reward: Reward | None,
        log: Log,
        world: World,
        count: int = 24,
        shown: int = 4,
        teacher_steps: int = 50,
    ) -> None:
        self.teacher = teacher
        self.samplers = [student_sampler(teacher, student, f) for _, f in sorted(few_steps.items(), reverse=True)]
        picked = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
        self.prompts = [prompts[i] for i in picked]
        self.seeds = [10_000_000 + i for i in range(len(self.prompts))]
        self.reward = reward
        self.log = log
        self.world = world
        self.shown = min(shown, len(self.prompts))
        self.teacher_steps = teacher_steps
        self._teachers: list[np.ndarray] | None = None

    def __call__(self, cycle: int) -> dict[str, float]:
        """Scores of the student as it is now; logs its clips at this cycle."""
        scores: dict[str, float] = {}
        shown: list[list[np.ndarray]] = [[clip] for clip in self._teacher_clips()]
        for sampler in progress(self.samplers, "validation", active=self.world.is_main):
            videos = make_clips(sampler, self.teacher, self.prompts, self.seeds, show=False)
            for row, video in zip(shown, videos, strict=False):
                row.append(media.to_uint8(video.float() / 255))
            scores |= {f"{name}_{sampler.steps}": value for name, value in self._score(videos).items()}
        for i, row in enumerate(shown):
            if self.world.is_main:
                self.log.clips(
                    cycle, f"teacher and student/{i}: {self.prompts[i]}", media.side_by_side(row), self.teacher.fps
                )
        return scores

    def _score(self, videos: torch.Tensor) -> dict[str, float]:
        if self.reward is None:
            return {}
        pixels = videos.float() / 255
        judge: Any = getattr(self.reward, "judge", None)
        if judge is None:
            return {"reward": float(self.reward.score(pixels, self.prompts).mean())}
        measured = alignment(judge(pixels, self.prompts))
        return {name: float(measured[name]) for name in ("alignment", "reward")}  # type: ignore[arg-type]

    def _teacher_clips(self) -> list[np.ndarray]:
        if self.shown == 0:
            return []
        if self._teachers is None:
            n = self.shown
            sampler = teacher_sampler(self.teacher, self.teacher_steps)
            videos = make_clips(sampler, self.teacher, self.prompts[:n], self.seeds[:n], show=False)
            self._teachers = [media.to_uint8(video.float() / 255) for video in videos]
        return self._teachers
