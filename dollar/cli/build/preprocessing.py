"""From conf/preprocess.yaml to what encodes a folder of clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dollar.cli.entry import check_folder_for
from dollar.cli.places import Compared, known_now, store, stored_at
from dollar.cli.same import check_same

if TYPE_CHECKING:
    from dollar.data.buckets import Bucket
    from dollar.data.encoding import EncodingSettings

FLOATS = ("float32", "bfloat16", "float16")


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for a value that can't be."""
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


def out_of(config: DictConfig) -> Path:
    """The folder of the shards; ValueError where nothing can be written."""
    check_folder_for("out", Path(config.out))
    return Path(config.out)


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


def places_of(config: DictConfig) -> list[str]:
    """The folders, files or patterns that were given."""
    given = config.data.path
    return [str(place) for place in (given if OmegaConf.is_list(given) else [given])]


def settings_of(config: DictConfig) -> EncodingSettings:
    """How clips are read and stored."""
    from dollar.data.encoding import EncodingSettings

    keys = {key: config[key] for key in EncodingSettings._fields if key != "stills"}
    return EncodingSettings(stills=config.data.stills, **keys)


def deciding(config: DictConfig) -> dict[str, Any]:
    """The keys that the folder's content depends on, apart from its teacher, places and sizes."""
    return {
        **{key: config.data[key] for key in ("video_column", "caption_column", "stills")},
        "frozen_dtype": config.teacher.get("frozen_dtype", "float32"),
        **{key: config[key] for key in ("windows", "latents_dtype", "text_dtype")},
    }


DATA = "preprocess.data"  # where the folder's fingerprint has the places of the clips


def check_made_by(out: Path, made_by: dict[str, Any], same: Sequence[str] = ()) -> None:
    """Raise ValueError if the folder holds shards of another origin.

    Clips may be added where they are; where they have moved they must be those of before. same: keys of which the user
    says so.
    """
    from dollar.data.fingerprint import FINGERPRINT

    if (out / FINGERPRINT).is_file():
        places = Compared([DATA], stored_at(out), same, growing=[DATA], noted=False, shown={DATA: "data.path"})
        way_out = "Name another folder with out=FOLDER, or keep to its settings"
        check_same(out / FINGERPRINT, made_by, way_out, places=places)
    elif next(out.rglob("*.parquet"), None) is not None:
        raise ValueError(f"out={out} holds parquet files but no {FINGERPRINT}, so it is not of this command's making")


def store_places(out: Path, made_by: dict[str, Any]) -> None:
    """Keep what the places of the clips hold."""
    store(out, known_now([DATA], made_by))
