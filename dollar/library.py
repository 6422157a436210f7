"""What a person in a notebook needs: load a teacher, distil it, load the student, sample, export.

>>> import dollar
>>> teacher = dollar.load_teacher("shapes")
>>> videos = dollar.sample(teacher, "a small red circle moving left on a black background", steps=2)
>>> videos.dtype, tuple(videos.shape)  # [N, T, C, H, W]
(torch.uint8, (1, 17, 3, 64, 64))
>>> folder = dollar.distil(
...     {"run": "notebook", "cycles": 1, "batch": 1, "student.steps": [2, 1], "beta_ft": 0, "validation.every": 0}
... )  # doctest: +ELLIPSIS
training in runs/notebook: ...
>>> student = dollar.load_student(folder)
>>> videos = dollar.sample(student, ["a large blue square moving up on a white background"] * 2, seeds=[0, 1])
>>> len(videos)
2
>>> dollar.save_video("square.mp4", videos[0], student.teacher.fps)
>>> dollar.export_student(folder, "exported", verify=False)  # doctest: +ELLIPSIS
the student for 2 or 1 steps is in exported, its clips not compared
...Path('exported')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from dollar.export.student import Student
    from dollar.models.teacher import Teacher


def load_teacher(name_or_folder: str | Path, device: str = "auto", dtype: str = "float32", **settings: Any) -> Teacher:
    """A teacher by its name in conf/teacher, or from a diffusers folder of a family that has an adapter.

    device: auto takes a GPU where there is one; dtype: what its transformer computes in, float32, bfloat16 or float16.
    settings: keys of conf/teacher, such as frames=9 or folder=PATH. A folder without a name needs its frames, height,
    width, fps, guidance_scale and text_length. ValueError says what is missing or disagrees.
    """
    from dollar.cli import calls

    return calls.teacher(_place(name_or_folder), _device(device), _dtype(dtype), settings)


def load_student(
    folder: str | Path, teacher: Teacher | None = None, device: str = "auto", dtype: str = "float32"
) -> Student:
    """A finished student by its folder, runs/<run>/student or an export.

    teacher: the one that it came from, where that is already loaded; otherwise its autoencoder and text encoder are
    read from the folder that the student names, and device and dtype are as for `load_teacher`. An export names no
    folder of the machine that it was made on: give the teacher, unless it is an embedded one or a hub id.
    ValueError where there is no student or it came from another teacher.
    """
    from dollar.cli import calls
    from dollar.export.student import load_student, read_card

    place = _place(folder)
    if teacher is None:
        teacher = calls.teacher_of_student(read_card(place), place, _device(device))
    return load_student(place, teacher, _dtype(dtype))


def sample(
    model: Teacher | Student,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch: int = 1,
) -> Tensor:
    """Videos uint8 [N, T, C, H, W] on the CPU, one for each pair of a prompt and a seed.

    seeds: one for every prompt, or one each; a single prompt is repeated for several seeds. steps: one of the
    student's step counts (None: its longest), or the teacher's solver steps (None: 50). guidance_scale: the teacher's,
    in diffusers' form u + s (c - u); None is its own. batch: clips that are sampled together.
    """
    from dollar.export.student import Student
    from dollar.sampling.samplers import make_clips, teacher_sampler

    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    drawn = [seeds] * len(listed) if isinstance(seeds, int) else list(seeds)
    if len(listed) == 1:
        listed = listed * len(drawn)
    if not listed or len(listed) != len(drawn):
        raise ValueError(
            f"there are {len(listed)} prompts and {len(drawn)} seeds; give one seed, or one for each prompt"
        )
    if not isinstance(model, Student):
        return make_clips(teacher_sampler(model, steps or 50, guidance_scale), model, listed, drawn, batch, show=False)
    if guidance_scale is not None:
        raise ValueError("guidance_scale is the teacher's; a student has its guidance within. Leave it out")
    sampler = model.sampler(model.teacher, steps or max(model.few_steps))
    return make_clips(sampler, model.teacher, listed, drawn, batch, show=False)


def save_video(path: str | Path, video: Tensor, fps: float) -> None:
    """Write a video uint8 [T, C, H, W], as `sample` gives it, as an mp4 of `fps` frames a second."""
    from dollar import media

    media.write_mp4(_place(path), video.permute(0, 2, 3, 1).contiguous().numpy(), fps)


def distil(settings: Mapping[str, Any] | None = None) -> Path:
    """Train a student as launch/train.py does; returns its folder, runs/<run>/student.

    settings: that command's keys, dotted or nested ({"teacher": "shapes", "validation.every": 0}); a mapping below a
    key sets the keys below it. A run that was stopped goes on when it is called again with the same settings, and a
    finished one is returned at once.
    ValueError names a key at fault; InterruptedError where a signal stopped the run, whose state was saved.
    """
    from dollar.cli import calls

    return calls.train(dict(settings or {}))


def export_student(checkpoint: str | Path, out: str | Path, **settings: Any) -> Path:
    """Write a student as a plain diffusers folder, which DiffusionPipeline.from_pretrained loads without this package.

    checkpoint: a student's folder, a run's, or one of its checkpoints; settings: further keys of launch/export.py,
    such as steps=1, lora=64 or verify=False. Returns `out`; ValueError names a key at fault.
    """
    from dollar.cli import calls

    calls.run("export", {"checkpoint": str(checkpoint), "out": str(out), **settings})
    return _place(out)


def _place(path: str | Path) -> Path:
    """A file or folder; ~ is the home folder, as in a command's settings."""
    from dollar.cli.written import expanded

    return Path(expanded(str(path)))


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(name: str) -> Any:
    from dollar.models.assemble import DTYPES

    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; use {' or '.join(DTYPES)}")
    return DTYPES[name]
