"""Measure a student beside its teacher: `python launch/evaluate.py checkpoint=runs/demo/student [key=value ...]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from door import enter
from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Print the table and write metrics.json and report.html."""
    if config.clips < 64 or config.teacher_clips < 64:
        raise ValueError(
            f"clips={config.clips}, teacher_clips={config.teacher_clips}: at least 64 of each are needed, since the "
            "Frechet distance lives in 64 directions; 1024 for figures to quote"
        )
    from build import build_teacher, dtype_of, quiet

    from dollar.data import shapes
    from dollar.evaluation.evaluate import Yardstick, pairs
    from dollar.evaluation.report import format_table
    from dollar.parallel.world import start
    from dollar.student import load_student, read_card

    if config.checkpoint is not None:
        config.teacher = read_card(config.checkpoint)["teacher"]
    out = Path(config.out or (Path(config.checkpoint).parent if config.checkpoint else "runs/teacher"))
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        world = start(config.parallel.device)
        teacher = build_teacher(config, world)
        chosen = pairs(shapes.captions("held_out"), max(config.clips, config.teacher_clips))
        training = shapes.ShapesClips("train", config.training_clips, seed=1)
        yardstick = Yardstick(
            chosen,
            lambda p, s: shapes.render(shapes.parse(p), s),
            list(zip(training.captions, training.seeds, strict=True)),
        )
        metrics: dict[str, Any] = {"real": yardstick.real_figures(config.clips).metrics}
        clips, known = measure_teacher(config, teacher, yardstick, metrics)
        if config.checkpoint is not None:
            student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype"))
            measure_student(config, teacher, student, yardstick, metrics, clips, known)
            measure_latent_reward(config, teacher, student, metrics)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print("\n" + format_table(metrics) + "\n")
    if config.report:
        write_report_of(config, metrics, clips, chosen, out, teacher.fps)
    print(f"figures are in {out / 'metrics.json'}" + (f", pictures in {out / 'report.html'}" if config.report else ""))


def measure_teacher(config: DictConfig, teacher: Any, yardstick: Any, metrics: dict[str, Any]) -> tuple[dict, dict]:
    """A fresh look at the teacher, beside its full figures where they are known."""
    from dollar.evaluation.evaluate import Pairs
    from dollar.sampling import make_clips, measure_seconds, teacher_sampler

    n, sampler = config.teacher_clips, teacher_sampler(teacher, config.teacher_steps)
    first = Pairs(yardstick.pairs.prompts[:n], yardstick.pairs.seeds[:n])
    videos = make_clips(sampler, teacher, *first)
    fresh = yardstick.measure(videos)
    full = Path(config.teacher_metrics)
    known: dict[str, Any] = {"right": fresh.right.tolist(), "reward": fresh.reward.tolist()}
    metrics["teacher"] = {"steps": sampler.steps, **fresh.metrics}
    # The shipped figures are of the embedded teacher at its own 50 steps; a fresh check of fewer clips stands beside.
    if full.is_file() and n < config.clips and config.teacher_steps == 50:
        stored = json.loads(full.read_text())
        if stored["teacher_name"] == teacher.name and str(config.clips) in stored["by_clips"]:
            known = stored["pairs"]
            agree = sum(a == b for a, b in zip(known["right"], fresh.right.tolist(), strict=False)) / n
            metrics["teacher"] = {"steps": 50, **stored["by_clips"][str(config.clips)]}
            metrics["teacher_fresh"] = {**fresh.metrics, "agreement_with_stored": agree}
            print(f"teacher: stored figures of {config.clips} clips; {n} made afresh, {agree:.0%} judged alike")
    metrics["teacher"]["seconds"] = measure_seconds(
        sampler, teacher, first.prompts[0], max(3, config.repeats // 4)
    )._asdict()
    if config.checkpoint is None:
        sizes = [c for c in (256, 512, 1024) if c <= n]
        stored = {
            "teacher_name": teacher.name,
            "by_clips": {str(c): yardstick.measure(videos, c).metrics for c in sizes},
            "pairs": {"right": fresh.right.tolist(), "reward": [round(float(r), 5) for r in fresh.reward]},
        }
        target = Path(config.out or "runs/teacher") / "teacher_metrics.json"
        target.write_text(json.dumps(stored))
    return {f"teacher {sampler.steps}": videos}, known


def measure_student(
    config: DictConfig, teacher: Any, student: Any, yardstick: Any, metrics: dict[str, Any], clips: dict, known: dict
) -> None:
    """The student at each step count, and the same sampler with the teacher's weights."""
    import numpy as np

    from dollar.evaluation.evaluate import Pairs, difference, speed
    from dollar.sampling import make_clips, student_sampler, teacher_sampler

    chosen = Pairs(yardstick.pairs.prompts[: config.clips], yardstick.pairs.seeds[: config.clips])
    reference = teacher_sampler(teacher, config.teacher_steps)
    counts = list(config.steps) if config.steps else sorted(student.few_steps, reverse=True)
    right, reward = np.array(known["right"]), np.array(known["reward"])
    metrics["student"] = {}
    for steps in counts:
        sampler = student.sampler(teacher, steps)
        clips[f"student {steps}"] = make_clips(sampler, teacher, *chosen)
        figures = yardstick.measure(clips[f"student {steps}"])
        timing = speed(teacher, sampler, reference, chosen.prompts[0], config.repeats)
        metrics["student"][str(steps)] = {
            **figures.metrics,
            **timing,
            "difference": difference(figures, right, reward),
        }
    if config.untrained:
        most = max(student.few_steps)
        sampler = student_sampler(teacher, teacher.denoiser, student.few_steps[most], "untrained")
        clips[f"untrained {most}"] = make_clips(sampler, teacher, *chosen)
        metrics["untrained"] = {str(most): yardstick.measure(clips[f"untrained {most}"]).metrics}


def measure_latent_reward(config: DictConfig, teacher: Any, student: Any, metrics: dict[str, Any]) -> None:
    """The run's latent reward model on clips of mixed quality: teacher at 1 to 50 steps, student at its own."""
    from omegaconf import OmegaConf

    folder = Path(config.checkpoint).parent / "lrm"
    if not (folder / "model.safetensors").is_file():
        return
    from build import build_latent_reward
    from safetensors.torch import load_file

    from dollar.data import shapes
    from dollar.evaluation.evaluate import latent_reward_figures
    from dollar.parallel.world import World
    from dollar.sampling import teacher_sampler

    made_with = OmegaConf.create(student.card["config"])
    surrogate = build_latent_reward(made_with, teacher, World(device=teacher.device))
    surrogate.model.load_state_dict(load_file(folder / "model.safetensors"))
    surrogate.statistics.load_state_dict(json.loads((folder / "statistics.json").read_text()))
    prompts = shapes.captions("held_out")[:: max(1, 230 // config.lrm_prompts)][: config.lrm_prompts]
    samplers = [teacher_sampler(teacher, steps) for steps in (1, 2, 4, 10, 50)]
    samplers += [student.sampler(teacher, steps) for steps in student.few_steps]
    metrics["lrm"] = latent_reward_figures(surrogate, teacher, samplers, prompts)


def write_report_of(config: DictConfig, metrics: dict, clips: dict, chosen: Any, out: Path, fps: float) -> None:
    """report.html: the table, the run's curves, and clips side by side."""
    from dollar import media
    from dollar.evaluation.report import SampleRow, write_report
    from dollar.log import read_scalars

    rows = []
    for i in range(0, 64, max(1, 64 // config.shown)):
        made = {name: media.to_uint8(videos[i].float() / 255) for name, videos in clips.items()}
        rows.append(SampleRow(chosen.prompts[i], chosen.seeds[i], made))
    scalars = read_scalars(out) if (out / "metrics.jsonl").is_file() else {}
    notes = [
        f"Each system made {config.clips} clips of held-out prompts from the same (prompt, seed) pairs; the teacher "
        f"takes {config.teacher_steps} guided steps. Differences are student minus teacher, with 95 % paired bootstrap "
        "intervals."
    ]
    write_report(out / "report.html", metrics, scalars, rows, f"Student of {config.teacher.name}", notes, fps)


if __name__ == "__main__":
    enter(main, "evaluate")
