"""A look at the student during training: fixed prompts and seeds, scores, and clips next to the teacher's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dollar import media
from dollar.diffusion.timesteps import FewStep
from dollar.evaluation.measures.alignment import alignment
from dollar.log import logger, progress
from dollar.models.denoiser import Denoiser
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.rewards.shapes import ShapesVerifier
from dollar.sampling.samplers import decode, make_clips, make_latents, student_sampler, teacher_sampler
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.log import Log


class Scores:
    """Scores of a validation's clips: the reward, a second one, and the predicted reward.

    reward: the one that the student is led towards, or that only looks on; guard: a second one, which should not fall;
    surrogate: the latent reward model, whose prediction of the same samples is a score, too.
    """

    def __init__(
        self,
        reward: PixelReward | None = None,
        guard: PixelReward | None = None,
        surrogate: LatentReward | None = None,
    ) -> None:
        self.reward = reward
        self.guard = guard
        self.surrogate = surrogate
        self._silent: set[str] = set()

    def names(self, steps: Sequence[int]) -> list[str]:
        """The names of the scores of these step counts."""
        measures = ["reward"] if self.reward else []
        verified = any(isinstance(p.reward, ShapesVerifier) for p in (self.reward, self.guard) if p)
        measures += ["alignment"] if verified else []
        measures += ["guard"] if self.guard else []
        measures += ["predicted"] if self.surrogate else []
        return [f"{measure}_{count}" for measure in measures for count in sorted(steps, reverse=True)]

    def of(self, latents: torch.Tensor, videos: torch.Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """The scores of latents [B, C, F, h, w] and their videos [B, T, C, H, W] in [0, 1]; nan where none has one."""
        found: dict[str, float] = {}
        for name, pixel in (("reward", self.reward), ("guard", self.guard)):
            if pixel is None:
                continue
            found[name] = float(pixel.score_videos(videos, prompts).nanmean())
            if math.isnan(found[name]) and name not in self._silent:
                self._silent.add(name)
                logger.warning(f"note: no clip of a validation got a {name} score: {pixel.trouble}")
            if isinstance(pixel.reward, ShapesVerifier):
                found["alignment"] = float(alignment(pixel.reward.match(videos, list(prompts)))["alignment"])  # type: ignore[arg-type]
        if self.surrogate is not None:
            with torch.no_grad():
                condition = self.surrogate.encode_text(list(prompts))
                predicted = float(self.surrogate.predict(latents, condition).mean())
            # Before its first fit a surrogate predicts nothing that later predictions could be compared with.
            found["predicted"] = predicted if self.surrogate.statistics.count else float("nan")
        return found


class Validation:
    """Samples the student at every step count it is trained for; scores are named `<measure>_<steps>`.

    count: prompts, evenly spaced through the list, each with its own fixed seed; shown: how many of them are logged as
    clips next to the teacher's, which are sampled once. Every process samples the same clips, since a sharded network
    runs on all or none; the first one writes.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Denoiser,
        few_steps: Mapping[int, FewStep],
        prompts: Sequence[str],
        scores: Scores,
        log: Log,
        world: World,
        count: int = 24,
        shown: int = 4,
        teacher_steps: int = 50,
        guided: bool = False,
    ) -> None:
        self.teacher = teacher
        each = sorted(few_steps.items(), reverse=True)
        self.samplers = [student_sampler(teacher, student, f, guided=guided) for _, f in each]
        picked = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
        self.prompts = [prompts[i] for i in picked]
        self.seeds = [10_000_000 + i for i in range(len(self.prompts))]
        self.scores = scores
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
            latents = make_latents(sampler, self.teacher, self.prompts, self.seeds, show=False)
            videos = decode(self.teacher, latents, show=False)
            for row, video in zip(shown, videos, strict=False):
                row.append(media.to_uint8(video.float() / 255))
            measured = self.scores.of(latents, videos.float() / 255, self.prompts)
            scores |= {f"{name}_{sampler.steps}": value for name, value in measured.items()}
        for i, row in enumerate(shown):
            if self.world.is_main:
                self.log.clips(
                    cycle, f"teacher and student/{i}: {self.prompts[i]}", media.side_by_side(row), self.teacher.fps
                )
        return scores

    def _teacher_clips(self) -> list[np.ndarray]:
        if self.shown == 0:
            return []
        if self._teachers is None:
            n = self.shown
            sampler = teacher_sampler(self.teacher, self.teacher_steps)
            videos = make_clips(sampler, self.teacher, self.prompts[:n], self.seeds[:n], show=False)
            self._teachers = [media.to_uint8(video.float() / 255) for video in videos]
        return self._teachers
