"""The way of `make smoke` for one family: preprocess, train, resume, export, plain diffusers, sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import smoke


def test_the_whole_way(command: Callable, tmp_path: Path) -> None:
    def run(name: str, *arguments: str) -> str:
        said = command(name, *arguments)
        assert said.code == 0, said.err
        return said.out

    clips = smoke.write_clips(tmp_path / "clips")
    row = smoke.run_family("wan_2_1", tmp_path / "wan", clips, run)
    assert row.stored == 6 and row.cycles == smoke.CYCLES and row.same and row.size == "[1, 9, 3, 32, 48]"
    report = json.loads((tmp_path / "wan" / "stored" / "report.json").read_text())
    assert report["skipped"] == {"corrupt": 1}
    manifest = [json.loads(line) for line in (tmp_path / "wan" / "samples" / "manifest.jsonl").read_text().splitlines()]
    assert [(m["steps"], m["frames"], m["height"], m["width"]) for m in manifest] == [(4, 9, 32, 48)]
    assert "yes  [1, 9, 3, 32, 48]" in smoke.table([row])
