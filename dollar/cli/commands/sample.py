"""Make clips: `python launch/sample.py checkpoint=runs/demo/student steps=4 prompt="..." [key=value ...]`.

With `torchrun --nproc-per-node N` the clips are shared out among N GPUs.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.sampling import check_keys, prompts_of, sampler_of, settle
from dollar.cli.entry import check_folder_for

if TYPE_CHECKING:
    from dollar.parallel.lock import Lock


def main(config: DictConfig) -> None:
    """Sample, write mp4s and GIFs, and list them in manifest.jsonl."""
    prompts = prompts_of(config)
    check_keys(config)
    from dollar.cli.build.teacher import take_teacher
    from dollar.parallel.lock import Lock

    if config.checkpoint is not None:
        take_teacher(config)
    settle(config)
    out = Path(config.out)
    check_folder_for("out", out)
    with closing(Lock(out, int(os.environ.get("RANK", 0)), stays=False)) as lock:
        sample(config, prompts, out, lock)


def sample(config: DictConfig, prompts: list[str], out: Path, lock: Lock) -> None:
    """This process's share of the clips, and of their list."""
    from dollar.cli.build.teacher import quiet
    from dollar.parallel.world import finish, start
    from dollar.sampling.files import print_unknown_words, requests, write_clips
    from dollar.sampling.manifest import list_clips

    quiet()
    world = start(config.parallel.device, config.parallel.timeout_minutes)
    lock.join()
    teacher, sampler, by = sampler_of(config, world)
    if world.is_main:
        print_unknown_words(teacher, prompts)
    wanted = requests(prompts, config.seed, config.clips, sampler.steps, by)
    own = [wanted[i] for i in world.own(0, len(wanted))]
    rows = write_clips(own, sampler, teacher, out, config.batch, config.gif, world.is_main)
    made_by = {"checkpoint": config.checkpoint, "dtype": config.parallel.dtype}
    list_clips(out, {file: {**row, **made_by} for file, row in rows.items()}, world)
    finish(world)
