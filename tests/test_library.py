"""`import dollar`: what it loads, what it offers, and the example of dollar.library on the embedded teacher."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROMPT, ROOT, SIZE, needs_embedded

import dollar
from dollar import library
from dollar.cli import calls
from dollar.models.teacher import Teacher

ROOMS = ("diffusion", "losses", "models", "rewards", "parallel", "pretraining")


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded once a fresh interpreter has run the code."""
    show = "import sys; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; {show}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_the_package_loads_no_library() -> None:
    loaded = modules_after("import dollar; dir(dollar); dollar.__version__")
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "hydra", "omegaconf"}


def test_importing_the_rooms_loads_neither_diffusers_nor_transformers() -> None:
    loaded = modules_after("; ".join(f"import dollar.{room}" for room in ROOMS))
    assert not loaded & {"diffusers", "transformers", "hydra", "pyarrow", "cv2", "matplotlib"}


@pytest.mark.parametrize("room", ["", *(f".{room}" for room in ROOMS)])
def test_every_public_name_is_there(room: str) -> None:
    module = __import__(f"dollar{room}", fromlist=["_"])
    assert module.__doc__ and len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


@needs_embedded
def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(library)
    assert found.attempted > 5 and found.failed == 0
    assert (tmp_path / "square.mp4").is_file() and (tmp_path / "exported" / "model_index.json").is_file()


def test_a_teacher_from_a_folder(tiny_teacher_folder: Path, teacher: Teacher) -> None:
    sizes = {**SIZE, "fps": 8, "guidance_scale": 3.0, "text_length": 12}
    loaded = dollar.load_teacher(tiny_teacher_folder, device="cpu", **sizes)
    assert loaded.name == "tiny" and loaded.latent_shape == teacher.latent_shape
    videos = dollar.sample(loaded, PROMPT, seeds=[0, 1], steps=1)
    assert videos.shape == (2, 9, 3, 32, 32) and videos.dtype == torch.uint8
    assert torch.equal(videos[1:], dollar.sample(loaded, [PROMPT], seeds=1, steps=1))
    with pytest.raises(ValueError, match="doesn't say its width, fps; give width="):
        dollar.load_teacher(tiny_teacher_folder, **{k: v for k, v in sizes.items() if k not in ("width", "fps")})


def test_mistakes_are_sentences(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no teacher 'nobody'; name one of cogvideox"):
        dollar.load_teacher("nobody")
    with pytest.raises(ValueError, match="there is no key 'teacher.framse'; the nearest is 'teacher.frames'"):
        dollar.load_teacher("shapes", framse=9)
    with pytest.raises(ValueError, match="clips of 10 frames don't fit this VAE"):
        dollar.load_teacher("shapes", frames=10)
    with pytest.raises(ValueError, match="dtype is 'int8'; use float32"):
        dollar.load_teacher("shapes", dtype="int8")
    with pytest.raises(ValueError, match="there is no key 'cycle'; the nearest is 'cycles'"):
        dollar.distil({"cycle": 3})
    with pytest.raises(ValueError, match="cycles=three: cycles is a whole number"):
        dollar.distil({"cycles": "three"})
    with pytest.raises(ValueError, match="no student in"):
        dollar.load_student(tmp_path)
    with pytest.raises(ValueError, match="there are 2 prompts and 3 seeds"):
        dollar.sample(teacher, [PROMPT, PROMPT], seeds=[0, 1, 2])


def test_a_stopped_run_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    from dollar.cli.commands import train
    from dollar.parallel.signals import STOPPED

    def stopped(config: Any) -> None:
        assert (config.run, config.cycles) == ("a", 3)
        raise SystemExit(STOPPED)

    monkeypatch.setattr(train, "main", stopped)
    with pytest.raises(InterruptedError, match=r"runs.a was stopped and saved; the same call goes on"):
        dollar.distil({"run": "a", "cycles": 3})


def test_settings_become_overrides() -> None:
    settings = {"run": "a b", "validation": {"every": 0, "first": True}, "lrm.path": None, "student.steps": [4, 1]}
    words = ['run="a b"', "validation.every=0", "validation.first=true", "lrm.path=null", "student.steps=[4,1]"]
    assert calls.overrides(settings) == words
    prompts = ["null", "1e3", 'a "quoted" ${word}\\', "first, second", "[x]"]
    with calls.composed("sample", {"prompt": prompts, "out": "3"}) as config:
        assert list(config.prompt) == prompts and config.out == "3"


def test_places_and_numbers_of_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {
        "run": "größe/日本",
        "runs": "~/my runs",
        "init": Path("~/a, b"),
        "cycles": np.int64(3),
        "beta_cd": np.float32(0.5),
    }
    with calls.composed("train", {**given, "student.steps": np.array([2, 1])}) as config:
        assert (config.run, config.runs, config.init) == ("größe/日本", f"{tmp_path}/my runs", f"{tmp_path}/a, b")
        assert (config.cycles, config.beta_cd, list(config.student.steps)) == (3, 0.5, [2, 1])
    dollar.save_video("~/clip.mp4", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 8)
    assert (tmp_path / "clip.mp4").is_file()
    for load in (dollar.load_student, dollar.load_teacher):
        with pytest.raises(ValueError, match=f"{tmp_path}/none"):
            load("~/none")
