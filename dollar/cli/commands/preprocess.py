"""Store clips as latents and text embeddings: `torchrun launch/preprocess.py data=PATH out=FOLDER [key=value ...]`."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.preprocessing import (
    buckets_of,
    check_keys,
    check_made_by,
    deciding,
    out_of,
    places_of,
    settings_of,
    store_places,
)

if TYPE_CHECKING:
    from dollar.data.listed import Source
    from dollar.parallel.lock import Lock
    from dollar.parallel.signals import Stop


def main(config: DictConfig) -> None:
    """Encode what is not in the folder yet, and report on what is."""
    check_keys(config)
    buckets_of(config)
    out, places = out_of(config), places_of(config)

    from dollar.cli.build.teacher import quiet
    from dollar.data.encoding import check_apart
    from dollar.data.sources import open_source
    from dollar.parallel.lock import Lock
    from dollar.parallel.signals import STOPPED, Stop

    check_apart(out, places)
    source = open_source(places, config.data.video_column, config.data.caption_column)
    quiet()
    stop = Stop()
    stop.watch()
    with closing(Lock(out, rank=int(os.environ.get("RANK", "0")))) as lock:
        stopped = encode(config, source, lock, stop)
    if stopped:
        sys.exit(STOPPED)


def encode(config: DictConfig, source: Source, lock: Lock, stop: Stop) -> bool:
    """This process's part of the work, and of the report; whether it was stopped before the end."""
    from dollar.cli.build.objects import instantiate
    from dollar.cli.build.processes import join
    from dollar.data.encoding import Encoding, begin, check_buckets, fingerprint_of, forget_edited, report_on
    from dollar.parallel.world import finish

    world = join(config)
    teacher = instantiate(config.teacher, device=world.device, weights=False)  # the transformer is not needed
    out, buckets = out_of(config), buckets_of(config)
    check_buckets(buckets, teacher)
    made_by = fingerprint_of(teacher, places_of(config), buckets, deciding(config))
    check_made_by(out, made_by, list(config.same))
    world.barrier()  # all have seen the same folder before anything in it changes
    if world.is_main:
        forget_edited(out, source, config.windows)
    world.barrier()
    work = Encoding(out, source, teacher, buckets, settings_of(config), world.rank, world.size)
    world.barrier()
    if world.is_main:
        begin(out, made_by, teacher, config.retry_skipped)
        store_places(out, made_by)
    world.barrier()
    lock.join()
    with stop.in_order():
        work.run(stop)
        stopped = world.any(work.stopped)
    if world.is_main and stopped:
        print(f"stopped; what was encoded is in {out}, and the same command goes on from there")
    elif world.is_main:
        report_on(out, buckets, config.windows, config.max_bad_fraction)
    finish(world)
    return stopped
