"""Make clips: `python launch/sample.py checkpoint=runs/demo/student steps=4 prompt="..." [key=value ...]`.

With `torchrun --nproc-per-node N` the clips are shared out among N GPUs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, ListConfig, open_dict

from dollar.cli.entry import check_folder_for
from dollar.log import logger

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.parallel.world import World
    from dollar.sampling.samplers import Sampler

MANIFEST = "manifest.jsonl"
SIZES = ("frames", "height", "width", "fps")


class Asked(NamedTuple):
    """One clip that is asked for, and the name of its files without ending."""

    prompt: str
    seed: int
    name: str


def prompts_of(config: DictConfig) -> list[str]:
    """The prompts that were given, by key or by file; ValueError when there are none."""
    from dollar.data.prompts import read_prompts

    if config.prompts is not None:
        if config.prompt is not None:
            raise ValueError("prompt and prompts are both given; use prompts=FILE or prompt=TEXT")
        return read_prompts(config.prompts)
    given = list(config.prompt) if isinstance(config.prompt, ListConfig) else [config.prompt]
    prompts = [str(p) for p in given if p is not None and str(p).strip()]
    if not prompts:
        raise ValueError(
            'there is no prompt; give prompt="a small red circle moving left on a black background" or prompts=FILE'
        )
    return prompts


def check(config: DictConfig) -> None:
    """Raise ValueError for what could only fail after the networks are read."""
    for key in ("clips", "batch"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    for key in ("steps", *SIZES):
        if config[key] is not None and config[key] <= 0:
            raise ValueError(f"{key} is {config[key]}; it must be positive, or null")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0")
    if config.guidance_scale is not None and config.guidance_scale < 0:
        raise ValueError(
            f"guidance_scale is {config.guidance_scale}, which leads away from the prompt; 1 is no guidance"
        )
    if not str(config.out).strip():
        raise ValueError("out is empty; name the folder that the clips are written to")
    if config.checkpoint is not None and config.guidance_scale is not None:
        raise ValueError("guidance_scale is the teacher's; a student has its guidance within. Leave one of them out")
    if config.parallel.shard_teacher:
        raise ValueError(
            "parallel.shard_teacher is true, but each process makes clips of its own with a whole network; leave it out"
        )
    if config.dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {config.dtype!r}; use float32, bfloat16 or float16, or null for parallel's")


def settle(config: DictConfig) -> None:
    """Put the everyday keys where the teacher and the processes read them."""
    given = {key: config[key] for key in SIZES if config[key] is not None}
    # As a pipeline decodes: what a clip is to the last bit depends on its company.
    given |= {"decode_chunk": 1, "tiling": config.teacher.get("tiling", False) or config.tiling}
    if config.dtype is not None:
        config.parallel.dtype = config.parallel.teacher_dtype = given["frozen_dtype"] = config.dtype
    with open_dict(config.teacher):  # an older student's card may lack some
        config.teacher.update(given)


def main(config: DictConfig) -> None:
    """Sample, write mp4s and GIFs, and list them in manifest.jsonl."""
    prompts = prompts_of(config)
    check(config)
    from dollar.cli.build.teacher import quiet, take_teacher
    from dollar.parallel.world import finish, start

    if config.checkpoint is not None:
        take_teacher(config)
    settle(config)
    out = Path(config.out)
    check_folder_for("out", out)
    quiet()
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    teacher, sampler, by = sampler_of(config, world)
    if world.is_main:
        for prompt in dict.fromkeys(prompts):
            if unknown := teacher.text.unknown(prompt):
                logger.warning(f"note: the teacher doesn't know {', '.join(unknown)} in {prompt!r}")
    out.mkdir(parents=True, exist_ok=True)
    told = "x".join(f"{config[key]:g}" for key in SIZES if config[key] is not None)
    by = "-".join(part for part in (by, told, config.dtype) if part)  # so that no clip takes another's name
    asked = clips_of(prompts, config.seed, config.clips, sampler.steps, by)
    own = [asked[i] for i in world.own(0, len(asked))]
    listed = make(own, sampler, teacher, out, config.batch, config.gif, world.is_main)
    of = {"checkpoint": config.checkpoint, "dtype": config.parallel.dtype}
    listed = {file: {**row, **of} for file, row in listed.items()}
    shares = [out / f".{MANIFEST}.{rank}" for rank in range(world.size)]
    shares[world.rank].write_text(json.dumps(listed), "utf-8")
    world.barrier()
    if world.is_main:
        write_manifest(
            out / MANIFEST, {k: v for share in shares for k, v in json.loads(share.read_text("utf-8")).items()}
        )
        for share in shares:
            share.unlink()
    finish(world)


def sampler_of(config: DictConfig, world: World) -> tuple[Teacher, Sampler, str]:
    """The teacher, who samples, and what that is called in file names."""
    from dollar.cli.build.teacher import build_teacher, dtype_of
    from dollar.export.student import load_student
    from dollar.models.assemble import DTYPES
    from dollar.sampling.samplers import teacher_sampler

    if config.checkpoint is None:
        teacher = build_teacher(config, world)
        teacher.denoiser.network.to(dtype_of(config, "teacher_dtype", DTYPES))
        return teacher, teacher_sampler(teacher, config.steps or 50, config.guidance_scale), "teacher"
    teacher = build_teacher(config, world, weights=False)  # its transformer is not needed
    student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype", DTYPES))
    student.denoiser.network.to(dtype_of(config, "dtype", DTYPES))
    sampler = student.sampler(teacher, config.steps or max(student.few_steps), config.force)
    folder = student.folder.resolve()
    return teacher, sampler, folder.parent.name if folder.name == "student" else folder.name


def clips_of(prompts: Sequence[str], seed: int, clips: int, steps: int, by: str) -> list[Asked]:
    """Every clip that is asked for; a prompt that was given twice is made twice, under names of its own."""
    from dollar import media

    seen: Counter[str] = Counter()
    asked = []
    for prompt in prompts:
        for i in range(clips):
            name = media.safe_name(prompt, seed + i, steps, by)
            seen[name] += 1
            asked.append(Asked(prompt, seed + i, f"{name}-{seen[name]}" if seen[name] > 1 else name))
    return asked


def make(
    asked: Sequence[Asked], sampler: Sampler, teacher: Teacher, out: Path, batch: int, gif: bool, show: bool
) -> dict[str, dict[str, Any]]:
    """Sample and write the clips, a batch at a time; what is written stays, whatever comes. The manifest's rows."""
    from dollar import media
    from dollar.log import progress
    from dollar.sampling.samplers import make_clips

    listed = {}
    frames, height, width = teacher.clip_shape
    size = {"frames": frames, "height": height, "width": width, "fps": teacher.fps}
    for first in progress(range(0, len(asked), batch), f"{sampler.name}, {sampler.steps} steps", show):
        part = asked[first : first + batch]
        videos = make_clips(sampler, teacher, [a.prompt for a in part], [a.seed for a in part], batch, show=False)
        for (prompt, seed, name), video in zip(part, videos, strict=True):
            clip = media.to_uint8(video.float() / 255)
            media.write_mp4(out / f"{name}.mp4", clip, teacher.fps)
            if gif:
                media.write_gif(out / f"{name}.gif", clip, teacher.fps)
            listed[f"{name}.mp4"] = {"prompt": prompt, "seed": seed, "steps": sampler.steps, "by": sampler.name, **size}
            print(out / f"{name}.mp4")
    return listed


def write_manifest(path: Path, listed: dict[str, dict[str, Any]]) -> None:
    """A line for each clip of the folder; clips that were made before stay listed, those made again are listed once."""
    from dollar.media import atomically

    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = {row["file"]: row for row in map(json.loads, before)}
    rows |= {file: {"file": file, **row} for file, row in listed.items()}
    with atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()), "utf-8")
