"""A study's document from its results: head, tables with their commands, plots, and the questions' answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dollar.media import atomically
from dollar.studies.plots import Plot, write_plots
from dollar.studies.questions import Question, markdown
from dollar.studies.results import Results
from dollar.studies.rows import Row, start_of
from dollar.studies.tables import Column, table

BEGIN, END = "<!-- written by hand: begin -->", "<!-- written by hand: end -->"
HAND = "What stands between these two marks is kept when the document is written anew."


def _nothing(rows: Sequence[Row], results: Results) -> str:
    return ""


@dataclass(frozen=True)
class Layout:
    """What a study's document has besides its questions.

    about: what the figures mean; commands: the lines of shell that make so many seeds and the document; teacher: the
    label of the teacher's line; columns: those of a group with its rows. repeated: rows of other groups that a group's
    table repeats, since they are what it is compared with; so is what it starts from. captions: a group's plot and what
    is seen in it; before and after: text before and after the table of a group's rows.
    """

    title: str
    about: str
    commands: Callable[[int], Sequence[str]]
    columns: Callable[[str, Sequence[Row]], Sequence[Column]]
    teacher: str = "teacher"
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    captions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    before: Callable[[Sequence[Row], Results], str] = _nothing
    after: Callable[[Sequence[Row], Results], str] = _nothing


def write_document(
    path: Path,
    layout: Layout,
    rows: Sequence[Row],
    titles: Mapping[str, str],
    results: Results,
    plots: Mapping[str, Plot],
    questions: Sequence[Question],
    stale: Sequence[str] = (),
) -> None:
    """The document and its plots, which go into the folder of results.json; what was written by hand is kept.

    titles: of the groups, in the order of their tables; stale: results of other settings than those of now.
    """
    hand = by_hand(path)
    drawn = write_plots(results.path.parent, plots, results)
    parts = [head(layout, rows, results, stale), f"{BEGIN}\n{hand}\n{END}\n"]
    parts += [section(layout, group, title, rows, results, drawn) for group, title in titles.items()]
    parts.append("## Questions\n")
    parts += [markdown(question, len(seeds_in(results))) for question in questions]
    with atomically(path) as temporary:
        temporary.write_text("\n".join(parts), "utf-8")


def by_hand(path: Path) -> str:
    """What stands between the marks; ValueError where one of the two is gone, for it would be lost."""
    text = path.read_text("utf-8") if path.is_file() else f"{BEGIN}\n{END}"
    _, begin, rest = text.partition(BEGIN)
    hand, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the line {BEGIN if not begin else END}; put it back, or remove the file")
    return hand.strip("\n") or f"<!-- {HAND} -->"


def seeds_in(results: Results) -> list[int]:
    """All seeds that a row was trained with."""
    return sorted({result["seed"] for result in results.stored["rows"].values()})


def head(layout: Layout, rows: Sequence[Row], results: Results, stale: Sequence[str]) -> str:
    """What was run, on what, by which command, and what is missing."""
    seeds, stored = seeds_in(results), list(results.stored["rows"].values())
    machines = "; ".join(sorted({result["machine"] for result in stored}))
    hours = sum(result["seconds"] for result in [*stored, results.stored["teacher"]] if result) / 3600
    known, count = sum(bool(results.of(row.name)) for row in rows), len(seeds)
    chance = "; of one seed there is none" if count == 1 else ""
    lines = [
        f"# {layout.title}\n",
        f"{known} of {len(rows)} rows, seed{'s' * (count != 1)} {', '.join(map(str, seeds)) or '—'}; made on "
        f"{machines or '—'}, by jobs of one thread each, side by side, whose durations sum up to {hours:.1f} hours. "
        f"Figures are mean ± standard deviation over seeds{chance}.\n",
        "```sh",
        *layout.commands(count),
        "```\n",
        layout.about,
    ]
    if stale:
        lines.append(f"Measured with other settings than those of now: {', '.join(sorted(stale))}.\n")
    return "\n".join(lines)


def section(layout: Layout, group: str, title: str, rows: Sequence[Row], results: Results, drawn: Sequence[str]) -> str:
    """A group's table, commands and plot."""
    mine = [row for row in rows if row.group == group]
    repeated = [row for row in rows if row.name in (*layout.repeated.get(group, ()), start_of(rows, group))]
    figures = table(layout.columns(group, mine), repeated, mine, results, layout.teacher)
    text = f"## {title}\n\n{layout.before(mine, results)}{figures}\n{layout.after(mine, results)}"
    text += commands(mine, results)
    plot, caption = layout.captions.get(group, ("", ""))
    folder = results.path.parent.name
    return text + (f"\n![{caption}]({folder}/{plot}.svg)\n\n{caption}\n" if plot in drawn else "")


def commands(rows: Sequence[Row], results: Results) -> str:
    """Each row's exact commands of its first seed, folded."""
    lines = ["<details><summary>The exact commands (first seed)</summary>\n", "```sh"]
    for row in rows:
        for result in results.of(row.name)[:1]:
            lines += [
                f"# {row.label}" + (f", from the student of {row.after}" if row.after else ""),
                *result["commands"],
            ]
    return "\n".join([*lines, "```\n", "</details>\n"])
