"""What the student is trained for (Eq. 16): the terms, their weights and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dollar.losses.term import RolloutTerm, SampleTerm, Term


@dataclass
class Objective:
    """L = beta_vsd L_VSD + beta_cd L_CD + beta_ft L_FT (Eq. 16) and what each term needs; conf/loss explains each.

    The defaults are the paper's. terms: further ones by name, each with its own beta.
    """

    beta_vsd: float = 1.0
    beta_cd: float = 0.5
    beta_ft: float = 1.0
    balance: float | None = None
    vsd_guidance_scale: float = 4.5
    vsd_weighting: str = "dmd"
    vsd_range: tuple[float, float] = (0.02, 0.98)
    vsd_lower_half: float | None = None
    vsd_lower_half_over: tuple[float, float] = (0.3, 0.7)
    cd_guidance_scale: float = 8.5
    cd_m: int = 5
    cd_grid: int = 50
    cd_target: str = "student"
    cd_distance: str = "pseudo_huber"
    ft_unit: str = "reward"
    ft_update: str = "joint"
    student_input: str = "simulate"
    student_parameterization: str = "homogeneous"
    fake_loss: str = "native"
    terms: Mapping[str, Term] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {
            "vsd.weighting": (self.vsd_weighting, ("dmd", "score", "constant")),
            "cd.target": (self.cd_target, ("student", "ema", "teacher")),
            "cd.distance": (self.cd_distance, ("pseudo_huber", "mse")),
            "ft.unit": (self.ft_unit, ("reward", "sd")),
            "ft.update": (self.ft_update, ("joint", "separate")),
            "student.input": (self.student_input, ("simulate", "noised_data")),
            "student.parameterization": (self.student_parameterization, ("homogeneous", "heterogeneous")),
            "fake.loss": (self.fake_loss, ("native", "cv")),
        }
        for key, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{key} is {value!r}; use {' or '.join(known)}")
        for name in ("beta_vsd", "beta_cd", "beta_ft"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a weight is 0 (off) or positive")
        for name, term in self.terms.items():
            if term.beta <= 0:
                raise ValueError(
                    f"the weight of the term {name} is {term.beta}; it must be positive, or the term left out"
                )
        if self.beta_vsd == self.beta_cd == self.beta_ft == 0 and not self.terms:
            raise ValueError("every beta is 0, so the student has nothing to learn from; set beta_vsd=1")
        if self.balance is not None and (isinstance(self.balance, str) or self.balance <= 0):
            raise ValueError(f"balance is {self.balance}; use null for no limit, or a positive share such as 0.5")
        if self.balance is not None and (self.ft_update == "separate" or self.beta_vsd == 0):
            raise ValueError(
                f"balance is {self.balance}, but it compares the reward's gradient with VSD's in one update; it needs "
                "ft.update=joint and beta_vsd above 0, or set balance=null"
            )
        held_back = [term for term in self.sample_terms.values() if term.needs]
        if self.balance is not None and self.beta_ft == 0 and not held_back:
            raise ValueError(f"balance is {self.balance}, but beta_ft is 0, so there is nothing to hold back")
        apart = [name for name, term in self.rollout_terms.items() if term.needs]
        if self.balance is not None and apart:
            raise ValueError(
                f"balance is {self.balance}, but the gradient of {apart[0]} comes back through whole samples, not at "
                "x_hat, where it could be held to VSD's; set balance=null"
            )
        if not 0 <= self.vsd_range[0] < self.vsd_range[1] <= 1:
            raise ValueError(f"vsd.range is {list(self.vsd_range)}; give two rising fractions of T, as [0.02, 0.98]")
        if self.vsd_lower_half is not None and not 0 <= self.vsd_lower_half <= 1:
            raise ValueError(
                f"vsd.lower_half is {self.vsd_lower_half}; it is a share of the draws, 0 to 1, or null for even ones"
            )
        if not 0 <= self.vsd_lower_half_over[0] < self.vsd_lower_half_over[1] <= 1:
            raise ValueError(
                f"vsd.lower_half_over is {list(self.vsd_lower_half_over)}; give two rising fractions of the run, as "
                "[0.3, 0.7]"
            )
        for name in ("vsd", "cd"):
            if getattr(self, f"{name}_guidance_scale") < 0:
                raise ValueError(
                    f"{name}.guidance_scale is {getattr(self, f'{name}_guidance_scale')}, which leads away from the "
                    "prompt; 1 is no guidance and the usual values lie between 2 and 9"
                )
        if not 1 <= self.cd_m <= self.cd_grid:
            raise ValueError(f"cd.m is {self.cd_m}; a walk has 1 to cd.grid = {self.cd_grid} steps")

    @property
    def sample_terms(self) -> dict[str, Any]:
        """The further terms that look at the student's sample."""
        return {name: term for name, term in self.terms.items() if isinstance(term, SampleTerm)}

    @property
    def rollout_terms(self) -> dict[str, Any]:
        """The further terms that run the student themselves."""
        return {name: term for name, term in self.terms.items() if isinstance(term, RolloutTerm)}

    def place(self, u: Tensor, low: float, high: float, progress: float) -> Tensor:
        """Fractions of T [B] in [low, high) of draws u [B] in [0, 1): spread evenly, unless vsd.lower_half is given.

        Then that share of them comes to fall below the middle of vsd.range. It is reached from an even spread while
        `progress`, the fraction of the run that is done, passes vsd.lower_half_over.
        """
        even = low + (high - low) * u.double()
        if self.vsd_lower_half is None:
            return even
        first, last = self.vsd_lower_half_over
        done = min(max((progress - first) / (last - first), 0.0), 1.0)
        middle = sum(self.vsd_range) / 2
        at_first = (middle - low) / (high - low)
        share = at_first + done * (self.vsd_lower_half - at_first)
        below = low + (middle - low) * u.double() / share
        above = middle + (high - middle) * (u.double() - share) / (1 - share)
        return torch.where(u < share, below, above)
