"""The losses of a tiny run, kept in tests/golden/losses.txt: a refactor reproduces them.

A change that is meant to move them rewrites the file, and its commit says why:
DOLLAR_WRITE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import build_tiny_teacher, load_tiny_teacher, tiny_run

GOLDEN = Path(__file__).resolve().parent / "golden" / "losses.txt"
CYCLES = 3
NAMES = (
    *("loss/vsd", "loss/cd", "loss/fake", "loss/lrm", "loss/ft"),
    *("grad_norm/student", "grad_norm/fake", "grad_norm/lrm"),
    *("reward/data", "reward/true", "reward/predicted_of_true"),
)


def losses(folder: Path) -> dict[str, float]:
    """`<cycle> <name>` -> value, of three cycles with every term on; the reward is followed from the second on."""
    build_tiny_teacher(folder / "teacher", seed=1, channels=8)
    teacher = load_tiny_teacher(folder / "teacher")
    trainer = tiny_run(teacher, folder / "run", "seed=3", "log.gradients_every=0")
    measured = [trainer.run_cycle(cycle) for cycle in range(CYCLES)]
    trainer.log.close()
    return {f"{cycle} {n}": m[n] for cycle, m in enumerate(measured) for n in NAMES if n in m}


def test_the_tiny_run_has_its_golden_losses(tmp_path: Path) -> None:
    found = losses(tmp_path)
    if os.environ.get("DOLLAR_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("".join(f"{name} {value:.8g}\n" for name, value in found.items()))
    assert GOLDEN.is_file(), "the golden losses are missing; DOLLAR_WRITE_GOLDEN=1 writes them"
    lines = (line.rsplit(" ", 1) for line in GOLDEN.read_text().splitlines())
    expected = {name: float(value) for name, value in lines}
    assert len(expected) == CYCLES * len(NAMES) - 1  # the reward is not followed in the first cycle
    assert found == pytest.approx(expected, rel=1e-4)
