"""README.md and docs/: each command of a block composes, and each `make` names a target of the Makefile."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import ROOT, compose
from hydra._internal.utils import get_args_parser

# The ablation's commands are those that were run, each with a test of its own (test_ablation.py).
DOCUMENTS = (ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name != "ablation.md"))
LINES = sorted(
    {
        (path.name, line.split("  #")[0].strip())
        for path in DOCUMENTS
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), flags=re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    }
)
LAUNCHED = [(document, line) for document, line in LINES if "launch/" in line]
MADE = sorted(
    {
        (path.name, " ".join(words.split()))
        for path in DOCUMENTS
        if path.name != "log.md"  # whose targets are those of their day
        for words in re.findall(r"(?:^|`)(make [a-z][^`#\n]*)", path.read_text(), flags=re.MULTILINE)
    }
)


@pytest.mark.parametrize(("document", "line"), LAUNCHED)
def test_a_command_of_the_documents_composes(document: str, line: str) -> None:
    from dollar.cli import overrides
    from dollar.cli.arguments import as_they_stand

    words = shlex.split(line.replace("FOLDER", "somewhere"))
    command = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    assert words[0] in ("python", "torchrun") and (ROOT / words[command]).is_file()
    name = words[command].removeprefix("launch/").removesuffix(".py")
    given = as_they_stand(name, words[command + 1 :])
    overrides.check_overrides(name, given)
    parsed = get_args_parser().parse_args(given)
    assert sorted(parsed.overrides) == sorted(word for word in given if "=" in word)
    assert parsed.multirun == ("-m" in given) and parsed.cfg == ("job" if "--cfg" in given else None)
    words = [word for word in given if "=" in word]
    if "-m" in given:  # of a sweep, its first job
        words = [word.split(",")[0] for word in words]
    compose(name, *words)


@pytest.mark.parametrize(("document", "line"), MADE)
def test_a_target_of_the_documents_is_there(document: str, line: str) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert line.split()[1] in targets


def test_the_documents_give_commands() -> None:
    assert len(LAUNCHED) >= 8 and len(MADE) >= 5
