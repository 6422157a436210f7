"""The report of V.I.P.: one html file with what each stage took out, lost and won back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from dollar.evaluation.measures.size import Size
from dollar.evaluation.report.page import SampleRow, curves, moving, plain_table, write_page
from dollar.training.log import read_scalars
from dollar.vip.loop import Result, chosen_in
from dollar.vip.scoring import Scores
from dollar.vip.stages import Stages


def shares(sizes: Mapping[str, Size], label: str) -> str:
    """What the network of this label is of the first, in a sentence."""
    first, last = next(iter(sizes.values())), sizes[label]
    parts = [
        f"{1 - last.parameters / first.parameters:.1%} fewer parameters",
        f"{1 - last.flops / first.flops:.1%} fewer operations",
    ]
    if first.seconds == first.seconds:
        parts.append(f"{1 - last.seconds / first.seconds:.1%} less time for a forward")
    return ", ".join(parts)


def write_report(
    stages: Stages,
    result: Result,
    sizes: Mapping[str, Size],
    saved: str,
    scores: Scores,
    clips: Sequence[SampleRow],
    fps: float,
) -> None:
    """Write report.html into the folder of the whole; saved: what the result is of the full network, in a sentence."""
    notes = [saved, *(stage.text(i) for i, stage in enumerate(result.stages, 1)), result.ended]
    if (stages.out / "evaluation" / "report.html").is_file():
        notes.append(
            "The evaluation of the result is in evaluation/report.html; each stage's pairs are in stageN/pairs."
        )
    sections = {
        "Sizes": plain_table(["parameters", "GFLOPs of a forward", "milliseconds"], _sizes(sizes)),
        "Scores": plain_table(*_scores(scores)),
        "Moving samples": moving(clips, fps),
    }
    for stage in range(1, len(result.stages) + 1):
        picture = stages.ranking(stage).with_suffix(".svg")
        gone = ", ".join(chosen_in(stages.ranking(stage)))
        sections[f"Stage {stage}: units"] = f"<p>Taken out: {escape(gone)}</p>{_picture(picture)}"
        scalars = read_scalars(stages.student(stage).parent)
        sections[f"Stage {stage}: training"] = curves({n: c for n, c in scalars.items() if not n.startswith("time/")})
    write_page(stages.out / "report.html", "V.I.P.", [note for note in notes if note], sections)


def _sizes(sizes: Mapping[str, Size]) -> dict[str, list[str]]:
    (first, *_) = sizes.values()
    return {
        name: [
            f"{size.parameters:,} ({size.parameters / first.parameters:.1%})",
            f"{size.flops / 1e9:.4g} ({size.flops / first.flops:.1%})",
            f"{1000 * size.seconds:.4g} ({size.seconds / first.seconds:.1%})" if size.seconds == size.seconds else "—",
        ]
        for name, size in sizes.items()
    }


def _scores(scores: Scores) -> tuple[list[str], dict[str, list[str]]]:
    names = list(next(iter(scores.values.values())))
    return ["mean", *names], {
        label: [f"{scores.mean(label):.3f}", *(f"{scores.mean(label, [name]):.3f}" for name in names)]
        for label in scores.values
    }


def _picture(path: Path) -> str:
    if not path.is_file():
        return ""
    return (
        f'<img style="max-width: 100%" src="data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}">'
    )
