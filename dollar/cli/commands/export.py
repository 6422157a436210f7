"""A student as a plain diffusers folder: `python launch/export.py checkpoint=PATH out=FOLDER [key=value ...]`.

PATH is a student's folder, a run's, or one of its checkpoints. `lora=RANK full=false` writes a LoRA alone.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.exporting import check_keys, settings_of, teacher_of
from dollar.cli.entry import check_folder_for
from dollar.export.folder import check_out, whole_folder
from dollar.export.source import check_source, source_of

if TYPE_CHECKING:
    from dollar.export.exporter import Exporter


def main(config: DictConfig) -> None:
    """Write the folder, having compared its clips with ours."""
    check_keys(config)
    out = Path(config.out)
    source = source_of(Path(config.checkpoint), config.weights)
    lora = source.own_lora()
    check_source(source, bool(lora), config.steps, config.lora, config.full)
    check_folder_for("out", out)
    check_out(out, "checkpoint", source.place, config.overwrite)

    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import quiet
    from dollar.export.exporter import Exporter
    from dollar.export.lora import Base, check_names, verify_lora
    from dollar.export.pipeline import verify
    from dollar.models.outline import family_of
    from dollar.parallel.lock import Lock
    from dollar.storage import explained

    check_names(family_of(source.card["teacher"]["_target_"]), config.lora_names, bool(lora) or config.lora is not None)
    quiet()
    device = join(config).device
    teacher = teacher_of(config, source, device, weights=bool(lora) and source.in_checkpoint)
    check_out(out, "teacher", teacher.folder, config.overwrite)
    settings = settings_of(config, source)
    exporter = Exporter(source, lora, teacher, settings, out)
    base, dtype, end = Base(teacher.pipeline, teacher.family.classes), exporter.dtype, last_line(exporter, out)
    expected = exporter.expected() if config.verify else None
    beside = Lock(out.parent, name=f".{out.name}.lock", stays=False)
    with closing(beside), explained("the export", out.parent, full=True), whole_folder(out) as aside:
        check_out(out, "checkpoint", source.place, config.overwrite)  # another may have been written meanwhile
        exporter.write(aside)
        slim = exporter.is_slim
        if expected is not None and slim:
            print(exporter.read_back(aside, expected))
        with_lora = exporter.expected_lora() if expected is not None else None
        if expected is not None and exporter.lora is not None and with_lora is None:
            print("the LoRA is not compared, for it is one of a teacher that has another LoRA merged into it")
        del exporter, teacher  # before a pipeline is read
        if expected is not None and config.full and not slim:
            for line in verify(aside, expected, dtype, device, settings.switches):
                print(line)
        if expected is not None and with_lora is not None:
            for line in verify_lora(aside, base, with_lora, expected.clips, device, settings.switches):
                print(line)
    print(end)


def last_line(exporter: Exporter, out: Path) -> str:
    """What is in the folder, and what isn't."""
    counts, lora = " or ".join(map(str, exporter.samplers)), exporter.lora
    teacher = f"{'pruned' if exporter.left.is_less else 'tuned'} teacher"
    what = f"the {teacher if exporter.source.tuned else 'student'} for {counts} steps"
    unseen = "" if exporter.settings.verify else ", its clips not compared"
    if lora is None or not lora.extracted:
        alone = "" if exporter.settings.full else ", as its LoRA alone,"
        return f"{what}{alone} is in {out}{unseen}"
    hint = f"; {lora.described.hint}" if lora.described.hint else ""
    if exporter.settings.full:
        return f"{what} is in {out}{unseen}, beside it a LoRA of {lora.described.kept}{hint}"
    return f"a LoRA of {what}, of {lora.described.kept}, is in {out}{unseen}{hint}"
