"""The command line: the console script, a user's own folder of yamls, a user's own modules."""

from __future__ import annotations

import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TINY_RUN, Said, start_process

from dollar.cli import entry, options, overrides
from dollar.cli import main as console
from dollar.cli.settings import COMMANDS

REWARD = """
import evaluate  # another package's, which launch/evaluate.py must not hide


class Brightness:
    def __init__(self, level: float, frames: int | None = None) -> None:
        self.level, self.frames = level, frames

    def score(self, videos, prompts):
        return evaluate.mean(videos) - self.level
"""
EVALUATE = "def mean(videos):\n    return videos.mean((1, 2, 3, 4))\n"
DATA = """
from conftest import TinyClips


class Reversed(TinyClips):
    def __init__(self, count: int, speed: float | None = None) -> None:
        super().__init__("train", count, 0)

    def clip(self, index, u):
        clip, caption = super().clip(index, u)
        return clip[::-1].copy(), caption
"""
YAMLS = {
    "reward/bright.yaml": "_target_: own_rewards.Brightness\nlevel: 0.5\nframes: null\n",
    "data/backwards.yaml": """
count: 12
clips: {_target_: own_data.Reversed, count: "${data.count}", speed: null}
held_out: {_target_: dollar.data.shapes.captions, split: held_out}
samples: {_target_: dollar.data.latents.LatentBatches.fitted, _partial_: true, clips: "${data.clips}", cache: 64}
""",
    "monitors/watched.yaml": "mine: {_target_: own_rewards.Brightness, level: 0.5}\n",
    "experiment/mine.yaml": "# @package _global_\nbeta_cd: 0\nlrm: {path: null}\n",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: modules, and yamls in conf/."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in {"own_rewards.py": REWARD, "evaluate.py": EVALUATE, "own_data.py": DATA}.items():
        (folder / name).write_text(text)
    for name, text in YAMLS.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["reward=brigth"], "no reward=brigth; the nearest is 'bright'"),
        (["reward=bright", "reward.levle=1"], "no key 'reward.levle'; the nearest is 'reward.level'"),
        (["reward=bright", "reward.level=high"], "reward.level is a number (now 0.5)"),
        (["reward=bright", "reward.level=null"], "reward.level=null: reward.level is a number"),
        (["reward=bright", "reward.frames=1.5"], "reward.frames=1.5: reward.frames is a whole number"),
        (["data=backwards", "data.count=many"], "data.count is a whole number (now 12)"),
        (["reward@guard.reward=bright", "guard.reward.level=x"], "guard.reward.level is a number"),
        (["monitors=wached"], "no monitors=wached; the nearest is 'watched'"),
        (["monitors=watched", "monitors.mine.level=x"], "monitors.mine.level is a number"),
    ],
)
def test_what_a_folder_of_ones_own_declares(
    own: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], words: str
) -> None:
    monkeypatch.syspath_prepend(own)
    with pytest.raises(ValueError) as refused:
        overrides.check_overrides("train", ["--config-dir", str(own / "conf"), *given])
    assert words in str(refused.value)


def test_a_folder_of_ones_own_is_taken(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    monkeypatch.syspath_prepend(own)
    given = ["reward=bright", "reward.frames=null", "data=backwards", "data.clips.speed=null", "experiment=mine"]
    for option in (["--config-dir", "conf"], ["--config-dir=conf"], ["-cd", str(own / "conf")]):
        overrides.check_overrides("train", [*option, *given])
    with pytest.raises(ValueError, match="no reward=bright"):
        overrides.check_overrides("train", given)
    with pytest.raises(ValueError, match="there is no such folder"):
        overrides.check_overrides("train", ["--config-dir", "nowhere"])


def test_text_stays_text_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []
    for words in (
        ["run=5", "init=1e3"],
        ["data=latents", "data.path=2024", "lrm={path: 7}"],
        ["-m", "run=1,2"],
        ["keep_best=true"],
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        monkeypatch.setattr("dollar.cli.sweeps.ResultsTable.on_multirun_end", lambda *_, **__: None)
        entry.enter(lambda config: seen.append((config.run, config.init, config.keep_best, config)), "train")
    assert seen[0][:2] == ("5", "1e3") and (seen[1][3].data.path, seen[1][3].lrm.path) == ("2024", "7")
    assert [run for run, *_ in seen[2:4]] == ["1", "2"] and seen[4][2] == "true"


def test_options_stand_anywhere() -> None:
    words = ["reward=bright", "--config-dir", "a b", "seed=1", "-m"]
    assert options.options_first(words) == ["--config-dir", "a b", "-m", "reward=bright", "seed=1"]


def launched(folder: Path, printed: Path, path: list[str], *words: str) -> None:
    """Run launch/train.py from a folder as the interpreter does, whose first place for modules is the file's own."""
    sys.stdout = sys.stderr = printed.open("w", buffering=1)
    os.chdir(folder)
    file = str(ROOT / "launch" / "train.py")
    sys.path[:], sys.argv = [str(ROOT / "launch"), *path], [file, *words]
    runpy.run_path(file, run_name="__main__")


def test_a_run_with_modules_and_yamls_of_ones_own(own: Path, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    """From another folder, with a package whose name launch/ has, too."""
    tiny = [word for word in TINY_RUN if not word.startswith(("reward.", "cycles="))]
    mine = ("reward=bright", "data=backwards", "--config-dir", "conf", "experiment=mine")
    given = [*tiny, *mine, "cycles=1", f"teacher.folder={tiny_teacher_folder}", f"runs={tmp_path}", "run=own"]
    path = [str(ROOT / "tests"), *(p for p in sys.path if p and Path(p).resolve() not in (own, ROOT))]
    started = start_process(launched, own, tmp_path / "out", path, *given)
    started.join(200)
    assert started.exitcode == 0, (tmp_path / "out").read_text()
    assert (tmp_path / "own" / "student" / "student.json").is_file()


@pytest.fixture
def dollar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Said]:
    """dollar("train", "key=value") as a shell would run the console script, in this process."""

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/dollar", *words])
        capsys.readouterr()
        code = 0
        try:
            console.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Said(code, *capsys.readouterr())

    return run


def test_the_verbs_are_listed(dollar: Callable[..., Said]) -> None:
    for words in (("--help",), ("-h",), ()):
        said = dollar(*words)
        assert said.code == 0 and said.err == ""
        lines = [line for line in said.out.splitlines() if line.startswith("  ")]
        assert [line.split()[0] for line in lines] == sorted(COMMANDS)
        assert all(line.endswith(".") and len(line) < 100 for line in lines), lines


def test_a_verb_that_is_none(dollar: Callable[..., Said]) -> None:
    said = dollar("trian", "seed=1")
    assert said.code == 2 and said.err.startswith("dollar: there is no 'trian'; the nearest is 'train' (ablation, ")
    assert dollar("xyzzy").err.startswith("dollar: there is no 'xyzzy'; --help lists all (")


def test_a_verb_says_what_it_takes(dollar: Callable[..., Said]) -> None:
    said = dollar("train", "--help")
    assert said.code == 0 and said.out.startswith("Distil a teacher into a student of a few steps.")
    assert "validation.guidance_steps=50" in said.out and "cd.target=student" in said.out
    said = dollar("plan", "processes=4", "--cfg", "job")
    assert said.code == 0 and "processes: 4" in said.out


def test_a_mistake_names_the_verb(dollar: Callable[..., Said]) -> None:
    said = dollar("train", "beta_vds=1")
    assert (said.code, said.out) == (2, "")
    assert said.err == "dollar train: there is no key 'beta_vds'; the nearest is 'beta_vsd'\n"


def without_free(text: str) -> str:
    return re.sub(r"[\d.,]+ are free", "some are free", text)


def test_the_console_script_does_what_the_starter_does(dollar: Callable[..., Said], command: Callable) -> None:
    given = ("reward=none", "beta_ft=0", "lrm.width=32")
    one, other = (said("plan", *given) for said in (dollar, command))  # between which the disk may fill a little
    assert one._replace(out=without_free(one.out)) == other._replace(out=without_free(other.out))
