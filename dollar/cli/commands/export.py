"""A student as a plain diffusers folder: `python launch/export.py checkpoint=PATH out=FOLDER [key=value ...]`.

PATH is a student's folder, a run's, or one of its checkpoints.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import check_folder_for
from dollar.export.source import KINDS, Source, source_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dollar.diffusion.timesteps import FewStep
    from dollar.models.lora import Extracted
    from dollar.models.teacher import Teacher

PLAIN_PROMPT = "a dog runs along a beach at sunset"
# Of the teacher's keys, those that change how it computes: it must compute as the plain pipeline does.
AS_PLAIN = {"text": "online", "frozen_dtype": "float32", "decode_chunk": 1, "chunk_frames": None}


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for a value that can't be."""
    from dollar.models.assemble import DTYPES

    for key in ("checkpoint", "out"):
        if config[key] is None or not str(config[key]).strip():
            raise ValueError(f"{key} is not given; checkpoint=PATH names the student, and out=FOLDER where it goes")
    for key, known in (("weights", tuple(KINDS)), ("dtype", tuple(DTYPES))):
        if config[key] not in known:
            raise ValueError(f"{key} is {config[key]!r}; use {' or '.join(known)}")
    for key in ("steps", "lora"):
        if config[key] is not None and (type(config[key]) is not int or config[key] < 1):
            raise ValueError(f"{key} is {config[key]}; it is a whole number from 1 on, or null")
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", str(config.max_shard_size)):
        raise ValueError(f"max_shard_size is {config.max_shard_size}; it is a size such as 10GB or 500MB")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0")


def check_out(out: Path, near: Mapping[str, Path], overwrite: bool) -> None:
    """Raise ValueError unless `out` may be written and nothing that is needed lies in it, or it in that."""
    check_folder_for("out", out)
    for what, place in near.items():
        here, there = out.resolve(), place.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise ValueError(f"out={out} and the {what} {place} lie in one another; name a folder beside it")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"out={out} is not empty; name another folder, or give overwrite=true")
    if not (out / "README.md").is_file() or not (out / "scheduler").is_dir():
        raise ValueError(f"overwrite=true replaces an earlier export, and out={out} holds something else")


def check_card(source: Source, lora: Mapping[str, Tensor], steps: int | None, rank: int | None, full: bool) -> None:
    """Raise ValueError for a step count that the student was not trained for, or a LoRA that it doesn't have."""
    trained = source.card["steps"]
    if lora and rank is not None:
        raise ValueError(
            f"lora is {rank}, but the student in {source.place} is a LoRA, which is exported; set lora=null"
        )
    if not lora and rank is None and not full:
        raise ValueError("full=false writes the LoRA alone, but lora is null; give its rank, as lora=64")
    if not full and source.card.get("teacher", {}).get("lora") is not None:
        raise ValueError(
            f"full=false writes a LoRA of the plain teacher, but this one had {source.card['teacher']['lora']} merged; "
            "export the whole pipeline"
        )
    if steps is not None and steps not in trained:
        raise ValueError(
            f"steps is {steps}, but the student in {source.place} was trained for "
            f"{' or '.join(map(str, sorted(trained, reverse=True)))}; use one of these"
        )
    if not isinstance(source.card.get("teacher"), dict):
        raise ValueError(f"the student in {source.place} doesn't say which teacher made it; train it again")


def teacher_of(config: DictConfig, source: Source, device: Any, weights: bool) -> Teacher:
    """The student's teacher; keys of the command line stay. weights: whether its transformer is read, LoRA and all."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    overrides = HydraConfig.get().overrides.task
    if any(o.startswith("teacher=") for o in overrides) and config.teacher.name != source.card["teacher_name"]:
        raise ValueError(
            f"teacher is {config.teacher.name}, but the student in {source.place} came from the teacher "
            f"{source.card['teacher_name']}; leave teacher= out"
        )
    given = [o.removeprefix("teacher.") for o in overrides if o.startswith("teacher.")]
    shift = {} if source.card.get("shift") is None else {"shift": source.card["shift"]}
    config.teacher = OmegaConf.merge(source.card["teacher"], shift, OmegaConf.from_dotlist(given))
    try:
        plain = AS_PLAIN if weights else {**AS_PLAIN, "lora": None}
        return instantiate(config.teacher, device=device, weights=weights, **plain)
    except Exception as error:
        if not str(told := error.__cause__).startswith("no teacher at"):
            raise
        raise ValueError(f"{told}. If it was moved, give teacher.folder=FOLDER") from None


def check_space(out: Path, teacher: Teacher, dtype: Any, link: bool) -> None:
    """Raise ValueError unless the folder's disk has room for the pipeline."""
    from dollar.export.pipeline import needed_bytes

    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    needed, free = needed_bytes(teacher, dtype, link), shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"the export needs {needed:,} bytes and {free:,} are free at {there}; name a folder elsewhere"
            + ("" if link else ", or share the teacher's files with link=true")
        )


def is_tuned(card: Mapping[str, Any]) -> bool:
    """Whether the student is its teacher tuned by a reward, which keeps the teacher's guidance."""
    return bool(card.get("guided", ((card.get("config") or {}).get("student") or {}).get("guided", False)))


def call_of(teacher: Teacher, steps: int, guided: bool) -> dict[str, Any]:
    """What the exported pipeline is told beside the prompt; guided: as its teacher's would be."""
    from dollar.export.pipeline import call_of

    call = call_of(teacher, steps)
    if not guided:
        return call
    negative = {"negative_prompt": teacher.negative_prompt} if teacher.negative_prompt else {}
    return call | {"guidance_scale": teacher.guidance_scale} | negative


def prompt_of(config: DictConfig, source: Source) -> str:
    """The caption to compare by: the given one, the data's first held-out one, or a plain one."""
    from hydra.utils import instantiate

    if config.prompt is not None:
        return str(config.prompt)
    data = (source.card.get("config") or {}).get("data") or {}
    held_out = data.get("held_out")
    captions = instantiate(held_out) if isinstance(held_out, dict) and "_target_" in held_out else []
    return str(captions[0]) if captions else PLAIN_PROMPT


def switches_of(config: DictConfig) -> list[str]:
    """The autoencoder's methods that the teacher's yaml turns on."""
    return [f"enable_{key}" for key in ("tiling", "slicing") if config.teacher.get(key)]


def lora_of(teacher: Teacher, network: nn.Module, rank: int, dtype: Any) -> Extracted:
    """The LoRA that leads from the teacher's files to the student."""
    from dollar.log import progress
    from dollar.models.lora import extract

    before: Any = teacher.pipeline.weights("transformer")
    transformer: Any = network.transformer
    if missing := [n for n, _ in transformer.named_parameters() if n not in before.files]:
        raise ValueError(
            f"the teacher's transformer at {teacher.pipeline.place('transformer')} has no tensor {missing[0]}, so the "
            "difference can't be taken; give a folder that diffusers wrote by teacher.parts.transformer=FOLDER"
        )
    blocks: Any = network.blocks
    return extract(transformer, blocks, before.read, rank, dtype, lambda n: progress(n, f"LoRA of rank {rank}"))


def told_of(extracted: Extracted) -> str:
    """What a LoRA covers and leaves, in words."""
    worst = ", ".join(f"{layer.name} {layer.residual:.3g}" for layer in extracted.layers[:3])
    text = (
        f"rank {extracted.rank} leaves {extracted.residual:.3g} of the change of {len(extracted.layers)} linear layers "
    )
    text += f"(Frobenius norm; the worst: {worst})"
    if not extracted.uncovered:
        return text
    first = ", ".join(f"{name} {norm:.3g}" for name, norm in list(extracted.uncovered.items())[:5])
    total = sum(norm**2 for norm in extracted.uncovered.values()) ** 0.5
    covered = sum(layer.changed**2 for layer in extracted.layers) ** 0.5
    return (
        f"{text}; not covered: {len(extracted.uncovered)} other tensors, whose change has the norm {total:.3g} beside "
        f"{covered:.3g} of the linear layers (the most: {first})"
    )


def main(config: DictConfig) -> None:
    """Write the folder, having compared its clips with ours."""
    check_keys(config)
    out = Path(config.out)
    source = source_of(Path(config.checkpoint), config.weights)
    lora = source.own_lora()
    check_card(source, lora, config.steps, config.lora, config.full)
    check_out(out, {"checkpoint": source.place}, config.overwrite)

    from dollar.cli.build.teacher import quiet
    from dollar.export import pipeline as export
    from dollar.export.student import denoiser_of, few_steps, prediction_of
    from dollar.models.assemble import DTYPES
    from dollar.parallel.world import start

    quiet()
    card, dtype, tuned = source.card, DTYPES[config.dtype], is_tuned(source.card)
    device = start(config.parallel.device, config.parallel.timeout_minutes).device
    teacher = teacher_of(config, source, device, weights=bool(lora) and source.in_checkpoint)
    check_out(out, {"teacher": teacher.folder}, config.overwrite)
    steps, parameterization = config.steps or max(card["steps"]), card.get("parameterization", "homogeneous")
    samplers = few_steps(teacher, card["timesteps"], card["steps"], card["between"])
    samplers = export.served(teacher, samplers, steps)
    prediction = prediction_of(teacher, parameterization)
    teacher.check_prediction(prediction)
    if config.full:
        check_space(out, teacher, dtype, config.link)
    if lora and source.in_checkpoint:
        network = export.merge_lora(teacher, lora)
    else:
        network = export.read_network(teacher, source.weights, source.prefix)
    export.round_to(network, dtype)  # what is stored is what is compared
    calls = {count: call_of(teacher, count, tuned) for count in samplers}
    prompt, checked, switches = prompt_of(config, source), config.verify and config.full, switches_of(config)
    student = denoiser_of(teacher, network, samplers[steps], parameterization, DTYPES["float32"])
    if checked:
        export.settle(network, teacher.codec.vae, *teacher.text.models)
    ours = {n: export.by_us(teacher, student, s, prompt, config.seed, tuned) for n, s in samplers.items() if checked}
    with export.whole_folder(out) as aside:
        teacher.save_scheduler(aside, samplers[steps], prediction)
        told = write_lora(aside, lora, teacher, network, config.lora, dtype)
        write_card(aside, config, source, teacher, samplers, told, prompt)
        if config.full:
            write_student_card(aside, source, samplers)
            export.write_pipeline(aside, teacher, network, dtype, config.max_shard_size, config.link)
        del network, student, teacher  # before the pipeline is read
        if checked:
            most = export.allowed(prediction, card["between"], device)
            if tuned:  # a pipeline may run guidance's halves one by one, which rounds otherwise
                most = max(most, export.ALONG_VELOCITY)
            for line in export.verify(aside, ours, calls, prompt, config.seed, most, dtype, device, switches):
                print(line)
    print(f"the {'tuned teacher' if tuned else 'student'} for {' or '.join(map(str, samplers))} steps is in {out}")


def write_lora(
    folder: Path, lora: Mapping[str, Tensor], teacher: Teacher, network: nn.Module, rank: int | None, dtype: Any
) -> str | None:
    """The student's own LoRA or an extracted one, if any; says what it is."""
    if lora:
        from dollar.models.lora import FILE
        from dollar.models.pipeline import diffusers_class

        kind = diffusers_class(teacher.family.pipeline_class)
        kind.save_lora_weights(folder, transformer_lora_layers=dict(lora), weight_name=FILE)
        return "what was trained, alone; the transformer has it merged"
    if rank is None:
        return None
    extracted = lora_of(teacher, network, rank, dtype)
    extracted.save(folder, teacher.family.pipeline_class)
    print(told_of(extracted))
    return told_of(extracted)


def write_student_card(folder: Path, source: Source, samplers: Mapping[int, FewStep]) -> None:
    """student.json, by which launch/sample.py samples the export with the step counts of its scheduler."""
    from dollar.export.student import CARD

    card = {**source.card, "timesteps": list(samplers[max(samplers)].asked), "steps": list(samplers)}
    card |= {"guided": is_tuned(source.card)}
    (folder / CARD).write_text(json.dumps(card, indent=1))


def write_card(
    folder: Path,
    config: DictConfig,
    source: Source,
    teacher: Teacher,
    samplers: Mapping[int, FewStep],
    lora: str | None,
    prompt: str,
) -> None:
    """README.md, the model card."""
    from dollar.export.model_card import Facts, model_card

    longest = samplers[max(samplers)]
    frames, height, width = teacher.clip_shape
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    facts = Facts(
        card={**source.card, "timesteps": list(longest.asked), "scheduler": scheduler},
        teacher_folder=teacher.folder,
        pipeline_class=teacher.family.pipeline_class,
        calls={count: call_of(teacher, count, is_tuned(source.card)) for count in samplers},
        times=longest.schedule.thousandths(longest.times).tolist(),
        clip=f"{frames} frames of {height}x{width} pixels, {teacher.fps:g} a second",
        switches=switches_of(config),
        embeds_guidance=teacher.family.embeds_guidance,
        tuned=is_tuned(source.card),
        dtype=config.dtype,
        averaged=config.weights == "ema",
        run=source.run,
        lora=lora,
        full=config.full,
        licence=config.license,
        prompt=prompt,
        seed=config.seed,
    )
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
