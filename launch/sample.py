"""Make clips: `python launch/sample.py checkpoint=runs/demo/student steps=4 prompt="..." [key=value ...]`."""

from __future__ import annotations

import json
from pathlib import Path

from door import enter
from omegaconf import DictConfig, ListConfig


def prompts_of(config: DictConfig) -> list[str]:
    """The prompts that were given, by key or by file; ValueError when there are none."""
    from dollar.data.prompts import read_prompts

    if config.prompts is not None:
        return read_prompts(config.prompts)
    given = list(config.prompt) if isinstance(config.prompt, ListConfig) else [config.prompt]
    prompts = [p for p in given if p is not None and str(p).strip()]
    if not prompts:
        raise ValueError(
            'there is no prompt; give prompt="a small red circle moving left on a black background" or prompts=FILE'
        )
    return prompts


def main(config: DictConfig) -> None:
    """Sample, write mp4s and GIFs, and list them in manifest.jsonl."""
    prompts = prompts_of(config)
    if config.clips < 1:
        raise ValueError(f"clips is {config.clips}; at least 1 clip a prompt is needed")
    from build import build_teacher, dtype_of, quiet

    from dollar import media
    from dollar.parallel.world import start
    from dollar.sampling import make_clips, teacher_sampler
    from dollar.student import load_student, read_card

    if config.checkpoint is not None:
        config.teacher = read_card(config.checkpoint)["teacher"]
    with quiet():
        world = start(config.parallel.device)
        teacher = build_teacher(config, world)
        if config.checkpoint is None:
            sampler = teacher_sampler(teacher, config.steps or 50, config.guidance_scale)
        else:
            student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype"))
            sampler = student.sampler(teacher, config.steps or max(student.few_steps), config.force)
        asked = [(prompt, config.seed + i) for prompt in prompts for i in range(config.clips)]
        videos = make_clips(sampler, teacher, [p for p, _ in asked], [s for _, s in asked], config.batch)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
        for (prompt, seed), video in zip(asked, videos, strict=True):
            clip = media.to_uint8(video.float() / 255)
            name = media.safe_name(prompt, seed, sampler.steps)
            media.write_mp4(out / f"{name}.mp4", clip, teacher.fps)
            if config.gif:
                media.write_gif(out / f"{name}.gif", clip, teacher.fps)
            line = {"file": f"{name}.mp4", "prompt": prompt, "seed": seed, "steps": sampler.steps, "by": sampler.name}
            manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
            print(out / f"{name}.mp4")


if __name__ == "__main__":
    enter(main, "sample")
