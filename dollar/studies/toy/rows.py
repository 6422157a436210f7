"""The toy's rows: what each of them is made by, and what it is called."""

from __future__ import annotations

from dollar.studies.rows import Row
from dollar.studies.toy.training import Objective

EXACT, FULL, BASE, SFT, DPO, REDPO, SFT_ALL, REDPO_ALL = (
    "exact",
    "full",
    "base",
    "sft",
    "dpo",
    "redpo",
    "sft_all",
    "redpo_all",
)
OBJECTIVES = {
    SFT: Objective(dpo=False, sft="winners"),
    DPO: Objective(dpo=True),
    REDPO: Objective(dpo=True, sft="winners"),
    SFT_ALL: Objective(dpo=False, sft="all"),
    REDPO_ALL: Objective(dpo=True, sft="all"),
}
# The two readings of the appendix: its SFT with and without DPO, by what SFT is of.
READINGS = {"the winners": (SFT, REDPO), "all modes": (SFT_ALL, REDPO_ALL)}
LABELS = {
    EXACT: "exact score",
    FULL: "teacher",
    BASE: "base student",
    SFT: "SFT on winners",
    DPO: "DPO",
    REDPO: "DPO + SFT on winners",
    SFT_ALL: "SFT on all modes",
    REDPO_ALL: "DPO + SFT on all modes",
}
ROWS = tuple(Row(name, label, "toy") for name, label in LABELS.items())


def mode_figure(k: int) -> str:
    """The name of the figure that counts a mode's samples; modes count from 1, and 0 is outside all."""
    return f"mode_{k}" if k else "outside"


def distance_figure(k: int) -> str:
    """The name of the figure of the distance from the teacher on a mode's samples."""
    return f"distance_{k}"
