"""A study's document from its results: verdicts, the leading figure, tables, plots, and the questions in full.

The exact commands are on a page of their own, in the folder of results.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dollar.media import atomically
from dollar.studies.plots import Plot, write_plots
from dollar.studies.questions import Question, markdown, verdicts
from dollar.studies.results import Results
from dollar.studies.rows import Row, start_of
from dollar.studies.tables import Column, table

BEGIN, END = "<!-- written by hand: begin -->", "<!-- written by hand: end -->"
HAND = "What stands between these two marks is kept when the document is written anew."
COMMANDS = "commands.md"


def _nothing(rows: Sequence[Row], results: Results) -> str:
    return ""


@dataclass(frozen=True)
class Layout:
    """What a study's document has besides its questions.

    about: what the figures mean; commands: the lines of shell that make what is known, and the document; teacher: the
    label of the teacher's line; columns: those of a group with its rows. repeated: rows of other groups that a group's
    table repeats, since they are what it is compared with; so is what it starts from. across: figures are a table's
    lines, and students its columns. captions: a group's plot and what is seen in it; lead: the plot that follows the
    verdicts, with what is seen in it; scope: what so many rows and seeds can decide; before and after: text before and
    after the table of a group's rows.
    """

    title: str
    about: str
    commands: Callable[[Results], Sequence[str]]
    columns: Callable[[str, Sequence[Row]], Sequence[Column]]
    teacher: str = "teacher"
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    across: bool = False
    captions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lead: tuple[str, str] = ("", "")
    scope: Callable[[Sequence[Row], Results], str] = _nothing
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
    """The document, its plots and the page of commands, which go into the folder of results.json.

    What was written by hand is kept. titles: of the groups, in the order of their tables; stale: results of other
    settings than those of now.
    """
    hand, folder = by_hand(path), results.path.parent
    drawn, seeds = write_plots(folder, plots, results), len(seeds_in(results))
    parts = [head(layout, rows, results, stale)]
    if questions:
        parts.append(f"## Verdicts\n\n{verdicts(questions)}")
    parts += [picture(*layout.lead, drawn, folder.name), layout.scope(rows, results), f"{BEGIN}\n{hand}\n{END}\n"]
    parts += [section(layout, group, title, rows, results, drawn) for group, title in titles.items()]
    parts.append(f"## What the figures mean\n\n{layout.about}")
    if questions:
        parts += ["## Questions in full\n", *(markdown(question, seeds) for question in questions)]
    page = commands(layout, titles, rows, results)
    for file, text in ((path, "\n".join(part for part in parts if part)), (folder / COMMANDS, page)):
        with atomically(file) as temporary:
            temporary.write_text(text, "utf-8")


def by_hand(path: Path) -> str:
    """What stands between the marks; ValueError where one of the two is gone, for it would be lost."""
    text = path.read_text("utf-8") if path.is_file() else f"{BEGIN}\n{END}"
    _, begin, rest = text.partition(BEGIN)
    hand, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the line {BEGIN if not begin else END}; put it back, or remove the file")
    return hand.strip("\n") or f"<!-- {HAND} -->"


def seeds_in(results: Results) -> list[int]:
    """The seeds that at least half of the rows were trained with."""
    rows = _seeds_of_rows(results)
    counts = Counter(seed for seeds in rows.values() for seed in seeds)
    return sorted(seed for seed, count in counts.items() if 2 * count >= len(rows))


def further_seeds(results: Results) -> dict[tuple[int, ...], list[str]]:
    """The seeds that fewer rows were trained with, and which."""
    common = set(seeds_in(results))
    return _alike({name: seeds - common for name, seeds in _seeds_of_rows(results).items()})


def lacking_seeds(results: Results) -> dict[tuple[int, ...], list[str]]:
    """The seeds of those that most rows have which some lack, and which rows."""
    common = set(seeds_in(results))
    return _alike({name: common - seeds for name, seeds in _seeds_of_rows(results).items()})


def _alike(seeds: Mapping[str, set[int]]) -> dict[tuple[int, ...], list[str]]:
    """Rows by their seeds, without those that have none."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name, own in seeds.items():
        if own:
            found.setdefault(tuple(sorted(own)), []).append(name)
    return found


def _seeds_of_rows(results: Results) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for key, result in results.stored["rows"].items():
        found.setdefault(key.rpartition("/")[0], set()).add(result["seed"])
    return found


def head(layout: Layout, rows: Sequence[Row], results: Results, stale: Sequence[str]) -> str:
    """What was run, on what, where the commands are, and what is missing."""
    seeds, stored = seeds_in(results), list(results.stored["rows"].values())
    machines = "; ".join(sorted({result["machine"] for result in stored}))
    hours = sum(result["seconds"] for result in [*stored, results.stored["teacher"]] if result) / 3600
    known, count = sum(bool(results.of(row.name)) for row in rows), len(seeds)
    labels = {row.name: row.label for row in rows}
    more = "".join(
        f", {word} {', '.join(map(str, own))} of {'; '.join(f'“{labels.get(n, n)}”' for n in names)}"
        for word, found in (("and", further_seeds(results)), ("without", lacking_seeds(results)))
        for own, names in found.items()
    )
    chance = "; of one seed there is none" if count == 1 else ""
    lines = [
        f"# {layout.title}\n",
        f"{known} of {len(rows)} rows, seed{'s' * (count != 1)} {', '.join(map(str, seeds)) or '—'}{more}; made on "
        f"{machines or '—'}, by jobs of one thread each, side by side, whose durations sum up to {hours:.1f} hours. "
        f"Figures are mean ± standard deviation over seeds{chance}. "
        f"[All commands]({results.path.parent.name}/{COMMANDS}).\n",
    ]
    if stale:
        lines.append(f"Measured with other settings than those of now: {', '.join(sorted(stale))}.\n")
    return "\n".join(lines)


def section(layout: Layout, group: str, title: str, rows: Sequence[Row], results: Results, drawn: Sequence[str]) -> str:
    """A group's table and plot."""
    mine = [row for row in rows if row.group == group]
    controls = {row.control for row in mine}
    known = (*layout.repeated.get(group, ()), start_of(rows, group), *controls)
    repeated = [row for row in rows if row.name in known and row.group != group]
    figures = table(layout.columns(group, mine), repeated, mine, results, layout.teacher, layout.across)
    text = f"## {title}\n\n{layout.before(mine, results)}{figures}\n{layout.after(mine, results)}"
    plot, caption = layout.captions.get(group, ("", ""))
    return text + picture(plot, caption, drawn, results.path.parent.name)


def picture(plot: str, caption: str, drawn: Sequence[str], folder: str) -> str:
    """A plot with its caption; empty where it wasn't drawn."""
    return f"\n![{caption}]({folder}/{plot}.svg)\n\n{caption}\n" if plot in drawn else ""


def commands(layout: Layout, titles: Mapping[str, str], rows: Sequence[Row], results: Results) -> str:
    """A page of what makes everything, and of each row's exact commands of its first seed, group by group."""
    lines = [f"# {layout.title}: commands\n", "```sh", *layout.commands(results), "```\n"]
    lines.append("What each row ran, for its first seed; those of another seed have its number in the place of this.\n")
    for group, title in titles.items():
        known = [(row, found[0]) for row in rows if row.group == group and (found := results.of(row.name))]
        if known:
            lines += [f"## {title}\n", "```sh"]
            for row, result in known:
                start = f", from the student of {row.after}" if row.after else ""
                lines += [f"# {row.label}{start}", *result["commands"]]
            lines.append("```\n")
    return "\n".join(lines)
