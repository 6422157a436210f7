"""The way of `make smoke` for one family: preprocess, train, resume, export, plain diffusers, sample."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import smoke


def test_the_whole_way(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and of fewer cycles; that an export needs none of our code is shown by test_export.py."""

    def run(name: str, *arguments: str) -> str:
        said = command(name, *arguments)
        assert said.code == 0, said.err
        return said.out

    def sample_here(family: str, export: Path) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["plain", str(export), json.dumps(smoke.plain_call(family))])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(smoke.PLAIN, {})
        return smoke.frames_in(printed.getvalue())

    monkeypatch.setattr(smoke, "CYCLES", 6)
    monkeypatch.setattr(smoke, "sample_plainly", sample_here)
    clips = smoke.write_clips(tmp_path / "clips")
    row = smoke.run_family("wan_2_1", tmp_path / "wan", clips, run)
    assert row.stored == 6 and row.cycles == smoke.CYCLES and row.same and row.size == "[1, 9, 3, 32, 48]"
    report = json.loads((tmp_path / "wan" / "stored" / "report.json").read_text())
    assert report["skipped"] == {"corrupt": 1}
    manifest = [json.loads(line) for line in (tmp_path / "wan" / "samples" / "manifest.jsonl").read_text().splitlines()]
    assert [(m["steps"], m["frames"], m["height"], m["width"]) for m in manifest] == [(4, 9, 32, 48)]
    assert "yes  [1, 9, 3, 32, 48]" in smoke.table([row])
