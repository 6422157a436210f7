"""A student as a plain diffusers folder: `python launch/export.py checkpoint=PATH out=FOLDER [key=value ...]`.

PATH is a student's folder, a run's, or one of its checkpoints.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from omegaconf import DictConfig

from dollar.cli.build.exporting import check_keys, settings_of, teacher_of
from dollar.cli.entry import check_folder_for
from dollar.export.folder import check_out, whole_folder
from dollar.export.source import check_source, source_of


def main(config: DictConfig) -> None:
    """Write the folder, having compared its clips with ours."""
    check_keys(config)
    out = Path(config.out)
    source = source_of(Path(config.checkpoint), config.weights)
    lora = source.own_lora()
    check_source(source, bool(lora), config.steps, config.lora, config.full)
    check_folder_for("out", out)
    check_out(out, "checkpoint", source.place, config.overwrite)

    from dollar.cli.build.teacher import quiet
    from dollar.export.exporter import Exporter
    from dollar.export.pipeline import verify
    from dollar.parallel.lock import Lock
    from dollar.parallel.world import start
    from dollar.storage import explained

    quiet()
    device = start(config.parallel.device, config.parallel.timeout_minutes).device
    teacher = teacher_of(config, source, device, weights=bool(lora) and source.in_checkpoint)
    check_out(out, "teacher", teacher.folder, config.overwrite)
    settings = settings_of(config, source)
    exporter = Exporter(source, lora, teacher, settings, out)
    dtype, tuned, counts = exporter.dtype, source.tuned, " or ".join(map(str, exporter.samplers))
    expected = exporter.expected() if config.verify and config.full else None
    beside = Lock(out.parent, name=f".{out.name}.lock", stays=False)
    with closing(beside), explained("the export", out.parent, full=True), whole_folder(out) as aside:
        check_out(out, "checkpoint", source.place, config.overwrite)  # another may have been written meanwhile
        exporter.write(aside)
        del exporter, teacher  # before the pipeline is read
        if expected is not None:
            for line in verify(aside, expected, dtype, device, settings.switches):
                print(line)
    print(f"the {'tuned teacher' if tuned else 'student'} for {counts} steps is in {out}")
