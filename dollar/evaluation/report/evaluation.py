"""The report of an evaluation: its clips as rows, and the notes on its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dollar import media
from dollar.evaluation.report.page import SampleRow

COMPARED = 64  # the first clips, which every system made


def sample_rows(
    prompts: Sequence[str], seeds: Sequence[int], clips: Mapping[str, Tensor], shown: int
) -> list[SampleRow]:
    """About `shown` of the clips that every system made, uint8 [N, T, C, H, W], as rows."""
    rows = []
    for i in range(0, COMPARED, max(1, COMPARED // shown)):
        pictures = {name: media.to_uint8(videos[i].float() / 255) for name, videos in clips.items()}
        rows.append(SampleRow(prompts[i], seeds[i], pictures))
    return rows


def notes(metrics: Mapping[str, Any], clips: int, teacher_steps: int) -> list[str]:
    """How many clips each system made, and which figures are not to be compared; clips: the student's."""
    found = [
        f"Each student made {clips} clips of held-out prompts, the teacher {metrics['teacher']['clips']} of the "
        f"same (prompt, seed) pairs by {teacher_steps} guided steps. Differences are student minus teacher on "
        "the pairs that both made, with 95 % paired bootstrap intervals over prompts."
    ]
    if "teacher_fresh" in metrics:
        fresh = metrics["teacher_fresh"]
        found.append(
            f"The teacher's figures come with it; {fresh['clips']} of its clips were made afresh, and of these "
            f"{fresh['agreement_with_stored']:.0%} were judged as they were then."
        )
        if lacking := metrics["teacher"].get("of_fresh"):
            found.append(f"Its {', '.join(lacking)} are of those {fresh['clips']}, since its stored figures lack them.")
    if metrics["teacher"]["clips"] != clips:
        found.append(
            "The teacher made fewer clips, so its Frechet distance and diversity are not to be compared with the "
            "student's: both depend on the number of clips."
        )
    return found
