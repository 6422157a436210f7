"""The deeper embedded teacher: which blocks an update skips, and that it comes to predict what it is shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, needs_embedded

from dollar.pretraining.deep_teacher import Deep


def test_first_and_last_are_never_skipped_and_others_as_often_as_is_said() -> None:
    deep = Deep(blocks=5, heads=1, skipped=(0.5, 0.25, 0.25))
    skips = [deep.skips(0, step) for step in range(2000)]
    counts = Counter(map(len, skips))
    assert all(abs(counts[n] / 2000 - share) < 0.04 for n, share in enumerate(deep.skipped))
    places = Counter(unit.place for units in skips for unit in units)
    assert set(places) == {1, 2, 3} and max(places.values()) < 1.2 * min(places.values())
    assert skips[7] == deep.skips(0, 7) and skips != [deep.skips(1, step) for step in range(2000)]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"skipped": (0.5, 0.4)}, "which sum to 1"),
        ({"skipped": (1.5, -0.5)}, "probabilities"),
        ({"blocks": 3, "skipped": (0.5, 0.25, 0.25)}, "of 3 blocks 1 are inner ones"),
        ({"heads": 0}, "heads is 0"),
    ],
)
def test_what_cannot_be_skipped_is_said(numbers: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Deep(**numbers)


@needs_embedded
def test_it_learns_what_it_is_shown(command: Callable[..., Said], tmp_path: Path) -> None:
    keys = [
        "make=deep",
        "clips=16",
        "deep.batch=4",
        "deep.steps=24",
        "deep.warmup=1",
        f"work={tmp_path}",
        "parallel.device=cpu",
    ]
    keys += ["deep_body={blocks: 3, heads: 2, skipped: [0.5, 0.5]}", f"out={tmp_path / 'out'}", "ema=0.5"]
    assert command("pretrain", *keys).code == 0
    lines = [json.loads(line) for line in (tmp_path / "deep" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/v"] < 0.9 * lines[0]["loss/v"]
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert (config["num_layers"], config["num_attention_heads"]) == (3, 2)
