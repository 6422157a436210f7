"""V.I.P.: stages of rank, prune, pairs, train and score, to the end or to where one can't win back what it lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dollar.log import logger
from dollar.media import atomically
from dollar.parallel.signals import Stop
from dollar.vip.jobs import Steps
from dollar.vip.scoring import Scores
from dollar.vip.stages import VERBS, Recovery, Stages, Step

RESULT = "result.json"


@dataclass
class Result:
    """What came out: the student's folder, what each stage lost and won back, and why it ended early, if it did."""

    student: str = ""
    stages: list[Recovery] = field(default_factory=list)
    ended: str = ""

    def write(self, folder: Path, further: dict[str, Any]) -> None:
        """Write result.json; further: what else it holds."""
        stages = [stage._asdict() | {"share": stage.share} for stage in self.stages]
        plain = {"student": self.student, "stages": stages, "ended": self.ended, **further}
        with atomically(folder / RESULT) as temporary:
            temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def carry_out(stages: Stages, steps: Steps, stop: Stop, give_up: float, first: str) -> Result | None:
    """Run what is missing of all stages; None where a stop was requested.

    give_up: the share of its loss that a stage must win back, or the stages end; 0 is never. first: what the scores
    call the network that the first stage begins with.
    """
    result = Result()
    for stage in range(1, len(stages.counts) + 1):
        if not steps.run(stages.steps_of(stage, ())[0], stop):
            return None
        chosen = chosen_in(stages.ranking(stage))
        for verb in VERBS[1:]:  # each is known once the one before has ended
            step = next((step for step in stages.steps_of(stage, chosen) if step.verb == verb), None)
            if step is None:
                logger.info(f"\nstage{stage}/{verb} is left out")
            elif not steps.run(step, stop):
                return None
            if verb == "pairs" and not stages.has_fallen(stage):
                how = "isn't trained" if stages.skips(stage) else "is trained by loss=sft"
                logger.warning(f"note: no property fell in stage {stage}, so it {how} (unfallen={stages.unfallen})")
        recovery = recovery_of(stages, stage, first)
        logger.info(recovery.text(stage))
        result.stages.append(recovery)
        if 0 < give_up > recovery.share:
            result.ended = (
                f"stage {stage} won back {recovery.share:.0%} of what it lost, and give_up is {give_up:g}; "
                + (f"the student is that of stage {stage - 1}" if stage > 1 else "its student is what there is")
            )
            logger.warning(f"note: {result.ended}")
            result.student = str(stages.student(max(stage - 1, 1)))
            return result
    result.student = str(stages.student(len(stages.counts)))
    return result


def then(steps: Steps, further: Sequence[Step], stop: Stop) -> bool:
    """Run what follows the stages; False where a stop was requested."""
    return all(steps.run(step, stop) for step in further)


def chosen_in(ranking: Path) -> list[str]:
    """The units that a finished ranking chose."""
    try:
        found = [str(unit) for unit in json.loads(ranking.read_text(encoding="utf-8"))["chosen"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{ranking} can't be read ({error!r}); remove the folder, and it is made anew") from None
    return found


def recovery_of(stages: Stages, stage: int, first: str) -> Recovery:
    """What a stage cost and won back."""
    scores = Scores.read(stages.scores / "scores.json")
    before = first if stage == 1 else str(stages.student(stage - 1))
    labels = (before, str(stages.pruned(stage)), str(stages.student(stage)))
    return Recovery(*(scores.mean(label) for label in labels))
