"""Students of few steps, each started from the longer one, against their teacher."""

from dollar.studies.few_step.content import FEW_STEPS
from dollar.studies.few_step.runs import Recipes

__all__ = ["FEW_STEPS", "Recipes"]
