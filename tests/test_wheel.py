"""The wheel: what it holds, and that its `dollar` trains and samples from another folder, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPT, ROOT, needs_embedded

import dollar

SOURCES = ("dollar", "conf", "setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
# One cycle of the embedded teacher in about a second.
CHEAP = (
    *("cycles=1", "batch=1", "student.steps=[1]", "fake_updates=1", "cd.m=1", "data.clips.size=4"),
    *("lrm.clips=1", "lrm.width=16", "validation.every=0", "log.gradients_every=0", "parallel.device=cpu"),
)

BOTH = """
import json, sys
import dollar
from dollar.cli.main import main
print("from", dollar.__file__)
for words in json.loads(sys.argv[1]):
    sys.argv = ["dollar", *words]
    main()
"""


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    """What a program prints; the checkout is not on its path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    kept |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(w) for w in words], cwd=cwd, env={**kept, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that has the wheel, and all else from the environment of this test."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    quiet = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *quiet, wheel, cwd=folder)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata: Any = message_from_bytes(opened.read(f"{info}/METADATA"))
        licence = opened.read(f"{info}/licenses/LICENSE").decode()
        entries = opened.read(f"{info}/entry_points.txt").decode()
    for folder in ("dollar", "conf"):
        home = ROOT if folder == "dollar" else ROOT / "conf"
        kept = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        wanted = {f"{'' if folder == 'dollar' else 'dollar/conf/'}{p.relative_to(home).as_posix()}" for p in kept}
        assert wanted and not wanted - names
    assert "dollar/py.typed" in names and "dollar/assets/shapes/model_index.json" in names
    assert {name.partition("/")[0] for name in names} == {"dollar", info}  # nothing else is put on the path
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert "dollar = dollar.cli.main:main" in entries
    assert metadata["Name"] == "dollar-distill" and metadata["Version"] == dollar.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


@needs_embedded
def test_the_installed_commands(installed: Path, tmp_path: Path) -> None:
    """The script lists what there is; what it starts trains and samples in one process, as starting takes longest."""
    assert "\n  train " in run(installed / "dollar", "--help", cwd=tmp_path)
    train = ["train", "run=tiny", *CHEAP]
    sample = ["sample", "checkpoint=runs/tiny/student", f"prompt={PROMPT}", "gif=false"]
    said = run(installed / "python", "-c", BOTH, json.dumps([train, sample]), cwd=tmp_path)
    where = next(line for line in said.splitlines() if line.startswith("from "))
    assert Path(where.removeprefix("from ")).is_relative_to(installed.parent)
    assert "the student of cycle 1 is in runs/tiny/student" in said
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 1
