"""Measure a student beside its teacher: `python launch/evaluate.py checkpoint=runs/demo/student [key=value ...]`."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from dollar.cli.entry import check_folder_for
from dollar.log import logger


def check(config: DictConfig) -> None:
    """Raise ValueError for numbers that could only fail after an hour of sampling."""
    alone = config.teacher_clips == 0 and config.checkpoint is not None  # the teacher's stored figures are enough
    if config.clips < 64 or (config.teacher_clips < 64 and not alone):
        raise ValueError(
            f"clips={config.clips}, teacher_clips={config.teacher_clips}: at least 64 of each are needed for a Frechet "
            "distance in 16 directions and for the report's rows; 1024 for figures to quote"
        )
    if config.training_clips <= 64:
        raise ValueError(
            f"training_clips={config.training_clips}: diversity is measured in 64 directions, more is needed"
        )
    for key, least in (("repeats", 0), ("shown", 1), ("lrm_prompts", 0), ("teacher_steps", 1)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    if config.steps is not None and not isinstance(config.steps, ListConfig):
        raise ValueError(f"steps is {config.steps}; write steps=[{config.steps}]")
    if config.checkpoint is None and config.steps is not None:
        raise ValueError(f"steps is {config.steps}, a student's; give checkpoint=FOLDER, or leave steps out")
    if config.checkpoint is not None and config.steps is not None:
        from dollar.export.student import read_card

        trained = read_card(config.checkpoint)["steps"]
        if unknown := [k for k in config.steps if k not in trained]:
            raise ValueError(f"steps has {unknown}, but the student in {config.checkpoint} was trained for {trained}")


def main(config: DictConfig) -> None:
    """Print the table and write metrics.json and report.html."""
    check(config)
    from dollar.cli.build.teacher import build_teacher, dtype_of, quiet, take_teacher
    from dollar.data import shapes
    from dollar.evaluation.report.page import format_table
    from dollar.evaluation.yardstick import Yardstick, check_size, pairs
    from dollar.export.student import load_student
    from dollar.parallel.world import start

    if config.checkpoint is not None:
        take_teacher(config)
    out = Path(config.out or (Path(config.checkpoint).parent if config.checkpoint else "runs/teacher"))
    check_folder_for("out", out)
    if config.cache is not None:
        check_folder_for("cache", Path(str(config.cache)))
    out.mkdir(parents=True, exist_ok=True)
    quiet()
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    teacher = build_teacher(config, world)
    check_size(teacher)
    pixel = asked_reward(config.reward, teacher)  # one without its weights is told before anything is sampled
    chosen = pairs(shapes.captions("held_out"), max(config.clips, config.teacher_clips))
    training = shapes.ShapesClips("train", config.training_clips, seed=1)
    yardstick = Yardstick(
        chosen,
        lambda p, s: shapes.render(shapes.parse(p), s),
        list(zip(training.captions, training.seeds, strict=True)),
        cache=None if config.cache is None else Path(str(config.cache)),
    )
    metrics: dict[str, Any] = {"real": yardstick.real_figures(config.clips).metrics} if config.real else {}
    clips, known = measure_teacher(config, teacher, yardstick, metrics)
    write_metrics(metrics, out)
    if config.checkpoint is not None:
        student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype"))
        measure_student(config, teacher, student, yardstick, metrics, clips, known)
        write_metrics(metrics, out)  # what is known is kept, whatever a reward does
        measure_scores(config, pixel or own_reward(student, teacher), yardstick, clips, metrics)
        measure_times(config, teacher, metrics, chosen.prompts[0], student)
        write_metrics(metrics, out)  # what is known is kept, whatever comes
        measure_latent_reward(config, teacher, student, own_reward(student, teacher), metrics)
    else:
        measure_scores(config, pixel, yardstick, clips, metrics)
        measure_times(config, teacher, metrics, chosen.prompts[0])
    write_metrics(metrics, out)
    print("\n" + format_table(metrics) + "\n")
    if config.report:
        write_report_of(config, metrics, clips, chosen, out, teacher.fps)
    print(f"figures are in {out / 'metrics.json'}" + (f", pictures in {out / 'report.html'}" if config.report else ""))


def write_metrics(metrics: dict[str, Any], out: Path) -> None:
    """metrics.json, in one atomic step; what is not a number is null there, since JSON knows no nan."""
    from dollar.media import atomically

    def strict(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strict(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [strict(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with atomically(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(strict(metrics), indent=1, allow_nan=False))


def identity(teacher: Any) -> dict[str, Any]:
    """What stored figures must have been made with: these weights at this guidance, this world, verifier and pairs."""
    from dollar.data import shapes
    from dollar.evaluation.yardstick import pairs
    from dollar.rewards import shapes as verifier

    weights = hashlib.sha256()
    for path in sorted(Path(teacher.folder).rglob("*.safetensors")):
        weights.update(path.read_bytes())
    plain = (int, float, str, tuple, dict)
    constants = [(n, v) for m in (shapes, verifier) for n, v in vars(m).items() if n.isupper() and isinstance(v, plain)]
    measure = hashlib.sha256(repr((constants, pairs(shapes.captions("held_out"), 1024))).encode())
    return {
        "weights": weights.hexdigest(),
        "guidance_scale": teacher.guidance_scale,
        "measure": measure.hexdigest(),
    }


def measure_teacher(config: DictConfig, teacher: Any, yardstick: Any, metrics: dict[str, Any]) -> tuple[dict, dict]:
    """A fresh look at the teacher, beside its full figures where they are known.

    Returns its clips by name, for the report, and what is known of it pair by pair: `right` and `reward`.
    """
    from dollar.evaluation.yardstick import Pairs
    from dollar.sampling.samplers import make_clips, teacher_sampler

    if config.teacher_clips == 0:
        stored = stored_figures(config, teacher)
        if stored is None:
            raise ValueError(
                f"teacher_clips is 0, but {config.teacher_metrics} has no figures of this teacher for "
                f"clips={config.clips}; give teacher_clips=64"
            )
        metrics["teacher"] = {"steps": 50, **stored["by_clips"][str(config.clips)]}
        return {}, stored["pairs"]
    n, sampler = config.teacher_clips, teacher_sampler(teacher, config.teacher_steps)
    first = Pairs(yardstick.pairs.prompts[:n], yardstick.pairs.seeds[:n])
    videos = make_clips(sampler, teacher, *first)
    fresh = yardstick.measure(videos)
    known: dict[str, Any] = {"right": fresh.right.tolist(), "reward": fresh.reward.tolist()}
    metrics["teacher"] = {"steps": sampler.steps, **fresh.metrics}
    # The shipped figures are of the embedded teacher at its own 50 steps; a fresh check of fewer clips stands beside.
    stored = stored_figures(config, teacher)
    if stored is not None:
        known = stored["pairs"]
        agree = sum(a == b for a, b in zip(known["right"], fresh.right.tolist(), strict=False)) / n
        metrics["teacher"] = {"steps": 50, **stored["by_clips"][str(config.clips)]}
        metrics["teacher_fresh"] = {**fresh.metrics, "agreement_with_stored": agree}
        print(f"teacher: stored figures of {config.clips} clips; {n} made afresh, {agree:.0%} judged alike")
    if config.checkpoint is None:
        store_figures(config, teacher, yardstick, videos, fresh)
    return {f"teacher {sampler.steps}": videos}, known


def store_figures(config: DictConfig, teacher: Any, yardstick: Any, videos: Any, figures: Any) -> None:
    """teacher_metrics.json: the teacher's figures of this many clips and of fewer, and its verdicts pair by pair."""
    from dollar.media import atomically

    sizes = [count for count in (256, 512, 1024) if count <= len(videos)]
    stored = {
        **identity(teacher),
        "by_clips": {str(count): yardstick.measure(videos, count).metrics for count in sizes},
        "pairs": {"right": figures.right.tolist(), "reward": [round(float(r), 5) for r in figures.reward]},
    }
    with atomically(Path(config.out or "runs/teacher") / "teacher_metrics.json") as temporary:
        temporary.write_text(json.dumps(stored))


def stored_figures(config: DictConfig, teacher: Any) -> dict[str, Any] | None:
    """The teacher's figures that were measured before on as many clips, if they are of this very teacher."""
    full = Path(config.teacher_metrics)
    if not full.is_file() or config.teacher_clips >= config.clips or config.teacher_steps != 50:
        return None
    stored = json.loads(full.read_text())
    mine = identity(teacher)
    if any(stored.get(key) != value for key, value in mine.items()) or str(config.clips) not in stored["by_clips"]:
        logger.warning(
            f"note: the figures in {full} are of another teacher, guidance, world or number of clips, and are not used"
        )
        return None
    return stored


def measure_student(
    config: DictConfig, teacher: Any, student: Any, yardstick: Any, metrics: dict[str, Any], clips: dict, known: dict
) -> None:
    """The student at each step count, and the same sampler with the teacher's weights."""
    import numpy as np

    from dollar.evaluation.yardstick import Pairs, difference
    from dollar.sampling.samplers import make_clips, student_sampler

    chosen = Pairs(yardstick.pairs.prompts[: config.clips], yardstick.pairs.seeds[: config.clips])
    counts = counts_of(config, student)
    right, reward = np.array(known["right"]), np.array(known["reward"])
    metrics["student"] = {}
    for steps in counts:
        sampler = student.sampler(teacher, steps)
        clips[f"student {steps}"] = make_clips(sampler, teacher, *chosen)
        figures = yardstick.measure(clips[f"student {steps}"])
        metrics["student"][str(steps)] = {
            **figures.metrics,
            "difference": difference(figures, right, reward, chosen.prompts),
        }
    if config.untrained:
        most = max(student.few_steps)
        sampler = student_sampler(teacher, teacher.denoiser, student.few_steps[most], "untrained")
        clips[f"untrained {most}"] = make_clips(sampler, teacher, *chosen)
        metrics["untrained"] = {str(most): yardstick.measure(clips[f"untrained {most}"]).metrics}


def counts_of(config: DictConfig, student: Any) -> list[int]:
    """The step counts to measure, the most steps first."""
    return list(config.steps) if config.steps else sorted(student.few_steps, reverse=True)


def measure_times(config: DictConfig, teacher: Any, metrics: dict[str, Any], prompt: str, student: Any = None) -> None:
    """Seconds of a clip for the teacher, and for the student with its speed-up, all in turn."""
    from dollar.evaluation.measures.speed import measure_speed
    from dollar.sampling.samplers import teacher_sampler

    if config.repeats == 0:
        return
    reference = teacher_sampler(teacher, config.teacher_steps)
    samplers = [] if student is None else [student.sampler(teacher, k) for k in counts_of(config, student)]
    denoiser = None if student is None else student.denoiser
    seconds, speeds = measure_speed(teacher, reference, prompt, config.repeats, denoiser, samplers)
    metrics["teacher"]["seconds"] = seconds
    for steps, speed in speeds.items():
        metrics["student"][str(steps)] |= speed


def asked_reward(node: DictConfig, teacher: Any) -> Any:
    """The reward of a choice of conf/reward behind the teacher's decoder, tried on a gray clip; None for none."""
    import torch

    from dollar.cli.build.rewards import check_captions, reward_of
    from dollar.data import shapes
    from dollar.surrogate.pixel_reward import PixelReward

    if (reward := reward_of(node)) is None:
        return None
    pixel, prompts = PixelReward(reward, teacher.codec), shapes.captions("held_out")
    check_captions(reward, prompts)
    frames, height, width = teacher.clip_shape
    pixel.trial(torch.full((1, frames, 3, height, width), 0.5, device=teacher.device), prompts[:1])
    return pixel


def own_reward(student: Any, teacher: Any) -> Any:
    """The pixel reward that the student was trained with; None where there was none, or it can't be had any more."""
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf

    try:
        return asked_reward(OmegaConf.create(student.card["config"]["reward"]), teacher)
    except (InstantiationException, ValueError) as error:
        logger.warning(
            f"note: the student's own reward is not measured: {str(error.__cause__ or error).splitlines()[0]}"
        )
        return None


def measure_scores(config: DictConfig, pixel: Any, yardstick: Any, clips: dict, metrics: dict) -> None:
    """What a reward, if any, says of all systems' clips, and of real ones where the teacher's are asked for too."""
    from dollar.evaluation.yardstick import scored

    if pixel is None:
        return
    for name, videos in clips.items():
        system, _, steps = name.partition(" ")
        figures = metrics["teacher"] if system == "teacher" else metrics[system][steps]
        figures["scored"] = scored(pixel, videos, yardstick.pairs.prompts)
    if pixel.trouble:
        logger.warning(f"note: clips that got no reward are left out of its mean: {pixel.trouble}")
    if config.real and config.teacher_clips > 0:
        metrics["real"]["scored"] = scored(pixel, yardstick.others[: config.clips], yardstick.pairs.prompts)


def measure_latent_reward(config: DictConfig, teacher: Any, student: Any, pixel: Any, metrics: dict[str, Any]) -> None:
    """The run's latent reward model on clips of mixed quality: teacher at 1 to 50 steps, student at its own."""

    folder = Path(config.checkpoint).parent / "lrm"
    if not (folder / "model.safetensors").is_file() or pixel is None or config.lrm_prompts == 0:
        return
    from dollar.data import shapes
    from dollar.evaluation.yardstick import latent_reward_figures
    from dollar.sampling.samplers import teacher_sampler
    from dollar.surrogate.latent_reward import LatentReward

    surrogate = LatentReward.from_folder(folder, teacher, pixel)
    prompts = shapes.captions("held_out")[:: max(1, 230 // config.lrm_prompts)][: config.lrm_prompts]
    samplers = [teacher_sampler(teacher, steps) for steps in (1, 2, 4, 10, 50)]
    samplers += [student.sampler(teacher, steps) for steps in student.few_steps]
    metrics["lrm"] = latent_reward_figures(surrogate, teacher, samplers, prompts)


def write_report_of(config: DictConfig, metrics: dict, clips: dict, chosen: Any, out: Path, fps: float) -> None:
    """report.html: the table, the run's curves, and clips side by side."""
    from dollar import media
    from dollar.evaluation.report.page import SampleRow, write_report
    from dollar.training.log import read_scalars

    rows = []
    for i in range(0, 64, max(1, 64 // config.shown)):
        made = {name: media.to_uint8(videos[i].float() / 255) for name, videos in clips.items()}
        rows.append(SampleRow(chosen.prompts[i], chosen.seeds[i], made))
    scalars = read_scalars(out) if (out / "metrics.jsonl").is_file() else {}
    notes = [
        f"Each student made {config.clips} clips of held-out prompts, the teacher {metrics['teacher']['clips']} of the "
        f"same (prompt, seed) pairs by {config.teacher_steps} guided steps. Differences are student minus teacher on "
        "the pairs that both made, with 95 % paired bootstrap intervals over prompts."
    ]
    if "teacher_fresh" in metrics:
        fresh = metrics["teacher_fresh"]
        notes.append(
            f"The teacher's figures come with it; {fresh['clips']} of its clips were made afresh, and of these "
            f"{fresh['agreement_with_stored']:.0%} were judged as they were then."
        )
    if metrics["teacher"]["clips"] != config.clips:
        notes.append(
            "The teacher made fewer clips, so its Frechet distance and diversity are not to be compared with the "
            "student's: both depend on the number of clips."
        )
    write_report(out / "report.html", metrics, scalars, rows, f"Student of {config.teacher.name}", notes, fps)
