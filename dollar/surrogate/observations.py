"""The pixel reward of real, mismatched and generated clips: each is scored once and kept in a file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dollar.data.latents import Batch, Samples
    from dollar.models.teacher import Teacher
    from dollar.surrogate.pixel_reward import PixelReward

FILE = "observations.safetensors"
TENSORS = ("latents", "place", "clip", "reward")
REAL, MISMATCHED = "real", "mismatched"
TOGETHER = 8  # clips that are generated, decoded and scored at once
MISMATCH = 7919  # how many clips on a clip's wrong caption is taken from; a prime, so that groups don't align
SECONDS = 60.0  # between two writings of the file
SEEDS = 30_000_000  # the first seed of the generated clips, and further ones for each step count
SEED_APART = 100_003  # between those of one seed of the command and the next


class ScoredClip(NamedTuple):
    """A clip under a caption: the place of its latents, its number in the data, and its reward, nan where unusable.

    frames: the rewards of the frames, of which `reward` is the mean; empty where they aren't known.
    """

    place: int
    clip: int
    prompt: str
    reward: float
    frames: tuple[float, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether its reward is a number."""
        return self.reward == self.reward


@dataclass
class Observations:
    """Scored clips, by their kind and their sample in the data.

    latents: [C, F, h, w] each, on the CPU; two captions of one clip share them. identity: plain values on which the
    scores depend. seconds: how long scoring has taken in all.
    """

    identity: dict[str, Any]
    latents: list[Tensor] = field(default_factory=list)
    rows: dict[tuple[str, int], ScoredClip] = field(default_factory=dict)
    seconds: float = 0.0

    def has(self, key: tuple[str, int]) -> bool:
        """Whether there is a reward that is a number; what failed may have been mended, and is scored again."""
        return key in self.rows and self.rows[key].usable

    def save(self, path: Path) -> None:
        """Write everything, in one atomic step."""
        from safetensors.torch import save_file

        from dollar.media import atomically
        from dollar.storage import explained

        rows = list(self.rows.values())
        places = {place: i for i, place in enumerate(sorted({row.place for row in rows}))}  # without those scored again
        tensors = {
            "latents": torch.stack([self.latents[place] for place in places]),
            "place": torch.tensor([places[row.place] for row in rows]),
            "clip": torch.tensor([row.clip for row in rows]),
            "reward": torch.tensor([row.reward for row in rows], dtype=torch.float32),
        }
        if most := max(len(row.frames) for row in rows):
            frames = [row.frames or (math.nan,) * most for row in rows]
            tensors["frames"] = torch.tensor(frames, dtype=torch.float32)
        plain = {
            "identity": self.identity,
            "keys": list(self.rows),
            "prompts": [row.prompt for row in rows],
            "seconds": self.seconds,
        }
        with explained("the scored clips", path.parent), atomically(path) as temporary:
            save_file(tensors, temporary, {"observations": json.dumps(plain)})

    @classmethod
    def at(cls, path: Path, identity: dict[str, Any], former: dict[str, Any] | None = None) -> Observations:
        """What the file holds, or nothing yet; ValueError where its scores are of another reward, teacher or data.

        former: values of the identity that an earlier version wrote in the place of those of now.
        """
        from safetensors import safe_open

        identity, former = json.loads(json.dumps([identity, {**identity, **(former or {})}]))  # tuples are lists there
        if not path.is_file():
            return cls(identity)
        try:
            with safe_open(path, "pt") as opened:
                plain = json.loads(opened.metadata()["observations"])
                names = [*TENSORS, *(["frames"] if "frames" in opened.keys() else [])]  # noqa: SIM118
                tensors = {name: opened.get_tensor(name) for name in names}
        except Exception as error:  # cut short, or not ours
            raise ValueError(f"{path} can't be read ({error}); remove it, and its clips are scored anew") from None
        stored = plain["identity"]
        differing = [key for key in identity if stored.get(key) not in (identity[key], former[key])]
        if differing:
            raise ValueError(
                f"{path} holds scores of another {' and '.join(differing)}; name another folder with out=FOLDER, or "
                "remove the file"
            )
        rewards, none = tensors["reward"].tolist(), [()] * len(plain["keys"])
        frames = (
            [tuple(f) if math.isfinite(f[0]) else () for f in tensors["frames"].tolist()]
            if "frames" in tensors
            else none
        )
        fields = (tensors["place"].tolist(), tensors["clip"].tolist(), plain["prompts"], rewards, frames)
        keys = [(kind, sample) for kind, sample in plain["keys"]]
        rows = dict(zip(keys, map(ScoredClip, *fields), strict=True))
        return cls(identity, list(tensors["latents"]), rows, plain["seconds"])


@dataclass
class Scoring:
    """Scores the clips whose pixel reward is not known yet, a few at a time.

    clips: real ones; made: step counts of the teacher, and made_clips clips generated in each; seed: of their noise;
    by_frames: whether a clip is scored again whose frames' own rewards aren't known; where the reward has such, they
    are kept in any case.
    """

    teacher: Teacher
    data: Samples
    pixel: PixelReward
    clips: int
    mismatched: bool
    made: Sequence[int]
    made_clips: int
    seed: int = 0
    by_frames: bool = False

    def __post_init__(self) -> None:
        self.clips = min(self.clips, len(self.data)) if self.data.has_latents else 0
        self.made = list(self.made) if self.made_clips > 0 else []

    @property
    def count(self) -> int:
        """How many clips, with their captions, are scored in all."""
        return self.clips * (1 + self.mismatched) + self.made_clips * len(self.made)

    def run(self, observed: Observations, path: Path) -> None:
        """Score what is missing or has no number, writing now and then.

        ValueError where the reward fails on the first clips of which nothing is known.
        """
        from dollar.log import progress

        missing, tried = self.missing(observed), False
        written = started = time.perf_counter()
        bar = progress(missing, "scoring clips", active=bool(missing))
        for kind, samples in bar:
            # A clip that got no number before may be beyond the reward, and is no trial of it.
            trial = not tried and not any(key in observed.rows for key in self._keys(kind, samples))
            tried = tried or trial
            self._score(observed, kind, samples, trial)
            now = time.perf_counter()
            observed.seconds, started = observed.seconds + now - started, now
            if now - written > SECONDS:
                observed.save(path)
                written = time.perf_counter()
        if missing:
            observed.save(path)

    def missing(self, observed: Observations) -> list[tuple[str, range]]:
        """The clips, by kind and samples, of which some have no reward that is a number."""
        return [chunk for chunk in self._chunks() if not all(self._has(observed, k) for k in self._keys(*chunk))]

    def _has(self, observed: Observations, key: tuple[str, int]) -> bool:
        return observed.has(key) and not (self.by_frames and not observed.rows[key].frames)

    def wanted(self, observed: Observations) -> list[tuple[str, ScoredClip]]:
        """Kind and row of each clip and caption that is configured, where the reward gave a number."""
        keys = [key for chunk in self._chunks() for key in self._keys(*chunk)]
        rows = [(key[0], observed.rows[key]) for key in keys if key in observed.rows]
        return [(kind, row) for kind, row in rows if row.usable]

    def _chunks(self) -> Iterator[tuple[str, range]]:
        for kind, count in ((REAL, self.clips), *((f"made in {steps}", self.made_clips) for steps in self.made)):
            for first in range(0, count, TOGETHER):
                yield kind, range(first, min(first + TOGETHER, count))

    def _keys(self, kind: str, samples: range) -> list[tuple[str, int]]:
        kinds = [REAL, MISMATCHED] if kind == REAL and self.mismatched else [kind]
        return [(k, sample) for k in kinds for sample in samples]

    def _score(self, observed: Observations, kind: str, samples: range, trial: bool) -> None:
        batch = self.data.batch(samples, latents=kind == REAL)
        latents = batch.latents if kind == REAL else self._generate(int(kind.split()[-1]), samples, batch.prompts)
        assert latents is not None
        videos = self.pixel.decode(latents)
        if trial:
            self.pixel.trial(videos, batch.prompts)
        place = len(observed.latents)
        observed.latents += latents.detach().float().cpu()
        captions = {kind: batch.prompts}
        if kind == REAL and self.mismatched:
            captions[MISMATCHED] = self._others(batch)
        for name, prompts in captions.items():
            rows = self.pixel.rows(videos, prompts, self.pixel.by_frames)
            for i, (reward, frames) in enumerate(zip(rows.mean(1).tolist(), rows.tolist(), strict=True)):
                if not self._has(observed, (name, samples[i])):  # a number stays, whatever another batch would give
                    kept = tuple(frames) if self.pixel.by_frames and reward == reward else ()
                    scored = ScoredClip(place + i, batch.keys[i][0], prompts[i], reward, kept)
                    observed.rows[(name, samples[i])] = scored

    def _generate(self, steps: int, samples: range, prompts: list[str]) -> Tensor:
        from dollar.sampling.samplers import make_latents, teacher_sampler

        seeds = [SEEDS * (1 + steps) + sample + SEED_APART * self.seed for sample in samples]
        return make_latents(teacher_sampler(self.teacher, steps), self.teacher, prompts, seeds, TOGETHER, show=False)

    def _others(self, batch: Batch) -> list[str]:
        """Captions of other clips, the same that training would take."""
        captions = self.data.captions
        return [captions[(clip + MISMATCH) % len(captions)] for clip, _ in batch.keys]
