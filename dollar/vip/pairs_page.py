"""A page to look at pairs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dollar import media
from dollar.data.scored import read_latents, read_scored
from dollar.evaluation.report.page import SampleRow, moving, plain_table, write_page
from dollar.media import atomically
from dollar.models.teacher import Teacher
from dollar.vip.clips import pictures
from dollar.vip.curation import Outcome
from dollar.vip.pairing import RULES, Pair
from dollar.vip.prompts import REASONS

FULL, SMALLER = "full model", "smaller model"
LINES, FRAMES, WIDEST = 4, 4, 128  # of the picture: pairs, frames a clip, and a frame's longest side in pixels


def write_pairs_page(path: Path, winners: Path, losers: Path, outcome: Outcome, teacher: Teacher, shown: int) -> None:
    """Write the page, with `shown` of the pairs evenly spaced from the widest gap to the narrowest.

    Beside it a picture of the first few of these: a line a pair, frames of the full model's clip and of the smaller
    one's.
    """
    pairs = sorted(outcome.paired.pairs, key=lambda pair: -pair.gap)
    some = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(shown, len(pairs))).round().astype(int))]
    rows = _rows(some, winners, losers, teacher) if some else []
    sections = {
        "What the smaller model lost": _falls(outcome),
        "Pairs": moving(rows, teacher.fps) if rows else "",
        "Prompts that were looked at": _counts(outcome.wanted.counts, {"suited": "suit", **REASONS}),
        "Clips of each model": _counts({"kept": len(pairs)} | outcome.paired.counts, {"kept": "make pairs", **RULES}),
    }
    write_page(path, "Pairs of a full and a smaller model", outcome.lines, sections)
    if rows:
        lines = [[_frames(row.clips[name]) for name in (FULL, SMALLER)] for row in rows[:LINES]]
        with atomically(path.with_suffix(".png")) as temporary:
            Image.fromarray(media.grid(lines, 8)[0]).save(temporary, "PNG")


def _frames(clip: np.ndarray) -> np.ndarray:
    """A few frames of a clip side by side, as a clip of one frame."""
    small = media.shrink(clip, WIDEST)
    places = np.linspace(0, len(small) - 1, min(FRAMES, len(small))).round().astype(int)
    return media.side_by_side([small[i : i + 1] for i in places], 1)


def _falls(outcome: Outcome) -> str:
    """The falls, the largest first, with the targets marked."""
    marks = {name: "target" if i else "main target" for i, name in enumerate(outcome.targets)}
    rows = {
        name: [f"{-fall.mean:+.4f}", f"{fall.error:.4f}", marks.get(name, "")]
        for name, fall in sorted(outcome.falls.items(), key=lambda item: -item[1].mean)
    }
    return plain_table(["smaller minus full", "standard error", ""], rows) if rows else ""


def _counts(counts: dict[str, int], words: dict[str, str]) -> str:
    return plain_table(["number"], {text: [str(counts.get(name, 0))] for name, text in words.items()})


def _rows(pairs: Sequence[Pair], winners: Path, losers: Path, teacher: Teacher) -> list[SampleRow]:
    """The pairs' clips, each with its scores in both models."""
    ids = {winners: [pair.winner for pair in pairs], losers: [pair.loser for pair in pairs]}
    scores = {folder: read_scored(folder) for folder in ids}
    videos = {}
    for folder, wanted in ids.items():
        latents = read_latents(folder, wanted)
        videos[folder] = pictures(teacher, [latents[id] for id in wanted])
    rows = []
    for i, pair in enumerate(pairs):
        high, low = scores[winners][pair.winner].scores, scores[losers][pair.loser].scores
        remarks = [f"gap in {pair.target} {pair.gap:.4f}"] if pair.target else []
        remarks += [f"{name} {high[name]:.4f}, smaller {low[name]:.4f}" for name in high]
        clips = {
            name: media.to_uint8(videos[folder][i].float() / 255)
            for name, folder in ((FULL, winners), (SMALLER, losers))
        }
        rows.append(SampleRow(pair.prompt, pair.seed, clips, remarks))
    return rows
