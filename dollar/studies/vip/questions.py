"""What the study asks of V.I.P., each answered from the rows' figures; the paper's own claims beside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from dollar.studies.compare import Comparison, Gaps, brackets, half_interval, reaches, signed
from dollar.studies.few_step.figures import above_teacher
from dollar.studies.questions import Asker, Question, Wording
from dollar.studies.results import Results
from dollar.studies.rows import TEACHER, Row
from dollar.studies.vip.figures import FORMS, LESS, NAMES, SHARES, rankings

WORDING = Wording(NAMES, FORMS, LESS)
WEIGHTS = ("sft_1e2", "sft_1e3", "redpo", "sft_1e5", "sft_1e6", "sft_1e7")  # in order; ReDPO's own is 1e4
TARGETS = ("right_shape", "right_motion")  # what falls most in shapes_deep; the pairs' own count where they are known
AGREE = 0.7  # a rank correlation that a cheap ranking is asked for
BELOW = 0.05  # how far the smaller student of four steps may be from the demo's alignment


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = Asker(results, rows, WORDING)
    return [_rankings(results), *_losses(ask), *_stages(ask), *_results(ask)]


def _rankings(results: Results) -> Question:
    """Of what blocks are worth."""
    return Question(
        "Do the cheap rankings agree with the reward's?",
        "The paper ranks by rewards alone.",
        [_agreement(results, name) for name in ("prediction", "influence")],
        [_chosen(results)],
        None,
    )


def _losses(ask: Asker) -> list[Question]:
    """Of ReDPO, its parts and its weights, on one pruned network and its pairs."""
    targets, best = targets_of(ask.results), best_weight(ask.results)
    others = [name for name in SHARES if name not in targets]
    return [
        Question(
            "Does ReDPO beat SFT on what the pairs were chosen by?",
            "The paper says so (Tables 3 and 4); its SFT has as many updates, here it has as many forwards.",
            [ask.better(name, "redpo", "sft") for name in targets],
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
            "It is not the paper's.",
            [ask.better(name, "safeguard", "redpo") for name in ("verifier", "alignment", "frechet")],
            [],
            None,
        ),
        Question(
            "Is there a weight of SFT that beats SFT alone?",
            "The paper takes 1e4 and 1e6. The best of six is named by the same seeds that judge it, which favours it.",
            [ask.better("verifier", best, "sft")],
            [ask.numbers("verifier", *WEIGHTS, "sft", "sft_alone", "dpo")],
        ),
        Question(
            "Do the weights' ends meet SFT and DPO?",
            "They do in the first update, by the losses' gradients. Yes says only that no gap is beyond chance.",
            [ask.alike("verifier", "sft_1e7", "sft_alone"), ask.alike("verifier", "sft_1e2", "dpo")],
            [ask.numbers("winner_error", "sft_1e2", "dpo", "sft_1e7", "sft_alone")],
            None,
        ),
    ]


def _stages(ask: Asker) -> list[Question]:
    """Of stages and fresh pairs."""
    return [
        Question(
            "Do stages help?",
            "The paper says so (“w/o online”, where pairs are not fresh either).",
            [ask.better(name, "staged", "redpo") for name in ("verifier", "alignment")],
            [ask.numbers("frechet", "staged", "redpo")],
        ),
        Question(
            "Do fresh pairs help?",
            "",
            [
                *(ask.better(name, "staged", "staged_first") for name in ("verifier", "alignment")),
                *(ask.better(name, "redpo", "once_first") for name in ("verifier", "alignment")),
            ],
            [],
            None,
        ),
    ]


def _results(ask: Asker) -> list[Question]:
    """Of what comes out: against the teacher, and in four steps."""
    results = ask.results
    return [
        Question(
            "Does the smaller model pass its teacher on the reward that chose the pairs?",
            "The paper's does, on VBench.",
            [_above(ask, name, "verifier") for name in ("small", "staged")],
            [ask.numbers("alignment", "small", "staged", TEACHER)],
        ),
        Question(
            "And on one that chose none (CLIP)?",
            "",
            [_above(ask, name, "clip") for name in ("small", "staged")],
            [],
            None,
        ),
        Question(
            "Is motion lost?",
            "On VBench the paper's own falls from 45.8 to 41.7.",
            [_below(ask, "small", name) for name in ("motion", "right_motion")],
            [ask.numbers("motion", "pruned", "redpo", "sft", "dpo", "staged", "small", TEACHER)],
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
            [reaches("alignment minus the demo's", _nearest(results), -BELOW, show="{:+.3f}".format)],
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


def _agreement(results: Results, measure: str) -> Comparison:
    """The rank correlation of a cheap measure with what a unit costs by reward, seed by seed."""
    values = []
    for table in rankings(results.of("redpo")):
        pairs = [(c, t) for c, t in zip(table[measure], table["total"], strict=True) if c is not None and t is not None]
        if len(pairs) > 2:
            values.append(-float(spearmanr(*zip(*pairs, strict=True)).statistic))
    return reaches(f"rank correlation of {measure} with the reward's loss", Gaps(values), AGREE, show="{:.2f}".format)


def _chosen(results: Results) -> str:
    found = [", ".join(table["chosen"]) for table in rankings(results.of("redpo"))]
    means: dict[str, list[float]] = {}
    for table in rankings(results.of("redpo")):
        for unit, total in zip(table["units"], table["total"], strict=True):
            means.setdefault(unit, []).append(total)
    without = ", ".join(f"{unit} {np.mean(values):.3f}" for unit, values in means.items())
    return f"gone, seed by seed: {'; '.join(found) or '—'}; mean margin without {without or '—'}"


def _above(ask: Asker, name: str, figure: str) -> Comparison:
    """Whether a row's figure is above the teacher's beyond chance."""
    gaps, label = above_teacher(ask.results, name, figure), ask.labels.get(name, name)
    return _decided(f"{NAMES[figure]}, {label} minus the teacher", gaps, 1, ask, figure)


def _below(ask: Asker, name: str, figure: str) -> Comparison:
    """Whether a row's figure is below the teacher's beyond chance."""
    gaps, label = above_teacher(ask.results, name, figure), ask.labels.get(name, name)
    return _decided(f"{NAMES[figure]}, {label} minus the teacher", gaps, -1, ask, figure)


def _decided(what: str, gaps: Gaps, sign: int, ask: Asker, figure: str) -> Comparison:
    """Whether differences are of this sign beyond chance."""
    show = ask.wording.show(figure)
    if not gaps.values:
        return Comparison("unknown", f"{what}: not measured", what)
    mean = float(np.mean(gaps.values))
    half = half_interval(gaps) if len(gaps.values) > 1 else 2 * gaps.error
    answer = "undecided" if abs(mean) <= half or len(gaps.values) == 1 else "yes" if sign * mean > 0 else "no"
    interval = brackets(mean, half, show) if half else ""
    return Comparison(answer, f"{what}: {signed(mean, show)} {interval}", what, signed(mean, show), interval)


def _nearest(results: Results) -> Gaps:
    """Alignment minus the demo's, of the order that comes nearer to it by the mean."""
    found = [results.gaps(name, "demo", "alignment") for name in ("small_few", "few_small")]
    return max(found, key=lambda gaps: float(np.mean(gaps.values)) if gaps.values else -np.inf)
