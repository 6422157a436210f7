"""What the study asks of V.I.P., each answered from the rows' figures; the paper's own claims beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dollar.studies.compare import Comparison, Gaps, brackets, half_interval, reaches, signed
from dollar.studies.few_step.figures import above_teacher
from dollar.studies.questions import Asker, Question, Wording
from dollar.studies.results import Results
from dollar.studies.rows import TEACHER, Row
from dollar.studies.vip.agreement import agreement, chosen, overlap
from dollar.studies.vip.figures import FORMS, LESS, NAMES, SHARES

WORDING = Wording(NAMES, FORMS, LESS)
WEIGHTS = ("sft_1e2", "sft_1e3", "redpo", "sft_1e5", "sft_1e6", "sft_1e7")  # in order; ReDPO's own is 1e4
TARGETS = ("right_shape", "right_motion")  # what falls most in shapes_deep; the pairs' own count where they are known
BELOW = 0.05  # how far the smaller student of four steps may be from the demo's alignment
IDLE = (
    " It never acted: in every seed its errors are ReDPO's in all digits that are kept, for at this weight of SFT what "
    "is asked of the winners outweighs the losers' part."
)


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = Asker(results, rows, WORDING)
    return [_rankings(results), *_losses(ask), *_stages(ask), *_results(ask)]


def _rankings(results: Results) -> Question:
    """Of what blocks are worth; of those that may go, for without the others hardly anything is left by any measure."""
    return Question(
        "Do the cheap rankings agree with the reward's?",
        "The paper ranks by rewards alone.",
        [agreement(results, name) for name in ("prediction", "influence")],
        [overlap(results), chosen(results)],
        None,
    )


def _losses(ask: Asker) -> list[Question]:
    """Of ReDPO, its parts and its weights, on one pruned network and its pairs."""
    targets, best = targets_of(ask.results), best_weight(ask.results)
    others = [name for name in SHARES if name not in targets]
    guarded = [ask.better(name, "safeguard", "redpo") for name in ("verifier", "alignment", "frechet")]
    idle = IDLE if never_acted(ask.results) else ""
    return [
        Question(
            "Does ReDPO beat SFT on what the pairs were chosen by?",
            "The paper says so (Tables 3 and 4); its SFT has as many updates, here it has as many forwards.",
            [ask.better(name, "redpo", "sft") for name in (*targets, "verifier")],
            [ask.numbers("verifier", "pruned", "redpo", "sft", TEACHER)],
        ),
        Question(
            "And on what they were not chosen by?",
            "",
            [ask.better(name, "redpo", "sft") for name in (*others, "frechet", "clip")],
            [ask.numbers("vendi", "pruned", "redpo", "sft", TEACHER)],
            None,
        ),
        Question(
            "Does ReDPO beat SFT of as many updates?",
            "That is the paper's comparison; ReDPO's then cost more than twice as much.",
            [ask.better(name, "redpo", "sft_alone") for name in (*targets, "verifier")],
            [ask.numbers("frechet", "redpo", "sft_alone")],
        ),
        Question(
            "Does DPO alone win anything back?",
            "The paper finds it unstable.",
            [ask.better("verifier", "dpo", "pruned"), ask.better("alignment", "dpo", "pruned")],
            [ask.numbers(name, "dpo", "redpo", "safeguard") for name in ("winner_error", "loser_error", "cosine")],
            "no",
        ),
        Question(
            "Does the safeguard make ReDPO better?",
            f"It is not the paper's.{idle}",
            [found._replace(answer="no") if idle else found for found in guarded],
            [],
            None,
        ),
        Question(
            "Is there a weight of SFT that beats SFT alone?",
            "The paper says so of 1e4 and 1e6, against SFT of as many updates. The best of six is named by the same "
            "seeds that judge it, which favours it.",
            [_of_two(ask, ask.better, "verifier", best, name) for name in ("sft", "sft_alone")],
            [ask.numbers("verifier", *WEIGHTS, "sft", "sft_alone", "dpo")],
            None,
        ),
        Question(
            "Do the weights' ends meet SFT and DPO?",
            "Yes says only that no gap is beyond chance.",
            [_of_two(ask, ask.alike, "verifier", *pair) for pair in (("sft_1e7", "sft_alone"), ("sft_1e2", "dpo"))],
            [ask.numbers("winner_error", "sft_1e2", "dpo", "sft_1e7", "sft_alone")],
            None,
        ),
    ]


def _stages(ask: Asker) -> list[Question]:
    """Of stages and fresh pairs, each with and without the other."""

    def both(*pairs: tuple[str, str]) -> list[Comparison]:
        return [_of_two(ask, ask.better, name, *pair) for pair in pairs for name in ("verifier", "alignment")]

    return [
        Question(
            "Do stages help?",
            "The paper says so (“w/o online”, where pairs are not fresh either).",
            both(("staged", "redpo"), ("staged_first", "once_first")),
            [ask.numbers("frechet", "staged", "redpo")],
        ),
        Question(
            "Do fresh pairs help?",
            "",
            both(("staged", "staged_first"), ("redpo", "once_first")),
            [],
            None,
        ),
    ]


def _results(ask: Asker) -> list[Question]:
    """Of what comes out: against the teacher, and in four steps."""
    nearest, gaps = _nearest(ask)
    return [
        Question(
            "Does the smaller model pass its teacher on the reward that chose the pairs?",
            "The paper's does, on VBench.",
            [_from_teacher(ask, name, "verifier", 1) for name in ("small", "staged")],
            [ask.numbers("alignment", "small", "staged", TEACHER)],
        ),
        Question(
            "And on one that chose none (CLIP)?",
            "",
            [_from_teacher(ask, name, "clip", 1) for name in ("small", "staged")],
            [],
            None,
        ),
        Question(
            "Is motion lost?",
            "On VBench the paper's own falls from 45.8 to 41.7.",
            [_from_teacher(ask, row, name, -1) for row in ("small", "staged") for name in ("motion", "right_motion")],
            [
                ask.numbers("motion", "pruned", "redpo", "sft", "dpo", "staged", "small", TEACHER),
                ask.numbers("motion", "few", "small_few", "few_small", "demo"),
            ],
        ),
        Question(
            "Which order is better: small and then few-step, or few-step and then small?",
            "“Yes” is for small first.",
            [ask.better(name, "small_few", "few_small") for name in ("alignment", "verifier", "frechet")],
            [
                ask.numbers(name, "few", "small_few", "few_small", "demo")
                for name in ("alignment", "speedup", "ceiling")
            ],
            None,
        ),
        Question(
            f"Is one of them within {BELOW} of the alignment of the demo's four steps?",
            "",
            [reaches(f"alignment of “{nearest}” minus the demo's", gaps, -BELOW, show="{:+.3f}".format)],
            [ask.numbers("parameters", "few", "small_few", "few_small", "demo")],
            None,
        ),
    ]


def best_weight(results: Results) -> str:
    """The row of the weights with the highest mean margin; ReDPO's where none is known."""
    known = {name: found.mean for name in WEIGHTS if (found := results.spread(name, "verifier")) is not None}
    return max(known, key=lambda name: known[name]) if known else "redpo"


def targets_of(results: Results) -> tuple[str, ...]:
    """The shares of what ReDPO's pairs were chosen by, in more than half of the seeds; TARGETS where none is known."""
    named = [set(result["pairs"][0]["targets"]) for result in results.of("redpo") if result.get("pairs")]
    usual = (share for share in SHARES if 2 * sum(share.removeprefix("right_") in own for own in named) > len(named))
    return tuple(usual) or TARGETS


def never_acted(results: Results) -> bool:
    """Whether each run with the safeguard has ReDPO's errors to the last digit that is kept."""
    plain = {result["seed"]: result["curves"] for result in results.of("redpo")}
    both = [(plain[r["seed"]], r["curves"]) for r in results.of("safeguard") if r["seed"] in plain]
    return bool(both) and all(a.get(name) == b.get(name) for a, b in both for name in ("winner_error", "loser_error"))


def _from_teacher(ask: Asker, name: str, figure: str, sign: int) -> Comparison:
    """Whether a row's figure is above the teacher's beyond chance, of sign 1, or below it, of sign -1."""
    gaps, show = above_teacher(ask.results, name, figure), ask.wording.show(figure)
    what = f"{NAMES[figure]}, {ask.labels.get(name, name)} minus the teacher"
    if not gaps.values:
        return Comparison("unknown", f"{what}: not measured", what)
    mean = float(np.mean(gaps.values))
    half = half_interval(gaps) if len(gaps.values) > 1 else 2 * gaps.error
    answer = "undecided" if abs(mean) <= half or len(gaps.values) == 1 else "yes" if sign * mean > 0 else "no"
    interval = brackets(mean, half, show) if half else ""
    return Comparison(answer, f"{what}: {signed(mean, show)} {interval}", what, signed(mean, show), interval)


def _of_two(ask: Asker, how: Callable[[str, str, str], Comparison], figure: str, a: str, b: str) -> Comparison:
    """A comparison that says which two rows it is of, where a question has several of one figure."""
    names = (ask.labels.get(name, name) for name in (a, b))
    return how(figure, a, b)._replace(what=f"{NAMES[figure]}, {' minus '.join(names)}")


def _nearest(ask: Asker) -> tuple[str, Gaps]:
    """The order whose alignment comes nearer to the demo's by the mean, and its differences from that."""
    found = {
        ask.labels.get(name, name): ask.results.gaps(name, "demo", "alignment") for name in ("small_few", "few_small")
    }
    return max(found.items(), key=lambda item: float(np.mean(item[1].values)) if item[1].values else -np.inf)
