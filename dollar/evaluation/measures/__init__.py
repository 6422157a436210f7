"""Single measures of videos: how each is computed, apart from what is compared."""

from typing import TYPE_CHECKING

from dollar.lazy import lazily

if TYPE_CHECKING:
    from dollar.evaluation.measures.appearance import appearance
    from dollar.evaluation.measures.bootstrap import paired_interval
    from dollar.evaluation.measures.colour import contrast, saturation
    from dollar.evaluation.measures.features import RandomFeatures
    from dollar.evaluation.measures.flow import flow
    from dollar.evaluation.measures.frechet import FrechetReference, frechet_distance
    from dollar.evaluation.measures.speed import measure_speed
    from dollar.evaluation.measures.vendi import spread, vendi_per_prompt, vendi_score
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "FrechetReference",
    "RandomFeatures",
    "appearance",
    "contrast",
    "flow",
    "frechet_distance",
    "measure_speed",
    "paired_interval",
    "saturation",
    "spread",
    "vendi_per_prompt",
    "vendi_score",
]
