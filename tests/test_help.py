"""--help: the comments of conf/ by key, with defaults and choices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Said
from test_settings import CHOICES, COMPOSED, environment

from dollar.cli.arguments import known_to
from dollar.cli.comments import manual
from dollar.cli.help import _groups, _parts, help_of, rows
from dollar.cli.overrides import CONF
from dollar.cli.settings import COMMANDS

IN_HOUSE = ("door", "hydra", "omegaconf", "_target_", "door.py")


@pytest.mark.parametrize(("name", "given"), COMPOSED, ids=["-".join((n, *o)) for n, o in COMPOSED])
def test_every_key_has_a_comment_and_its_default(name: str, given: tuple[str, ...]) -> None:
    known = known_to(name, given)
    found = rows(known.config, list(_parts(name, known.choices, [CONF])), _groups(name))
    assert len(found) > 8 and [row.key for row in found if not row.comment] == []
    text = help_of(name, given)
    assert all(f"  {row.key}=" in text for row in found)
    assert not any(word in text.lower() for word in IN_HOUSE)
    assert max(map(len, text.splitlines())) <= 120


def test_what_a_yaml_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# @package _global_\n# What it is. More of it.\ndefaults:\n  - other@x\n  - optional group: null # which\n"
        'key: "a # b"  # first line\n              # second line\n# above\nlist: [1, 2] # of numbers, # too\n'
        "plain: a#b\nnode: # the whole\n  inner: null # in cm\n  # of two\n  last:\n    - 1\n"
        "flow: {a: 1, b: 2} # both\n"
    )
    assert manual(tmp_path / "a.yaml") == (
        "What it is. More of it.",
        {
            "key": "first line second line",
            "list": "of numbers, # too. above",
            "plain": "",
            "node": "the whole",
            "node.inner": "in cm",
            "node.last": "of two",
            "flow": "both",
        },
        {"group": "which"},
        True,
    )


def test_a_page(command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # which pytest's workers set to something else
    said = command("train", "--help")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "Distil a teacher into a student of a few steps." and max(map(len, lines)) <= 120
    assert "  cycles=200                        cycles of Algorithm 1 (paper: 40,000)" in lines
    assert "  reward=shapes                     the pixel reward that the latent reward model is fitted to" in lines
    assert all(any(line.startswith(f"    {choice} ") for line in lines) for group, choice in CHOICES)
    assert sum(line.startswith("  teacher.folder=${embedded:shapes}") for line in lines) == 1
    monkeypatch.setenv("COLUMNS", "160")
    assert max(map(len, help_of("train", []).splitlines())) == 120
    monkeypatch.setenv("COLUMNS", "70")
    keys = help_of("train", []).partition("\nSettings\n")[2]
    assert max(map(len, keys.splitlines())) <= 70
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "mine.yaml").write_text("# Mine. All mine.\n_target_: a.b\nlevel: 0.5 # of grey\n")
    own = help_of("train", ["--config-dir", str(tmp_path), "reward=mine"])
    assert "    mine" in own and "  reward.level=0.5" in own and "of grey" in own
    assert command("train", "--help", "reward=mien").code == 2
    assert command("train", "reward=pickscore", "-h").out.count("  reward.unit=cosine") == 1


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_reads_no_torch(name: str) -> None:
    code = f"import sys; from dollar.cli.help import help_of; help_of({name!r}, []); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert ran.stdout.split() == ["False"], ran.stderr


def test_a_page_that_nobody_reads_to_its_end_ends_without_a_word() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    line = [sys.executable, str(ROOT / "launch" / "train.py"), "--help"]
    said = subprocess.run(line, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (said.returncode, said.stderr) == (141, "")
