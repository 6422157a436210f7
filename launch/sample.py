"""Make clips: `python launch/sample.py checkpoint=runs/demo/student steps=4 prompt="..." [key=value ...]`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from door import check_folder_for, enter
from omegaconf import DictConfig, ListConfig


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


def main(config: DictConfig) -> None:
    """Sample, write mp4s and GIFs, and list them in manifest.jsonl."""
    prompts = prompts_of(config)
    for key in ("clips", "batch"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    if config.steps is not None and config.steps < 1:
        raise ValueError(f"steps is {config.steps}; it must be at least 1, or null")
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
    from build import build_teacher, dtype_of, quiet, take_teacher

    from dollar import media
    from dollar.parallel.world import start
    from dollar.sampling import make_clips, teacher_sampler
    from dollar.student import load_student

    if config.checkpoint is not None:
        take_teacher(config)
    out = Path(config.out)
    check_folder_for("out", out)
    quiet()
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    teacher = build_teacher(config, world)
    by = "teacher"
    if config.checkpoint is None:
        sampler = teacher_sampler(teacher, config.steps or 50, config.guidance_scale)
    else:
        student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype"))
        sampler = student.sampler(teacher, config.steps or max(student.few_steps), config.force)
        by = student.folder.resolve().parent.name
    for prompt in dict.fromkeys(prompts):
        if unknown := teacher.text.unknown(prompt):
            print(f"note: the teacher doesn't know {', '.join(unknown)} in {prompt!r}")
    asked = [(prompt, config.seed + i) for prompt in prompts for i in range(config.clips)]
    out.mkdir(parents=True, exist_ok=True)
    videos = make_clips(sampler, teacher, [p for p, _ in asked], [s for _, s in asked], config.batch)
    seen: Counter[str] = Counter()
    listed = {}
    for (prompt, seed), video in zip(asked, videos, strict=True):
        clip = media.to_uint8(video.float() / 255)
        name = media.safe_name(prompt, seed, sampler.steps, by)
        seen[name] += 1
        name += f"-{seen[name]}" if seen[name] > 1 else ""  # a prompt that was given twice is made twice
        media.write_mp4(out / f"{name}.mp4", clip, teacher.fps)
        if config.gif:
            media.write_gif(out / f"{name}.gif", clip, teacher.fps)
        listed[f"{name}.mp4"] = {"prompt": prompt, "seed": seed, "steps": sampler.steps, "by": sampler.name}
        print(out / f"{name}.mp4")
    write_manifest(out / "manifest.jsonl", listed)


def write_manifest(path: Path, listed: dict[str, dict[str, Any]]) -> None:
    """A line for each clip of the folder; clips that were made before stay listed, those made again are listed once."""
    from dollar.media import atomically

    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = {row["file"]: row for row in map(json.loads, before)}
    rows |= {file: {"file": file, **row} for file, row in listed.items()}
    with atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()), "utf-8")


if __name__ == "__main__":
    enter(main, "sample")
