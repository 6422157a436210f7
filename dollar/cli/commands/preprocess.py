"""Store clips as latents and text embeddings: `torchrun launch/preprocess.py data=PATH out=FOLDER [key=value ...]`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import check_folder_for
from dollar.cli.same import check_same

if TYPE_CHECKING:
    from dollar.data.buckets import Bucket
    from dollar.data.encode import Settings
    from dollar.data.listed import Source
    from dollar.models.teacher import Teacher
    from dollar.parallel.lock import Lock, Stop

FINGERPRINT, REPORT = "fingerprint.json", "report.json"
SENTENCES = 20  # skipped clips that the report names
FLOATS = ("float32", "bfloat16", "float16")


def check_numbers(config: DictConfig) -> None:
    """Raise ValueError for a number that can't be."""
    for key in ("windows", "batch", "rows_per_shard", "readers", "ahead"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    if not 0 <= config.max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction is {config.max_bad_fraction}; it is a share, from 0 to 1")
    for key in ("latents_dtype", "text_dtype"):
        if config[key] not in FLOATS:
            raise ValueError(f"{key} is {config[key]!r}; use {', '.join(FLOATS)}")
    if config.data.stills not in ("repeat", "skip"):
        raise ValueError(f"data.stills is {config.data.stills!r}; use repeat or skip")
    for key, value in (("data", config.data.path), ("out", config.out)):
        if value is None or not str(value).strip():
            raise ValueError(f"{key} is not given; data=PATH names the clips, and out=FOLDER where their shards go")
    if config.teacher.get("text", "online") != "online":
        raise ValueError(f"teacher.text is {config.teacher.text}; captions are encoded here, so leave it at online")


def buckets_of(config: DictConfig) -> list[Bucket]:
    """The sizes that clips are sorted into; ValueError for what is no list of sizes."""
    from dollar.data.buckets import Bucket

    if config.buckets is None:
        return [Bucket(config.teacher.frames, config.teacher.height, config.teacher.width)]
    given: Any = OmegaConf.to_container(config.buckets) if OmegaConf.is_list(config.buckets) else config.buckets
    rows = given if isinstance(given, list) and given else [given]
    for row in rows:
        if not (isinstance(row, list) and len(row) == 3 and all(type(n) is int and n > 0 for n in row)):
            raise ValueError(
                f"buckets is {given}; it is a list of [frames, height, width], as buckets=[[17,64,64],[17,48,80]]"
            )
    return list(dict.fromkeys(Bucket(*row) for row in rows))


def main(config: DictConfig) -> None:
    """Encode what is not in the folder yet, and report on what is."""
    check_numbers(config)
    buckets, out = buckets_of(config), Path(config.out)
    check_folder_for("out", out)

    from dollar.cli.build.teacher import quiet
    from dollar.data.sources import open_source
    from dollar.parallel.lock import STOPPED, Lock, Stop

    places = places_of(config)
    check_apart(out, places)
    source = open_source(places, config.data.video_column, config.data.caption_column)
    quiet()
    stop = Stop()
    stop.watch()
    with closing(Lock(out, alone=os.environ.get("RANK", "0") == "0")) as lock:
        stopped = store_all(config, out, buckets, places, source, lock, stop)
    if stopped:
        sys.exit(STOPPED)


def store_all(
    config: DictConfig,
    out: Path,
    buckets: Sequence[Bucket],
    places: Sequence[str],
    source: Source,
    lock: Lock,
    stop: Stop,
) -> bool:
    """This process's part of the work, and of the report; whether it was asked to stop before the end."""
    from hydra.utils import instantiate

    from dollar.data.encode import SKIPPED, Work
    from dollar.parallel.world import finish, start

    world = start(config.parallel.device, config.parallel.timeout_minutes)
    teacher = instantiate(config.teacher, device=world.device, weights=False)  # the transformer is not needed
    for bucket in buckets:
        try:
            teacher.latent_shape_of(*bucket)
        except ValueError as error:
            raise ValueError(f"the bucket {list(bucket)} doesn't suit this teacher: {error}") from None
    made_by = fingerprint(config, teacher, places, buckets)
    check_folder(out, made_by)
    work = Work(out, source, teacher, buckets, world, settings_of(config))
    world.barrier()  # all have seen the same folder before anything in it changes
    if world.is_main:
        if config.retry_skipped:
            for file in (out / SKIPPED).glob("*.jsonl"):
                file.unlink()
        write_beginning(out, made_by, teacher)
        lock.share()
    world.barrier()
    lock.share()
    with stop.in_order():
        work.run(stop)
        stopped = world.any(work.stopped)
    if world.is_main and stopped:
        print(f"stopped; what was encoded is in {out}, and the same command goes on from there")
    elif world.is_main:
        report(out, buckets, config.windows, config.max_bad_fraction)
    finish(world)
    return stopped


def places_of(config: DictConfig) -> list[str]:
    """The folders, files or patterns that were given."""
    given = config.data.path
    return [str(place) for place in (given if OmegaConf.is_list(given) else [given])]


def check_apart(out: Path, places: Sequence[str]) -> None:
    """Raise ValueError if the shards would lie among the clips, where a later reading would take them for clips."""
    for place in places:
        folder = Path(place.partition("**")[0])  # what a pattern looks through at any depth
        if (folder.is_dir() and ("**" in place or folder == Path(place))) and out.resolve().is_relative_to(
            folder.resolve()
        ):
            raise ValueError(f"out={out} lies in the folder of the clips, data={place}; name a folder outside it")


def settings_of(config: DictConfig) -> Settings:
    """The numbers of a process's work."""
    from dollar.data.encode import Settings

    keys = {key: config[key] for key in Settings._fields if key != "stills"}
    return Settings(stills=config.data.stills, **keys)


def fingerprint(
    config: DictConfig, teacher: Teacher, places: Sequence[str], buckets: Sequence[Bucket]
) -> dict[str, Any]:
    """What the folder's content depends on: the teacher's own, and below `preprocess` how clips are read."""
    read: dict[str, Any] = {
        "data": [str(Path(place).resolve()) for place in places],
        **{key: config.data[key] for key in ("video_column", "caption_column", "stills")},
        "buckets": [list(bucket) for bucket in buckets],
        "fps": float(teacher.fps),
        "frozen_dtype": config.teacher.get("frozen_dtype", "float32"),
        **{key: config[key] for key in ("windows", "latents_dtype", "text_dtype")},
    }
    return teacher.fingerprint() | {"preprocess": read}


def check_folder(out: Path, made_by: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds shards that something else made."""
    if (out / FINGERPRINT).is_file():
        check_same(out / FINGERPRINT, made_by, (), {}, "Name another folder with out=FOLDER, or keep to its settings")
    elif next(out.rglob("*.parquet"), None) is not None:
        raise ValueError(f"out={out} holds parquet files but no {FINGERPRINT}, so it is not of this command's making")


def write_beginning(out: Path, made_by: dict[str, Any], teacher: Teacher) -> None:
    """What made the folder, and the prompts of guidance's other half."""
    from dollar.data.shards import write_nulls
    from dollar.media import atomically

    for left in out.rglob(".*.tmp"):  # by processes that were killed; nobody writes now
        left.unlink()
    with atomically(out / FINGERPRINT) as temporary:
        temporary.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
    nulls = {}
    for prompt in dict.fromkeys(["", teacher.negative_prompt]):
        embeddings, mask, pooled = teacher.text.encode([prompt])
        nulls[prompt] = embeddings[0], mask[0], None if pooled is None else pooled[0]
    write_nulls(out, nulls)


def report(out: Path, buckets: Sequence[Bucket], windows: int, max_bad_fraction: float) -> None:
    """Write and print what the folder holds; ValueError when too much of the source couldn't be used."""
    from dollar.data.buckets import finished
    from dollar.data.clips import NOT_BAD
    from dollar.data.encode import SKIPPED, check_bad, read_stored
    from dollar.data.skips import read_skips
    from dollar.media import atomically

    stored = read_stored(out, buckets)
    written = {name: len(ids) for name, ids in stored.rows.items()}
    skips = read_skips(out / SKIPPED)
    causes = Counter(skip.cause for skip in skips.values())
    sentences = [skip.sentence for skip in list(skips.values())[:SENTENCES]]
    with atomically(out / REPORT) as temporary:
        told = {
            "written": written,
            "twice": stored.again,
            "skipped": dict(causes.most_common()),
            "sentences": sentences,
        }
        temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = [f"{n} of {name}" for name, n in written.items()] + [f"{n} {cause}" for cause, n in causes.most_common()]
    more = [f"and {len(skips) - SENTENCES} more in {out / SKIPPED}."] if len(skips) > SENTENCES else []
    print("\n  ".join([f"{out} holds {', '.join(counts)}", *sentences, *more]))
    if stored.again:
        shards = ", ".join(map(str, stored.shards[:SENTENCES])) + " and others" * (len(stored.shards) > SENTENCES)
        print(f"{stored.again} rows are there twice; remove {shards}, and run the same command for what else they held")
    clips = sum(len(finished(ids, windows)) for ids in stored.rows.values())
    bad = sum(n for cause, n in causes.items() if cause not in NOT_BAD)
    check_bad(bad, bad + clips, max_bad_fraction, out)
    if clips == 0:
        raise ValueError(f"not one clip could be used; {out / REPORT} says why")
