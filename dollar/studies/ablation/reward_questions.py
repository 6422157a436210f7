"""The ablation's questions of what a reward's pursuit gives and costs, at equal true reward and beside its control."""

from __future__ import annotations

from dollar.studies.ablation.figures import CONTROL, METHODS, NAMES, PURSUED, along_push, pursued_by
from dollar.studies.ablation.tradeoff import LOST, RISES, Tradeoff
from dollar.studies.compare import Comparison, Gaps, no_more
from dollar.studies.questions import Asker, Question

HALF = 0.5  # the share of what the paper's form loses that ours may lose at most
FEW = ("two", "one")  # the step counts of the group few, as its rows' names end
LED = ("ours", "small", "paper")  # and the methods with which they may begin


def tradeoff(ask: Asker) -> list[Question]:
    """What methods lose at the same true rise."""
    pursued = pursued_by(ask.rows, "tradeoff")
    return [
        *(question for rise in RISES for question in _at(ask, pursued, rise)),
        Question(
            f"Does the paper's latent reward raise {PURSUED[pursued]} further than DDPO?",
            "At the strongest push of each. The paper's Table 5 and Figure 8 say so of HPSv2.",
            _strongest(ask, "paper", "ddpo", pursued),
            [ask.numbers(f, CONTROL, *_last(ask, "paper", "ddpo")) for f in (pursued, "alignment", "verifier")],
        ),
    ]


def _at(ask: Asker, pursued: str, rise: float) -> list[Question]:
    """The questions at one true rise."""
    at = Tradeoff(ask.results, ask.rows, pursued, rise)
    reached = [_reached(at, method) for method in METHODS if along_push(ask.rows, method)]
    where = f"at a true rise of {PURSUED[pursued]} of {rise:+.2f} above its control"
    return [
        *(
            Question(
                f"Does ours lose at most half as much {NAMES[figure]} as the paper's latent reward {where}?",
                "What ours loses minus half of what the paper's loses, below 0 where it holds.",
                [_within(at, ask, "paper", figure, HALF)],
                [_losses(at, ask, figure, "ours", "paper"), *reached],
                None,
            )
            for figure in ("alignment", "frechet")
        ),
        Question(
            f"Is ours on or above the direct gradient's curve {where}?",
            "What ours loses minus what the direct gradient loses, 0 or below where it holds.",
            [_not_below(at, ask, "direct", figure) for figure in ("alignment", "frechet")],
            [_losses(at, ask, figure, "ours", "direct", "small") for figure in LOST],
            None,
        ),
    ]


def _last(ask: Asker, *methods: str) -> list[str]:
    return [rows[-1] for method in methods if (rows := along_push(ask.rows, method))]


def _strongest(ask: Asker, a: str, b: str, pursued: str) -> list[Comparison]:
    names = _last(ask, a, b)
    if len(names) < 2:
        return [Comparison("unknown", f"{NAMES[pursued]}: not measured")]
    return [ask.higher(pursued, *names), ask.higher(pursued, names[0], CONTROL)]


def _reached(at: Tradeoff, method: str) -> str:
    """In how many seeds a method gets to the rise, and how far it gets elsewhere."""
    reaches = at.reaches(method)
    short = {seed: reach.most for seed, reach in reaches.items() if reach.student is None}
    text = f"{METHODS[method]} gets there in {len(reaches) - len(short)} of {len(reaches)} seeds"
    told = ", ".join(f"{most:+.3f} at most in seed {seed}" for seed, most in short.items())
    return text + (f" ({told})" if short else "")


def _within(at: Tradeoff, ask: Asker, other: str, figure: str, share: float) -> Comparison:
    """Whether ours loses this share of what another loses at most; one that never gets there is beaten."""
    ours, theirs = at.reaches("ours"), at.reaches(other)
    what = f"{LOST[figure]} by ours, beyond {share:g} of {METHODS[other]}'s"
    both = sorted(ours.keys() & theirs.keys())
    gets = [[reaches[seed].student is not None for seed in both] for reaches in (ours, theirs)]
    if both and not any(gets[1]):
        return Comparison("yes" if all(gets[0]) else "undecided", f"{what}: {METHODS[other]} never gets there", what)
    return no_more(what, at.beyond("ours", other, figure, share), ask.wording.show(figure))


def _not_below(at: Tradeoff, ask: Asker, other: str, figure: str) -> Comparison:
    what = f"{LOST[figure]} by ours, beyond {METHODS[other]}'s"
    return no_more(what, at.beyond("ours", other, figure), ask.wording.show(figure))


def _losses(at: Tradeoff, ask: Asker, figure: str, *methods: str) -> str:
    """What methods lose of a figure at the rise."""
    show = ask.wording.show(figure)
    found = ((METHODS[m], no_more("", at.lost(m, figure), show)) for m in methods if at.students(m))
    return f"{LOST[figure]}: " + (", ".join(f"{n} {c.effect} {c.interval}".strip() for n, c in found) or "—")


def pursuit(ask: Asker) -> list[Question]:
    """Whether rewards without a gradient rise by ours, a row a question: above the control, and above the start.

    The guard may end a row at once and keep the start's student, which is above a control whose reward falls meanwhile.
    """
    rows = [row for row in ask.rows if row.group == "overoptimisation" and row.control]
    return [
        Question(
            f"Does ours raise {PURSUED[row.pursued]} ({row.label})?",
            "The paper's Figure 9 has dynamic degree rising to 0.97, while the clips become a flow of noise."
            if row.pursued == "motion"
            else "",
            [
                ask.higher(row.pursued, row.name, other)._replace(what=f"{PURSUED[row.pursued]} above the {name}'s")
                for name, other in (("control", row.control), ("start", row.after))
                if other
            ],
            [
                ask.ended(row.name),
                *(ask.numbers(f, row.name, row.control) for f in ("alignment", "frechet", "vendi", "sharpness")),
            ],
            None,
        )
        for row in rows
    ]


def few(ask: Asker) -> list[Question]:
    """Whether the CLIP reward rises where there is room, in few steps."""
    found, names = [], {row.name: row for row in ask.rows}
    for count in FEW:
        for method in LED:
            row = names.get(f"{method}_{count}")
            if row is None or not row.control:
                continue
            found.append(
                Question(
                    f"Does {_method(method)} raise the CLIP reward of a student of {count} "
                    f"step{'s' * (count != 'one')}, with no alignment lost?",
                    "No alignment is lost where it isn't lower beyond chance.",
                    [ask.better("clip", row.name, row.control), ask.no_worse("alignment", row.name, row.control)],
                    [ask.numbers(f, row.name, row.control) for f in ("frechet", "vendi")],
                    None,
                )
            )
    return found


def _method(method: str) -> str:
    """A method's name within a sentence."""
    name = METHODS[method].partition(":")[0]
    return f"the {name}" if name.startswith("direct") else name


def at_equal_reward(ask: Asker) -> str:
    """Tables of what each method loses at the same true rise, with intervals over seeds; empty without any."""
    pursued = pursued_by(ask.rows, "tradeoff")
    return "".join(_table(ask, Tradeoff(ask.results, ask.rows, pursued, rise)) for rise in RISES)


def _table(ask: Asker, at: Tradeoff) -> str:
    methods = {m: reaches for m in METHODS if (reaches := at.reaches(m))}
    if not methods:
        return ""
    head = ["", "seeds that get there", *LOST.values()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, reaches in methods.items():
        short = [reach.most for reach in reaches.values() if reach.student is None]
        there = f"{len(reaches) - len(short)} of {len(reaches)}"
        there += f"; else {min(short):+.3f} to {max(short):+.3f} at most" if short else ""
        losses = [at.lost(method, figure) for figure in LOST]
        cells = [_cell(gaps, ask, figure) for figure, gaps in zip(LOST, losses, strict=True)]
        lines.append(f"| {' | '.join([METHODS[method], there, *cells])} |")
    about = (
        f"At equal true reward: what each method has lost where {PURSUED[at.pursued]} is {at.rise:+.2f} above the "
        "control of the same seed, on the straight line between two of its points (the control is no push at all):\n"
    )
    return f"{about}\n" + "\n".join(lines) + "\n\n"


def _cell(gaps: Gaps, ask: Asker, figure: str) -> str:
    found = no_more("", gaps, ask.wording.show(figure))
    return f"{found.effect} {found.interval}".strip() or "—"
