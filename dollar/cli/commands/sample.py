"""Make clips: `python launch/sample.py checkpoint=runs/mine/student steps=4 prompt="..." [key=value ...]`.

With `torchrun --nproc-per-node N` the clips are shared out among N GPUs. The same command goes on where it was stopped:
a clip that is there, made with the same settings and weights, is kept.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.sampling import (
    called,
    check_before,
    check_keys,
    how_made,
    prompts_of,
    sampler_of,
    settle,
    steps_of,
)
from dollar.cli.entry import check_folder_for

if TYPE_CHECKING:
    from dollar.parallel.world import World
    from dollar.sampling.files import ClipFolder, Request


def main(config: DictConfig) -> None:
    """Sample what isn't there yet, write mp4s and GIFs, and list them in manifest.jsonl."""
    prompts = prompts_of(config)
    check_keys(config)
    out = Path(config.out)
    check_folder_for("out", out)
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import quiet, take_teacher
    from dollar.parallel.lock import Lock
    from dollar.parallel.signals import STOPPED
    from dollar.parallel.world import finish
    from dollar.sampling.files import ClipFolder, requests

    if config.checkpoint is not None:
        take_teacher(config)
    settle(config)
    quiet()
    how = how_made(config, check_before(config, prompts))
    world = join(config)
    wanted = requests(prompts, config.seed, config.clips, steps_of(config), called(config))
    with closing(Lock(out, world.rank)) as lock:
        world.barrier()  # the first process has the folder
        lock.join()
        folder = ClipFolder(out, wanted, how, config.gif, world.rank)
        if world.is_main:
            for cause, count in folder.take_stock().items():
                print(f"note: {count} clip{'s' if count > 1 else ''} in {out}, {cause}: made anew")
        world.barrier()
        missing = folder.missing()
        world.barrier()  # all have seen the same
        if missing:
            try:
                make(config, prompts, folder, missing, world)
            except KeyboardInterrupt:  # what was made is there and listed
                print(f"stopped; the same command goes on with the clips that are in {out}")
                sys.exit(STOPPED)
        if world.is_main:
            folder.close()
            made, count = len(missing), len(wanted)
            print(f"{count} clip{'s are' if count > 1 else ' is'} in {out}: {made} made now, {count - made} kept")
    finish(world)


def make(config: DictConfig, prompts: list[str], folder: ClipFolder, missing: list[Request], world: World) -> None:
    """Sample and write this process's share of what is missing."""
    from dollar.sampling.files import batches, print_unknown_words, write_clips

    teacher, sampler = sampler_of(config, world)
    if world.is_main:
        print_unknown_words(teacher, prompts)
    parts = batches(folder.wanted, missing, config.batch)
    own = [parts[i] for i in world.own(0, len(parts))]
    write_clips(own, missing, folder, sampler, teacher, world.is_main)
    world.barrier()
