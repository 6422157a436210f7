"""A look at the student during training: fixed prompts and seeds, scores, and clips next to the teacher's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dollar import media
from dollar.data.latents import hash_of
from dollar.diffusion.timesteps import FewStep
from dollar.evaluation.measures.appearance import appearance
from dollar.log import logger, progress
from dollar.models.denoiser import Denoiser
from dollar.models.teacher import Teacher
from dollar.parallel.world import World
from dollar.rewards.shapes import ShapesVerifier
from dollar.sampling.samplers import Sampler, decode, finite, make_latents, student_sampler, teacher_sampler
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward
from dollar.training.clip_files import ClipFiles
from dollar.training.columns import columns
from dollar.training.log import Log

BATCH = 16  # clips that a process takes through a network at once
SEEDS = 10_000_000  # the first prompt's; each further one has the next
HEADING = 120  # letters of a prompt in a heading


class Made(NamedTuple):
    """Clips: latents [B, C, F, h, w], and videos uint8 [B, T, C, H, W] on the CPU."""

    latents: torch.Tensor
    videos: torch.Tensor


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

    def of(self, latents: torch.Tensor, videos: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The scores [B] of latents [B, C, F, h, w] and their videos [B, T, C, H, W] in [0, 1], nan where one has none.

        A clip that is not finite has none, whatever a reward makes of its picture.
        """
        found: dict[str, torch.Tensor] = {}
        for name, pixel in (("reward", self.reward), ("guard", self.guard)):
            if pixel is None:
                continue
            found[name] = pixel.score_videos(videos, prompts)
            if isinstance(pixel.reward, ShapesVerifier):
                found["alignment"] = pixel.reward.match(videos, list(prompts)).right.all(1).float()
        if self.surrogate is not None:
            with torch.no_grad():
                condition = self.surrogate.encode_text(list(prompts))
                predicted = self.surrogate.predict(latents, condition).float()
            # Before its first fit a surrogate predicts nothing that later predictions could be compared with.
            found["predicted"] = predicted if self.surrogate.statistics.count else torch.full_like(predicted, math.nan)
        sound = finite(latents).cpu()
        return {name: torch.where(sound, value.detach().cpu(), math.nan) for name, value in found.items()}

    def means(self, scores: Mapping[str, torch.Tensor], broken: int) -> dict[str, float]:
        """Means over the clips that have a score; nan where none has one, or where `broken` clips are not finite."""
        found = {name: math.nan if broken else float(value.nanmean()) for name, value in scores.items()}
        for name, pixel in (("reward", self.reward), ("guard", self.guard)):
            if pixel is not None and math.isnan(found[name]) and name not in self._silent:
                self._silent.add(name)
                trouble = f"{broken} of its clips are not finite" if broken else pixel.trouble
                logger.warning(f"note: a validation has no {name} score: {trouble}")
        return found


class Shown(NamedTuple):
    """What a validation shows: of how many prompts, the teacher's steps, and the files of full size, if any."""

    prompts: int = 4
    teacher_steps: int = 50
    files: ClipFiles | None = None


class Validation:
    """Samples the student at every step count it is trained for; scores are named `<measure>_<steps>`.

    count: prompts, evenly spaced through the list, each with its own fixed seed; shown: how many of them are logged as
    clips next to the teacher's, which are sampled once. Their saturation, contrast and motion are logged next to the
    teacher's as well, as `appearance/<measure>_<steps>` and `appearance/<measure>_teacher`.
    Each process makes its share of the clips, `batch` at a time, all in as many forwards, for a sharded network runs on
    all processes or none; what comes out is the same on any number of processes. The first one writes.
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
        shown: Shown = Shown(),  # noqa: B008
        guided: bool = False,
        batch: int = BATCH,
    ) -> None:
        self.teacher = teacher
        each = sorted(few_steps.items(), reverse=True)
        self.samplers = [student_sampler(teacher, student, f, guided=guided) for _, f in each]
        picked = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
        self.prompts = [prompts[i] for i in picked]
        self.seeds = [SEEDS + i for i in range(len(self.prompts))]
        self.scores, self.log, self.world, self.batch = scores, log, world, batch
        self.shown = shown._replace(prompts=min(shown.prompts, len(self.prompts)))
        last, share = len(self.prompts) - 1, math.ceil(len(self.prompts) / world.size)
        # Shares are filled up with the last prompt, so that all are as long.
        self.own = [min(world.rank + i * world.size, last) for i in range(share)]
        self._teachers: list[np.ndarray] | None = None

    def identity(self) -> str:
        """A hash of the prompts, in their order, which the seeds follow."""
        return hash_of(self.prompts)

    def __call__(self, cycle: int) -> dict[str, float]:
        """Scores of the student as it is now; logs its clips at this cycle."""
        found: dict[str, float] = {}
        teachers = self._teacher_clips()
        rows: list[list[np.ndarray]] = [[clip] for clip in teachers]
        for sampler in progress(self.samplers, "validation", active=self.world.is_main):
            latents, videos = self._made(sampler, self.own)
            prompts = [self.prompts[i] for i in self.own]
            scores = {n: self._all(v) for n, v in self.scores.of(latents, videos.float() / 255, prompts).items()}
            broken = int((~self._all(finite(latents))).sum())
            found |= {f"{name}_{sampler.steps}": value for name, value in self.scores.means(scores, broken).items()}
            for row, clip in zip(rows, self._clips(videos), strict=True):
                row.append(clip)
        if self.world.is_main and rows:
            self._show(cycle, rows)
        return found

    def _made(self, sampler: Sampler, places: Sequence[int]) -> Made:
        """The clips of the prompts at these places."""
        prompts, seeds = [self.prompts[i] for i in places], [self.seeds[i] for i in places]
        latents = make_latents(sampler, self.teacher, prompts, seeds, self.batch, show=False)
        return Made(latents, decode(self.teacher, latents, show=False))

    def _all(self, values: torch.Tensor) -> torch.Tensor:
        """[share, ...] of every process as [N, ...] in the prompts' order, on the CPU."""
        return self.world.gather(values.to(self.world.device)).cpu()[: len(self.prompts)]

    def _clips(self, videos: torch.Tensor) -> list[np.ndarray]:
        """The clips that are shown, of the videos of every process."""
        if self.shown.prompts == 0:
            return []
        shown = self._all(videos[: self._share_shown])[: self.shown.prompts]
        return [media.to_uint8(video.float() / 255) for video in shown]

    @property
    def _share_shown(self) -> int:
        """How many clips of each process are enough for those that are shown."""
        return math.ceil(self.shown.prompts / self.world.size)

    def _teacher_clips(self) -> list[np.ndarray]:
        if self._teachers is None:
            self._teachers = []
            if self.shown.prompts > 0:
                sampler = teacher_sampler(self.teacher, self.shown.teacher_steps)
                self._teachers = self._clips(self._made(sampler, self.own[: self._share_shown]).videos)
        return self._teachers

    def _show(self, cycle: int, rows: Sequence[Sequence[np.ndarray]]) -> None:
        """Log rows of a teacher's clip and the student's, and write those of the student at full size."""
        steps = [self.shown.teacher_steps, *(sampler.steps for sampler in self.samplers)]
        makers = ["teacher", *["student"] * len(self.samplers)]
        labels = [
            f"{by} {count}\N{NO-BREAK SPACE}step{'s' * (count > 1)}" for by, count in zip(makers, steps, strict=True)
        ]
        for i, row in enumerate(rows):
            tag = f"teacher and student/{i}: {shortened(self.prompts[i])}"
            self.log.clips(cycle, tag, columns(row, labels), self.teacher.fps)
            for clip, by, count in zip(row, makers, steps, strict=True):
                if self.shown.files is not None:
                    at = -1 if by == "teacher" else cycle
                    self.shown.files.write(clip, self.teacher.fps, self.prompts[i], self.seeds[i], count, by, at)
        if self.shown.files is not None:
            self.shown.files.prune()
        self.log.scalars(cycle, self._appearances(rows))

    def _appearances(self, rows: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
        """Saturation, contrast and motion of the clips shown, the student's by step count and the teacher's."""
        makers = ["teacher", *(str(sampler.steps) for sampler in self.samplers)]
        found: dict[str, float] = {}
        for by, clips in zip(makers, zip(*rows, strict=True), strict=True):
            videos = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
            found |= {f"appearance/{measure}_{by}": value for measure, value in appearance(videos).items()}
        return found


def shortened(prompt: str) -> str:
    """A prompt that stands in a heading."""
    plain = " ".join(prompt.split())
    return plain if len(plain) <= HEADING else f"{plain[: HEADING - 3]}..."
