"""The ablation on the shapes world."""

from dollar.studies.ablation.content import ABLATION

__all__ = ["ABLATION"]
