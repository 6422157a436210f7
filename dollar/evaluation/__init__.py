"""What clips are worth: a teacher and its student measured on the same prompts and seeds."""

from typing import TYPE_CHECKING

from dollar.lazy import lazily

if TYPE_CHECKING:
    from dollar.evaluation.files import write_metrics
    from dollar.evaluation.systems import Evaluation, EvaluationSettings
    from dollar.evaluation.yardstick import Figures, Pairs, Yardstick, difference, pairs, scored
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "Figures",
    "Pairs",
    "Yardstick",
    "difference",
    "pairs",
    "scored",
    "write_metrics",
]
