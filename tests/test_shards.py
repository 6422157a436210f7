"""Shards: what is written is read back to the last bit, by columns that others read too; nothing is half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from torch import Tensor

from dollar.data.nulls import read_nulls, write_nulls
from dollar.data.shard_format import EMBEDDING, LATENT, MASK, POOLED, SCHEMA, StoredClip, known_dtype, tensor_columns
from dollar.data.shard_writer import ShardWriter
from dollar.data.shards import NO_CAPTION, NO_TENSOR, SOUND, UNKNOWN_TYPE, Shards, done_ids, listed

COLUMNS = [column for name in (LATENT, EMBEDDING, MASK, POOLED) for column in tensor_columns(name)]


def row(number: int, shape: tuple[int, ...] = (4, 3, 5, 6), pooled: bool = True, tokens: int = 7) -> StoredClip:
    generator = torch.Generator().manual_seed(number)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    embeddings = normal(12, 8)
    embeddings[tokens:] = 0
    return StoredClip(
        id=f"clip-{number}",
        file_name=f"{number}.mp4",
        caption=f"clip {number}",
        latents=normal(*shape),
        embeddings=embeddings,
        mask=(torch.arange(12) < tokens).long(),
        pooled=normal(5) if pooled else None,
        width=48,
        height=40,
        num_frames=9,
        fps=8.0,
    )


def write(folder: Path, numbers: range, part: str = "0", **settings: object) -> None:
    with ShardWriter(folder, part, **settings) as writer:
        for number in numbers:
            writer.add(row(number))


def tensor(shards: Shards, number: int, name: str) -> Tensor | None:
    return shards.read(shards.group_of(number), COLUMNS).tensor(number, name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_come_back_in_the_type_they_are_stored_in(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, range(5), rows_per_shard=2, latents_dtype=dtype, text_dtype=dtype)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"0-0000{i}.parquet" for i in range(3)]
    shards = Shards([tmp_path], COLUMNS)
    kind = getattr(torch, dtype)
    for i in range(5):
        expected = row(i)
        assert shards.captions[i].as_py() == expected.caption
        assert torch.equal(tensor(shards, i, LATENT), expected.latents.to(kind))
        assert torch.equal(tensor(shards, i, EMBEDDING), expected.embeddings[:7].to(kind))  # zeros aren't kept
        assert torch.equal(tensor(shards, i, MASK).long(), expected.mask)
        assert torch.equal(tensor(shards, i, POOLED), expected.pooled.to(kind))


def test_another_reader_of_these_columns_finds_the_same(tmp_path: Path) -> None:
    """As FastVideo reads: bytes as float32 in the shape beside them, by names and types that it fixes."""
    write(tmp_path, range(3))
    table = pq.read_table(tmp_path / "0-00000.parquet")
    text, number, real = pa.string(), pa.int64(), pa.float64()
    kinds = {"id": text, "file_name": text, "caption": text, "media_type": text, "fps": real, "duration_sec": real}
    kinds |= {"width": number, "height": number, "num_frames": number}
    for name in ("vae_latent", "text_embedding"):
        kinds |= {f"{name}_bytes": pa.binary(), f"{name}_shape": pa.list_(number), f"{name}_dtype": text}
    assert {name: table.schema.field(name).type for name in kinds} == kinds
    for i, found in enumerate(table.to_pylist()):
        expected = row(i)
        latents = np.frombuffer(found["vae_latent_bytes"], np.float32).reshape(found["vae_latent_shape"])
        words = np.frombuffer(found["text_embedding_bytes"], np.float32).reshape(found["text_embedding_shape"])
        assert np.array_equal(latents, expected.latents.numpy())
        assert np.array_equal(words, expected.embeddings[:7].numpy())
        assert (found["vae_latent_dtype"], found["text_embedding_dtype"]) == ("float32", "float32")
        plain = {name: found[name] for name in ("id", "file_name", "media_type", "width", "height", "duration_sec")}
        assert plain == {
            "id": f"clip-{i}",
            "file_name": f"{i}.mp4",
            "media_type": "video",
            "width": 48,
            "height": 40,
            "duration_sec": 9 / 8,
        }


def test_a_row_group_is_a_few_megabytes_or_one_row(tmp_path: Path) -> None:
    big = (16, 4, 80, 80)  # 1.6 MB
    with ShardWriter(tmp_path, "0") as writer:
        for i in range(7):
            writer.add(row(i, big))
    with ShardWriter(tmp_path, "1") as writer:
        for i in range(2):
            writer.add(row(i, (16, 16, 80, 80)))
    read = [pq.read_metadata(path) for path in sorted(tmp_path.iterdir())]
    rows = [[shard.row_group(i).num_rows for i in range(shard.num_row_groups)] for shard in read]
    assert rows == [[3, 3, 1], [1, 1]]
    shards = Shards([tmp_path], COLUMNS)
    assert [shards.group_of(i) for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 3, 4]
    assert torch.equal(tensor(shards, 4, LATENT), row(4, big).latents)


def test_numbers_go_on_and_ids_of_whole_shards_are_done(tmp_path: Path) -> None:
    assert done_ids(tmp_path / "nowhere") == set()
    write(tmp_path / "9x32x32", range(3), rows_per_shard=2)
    write(tmp_path / "9x32x32", range(3, 5), rows_per_shard=2)
    write(tmp_path / "9x48x32", range(5, 6))
    names = [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*.*"))]
    assert names == [f"9x32x32/0-0000{i}.parquet" for i in range(3)] + ["9x48x32/0-00000.parquet"]
    assert done_ids(tmp_path) == {f"clip-{i}" for i in range(6)}


def test_an_exception_leaves_whole_shards_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, "0", rows_per_shard=2) as writer:
        for i in range(3):
            writer.add(row(i))
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["0-00000.parquet"]
    assert done_ids(tmp_path) == {"clip-0", "clip-1"}


def test_a_killed_writer_leaves_nothing_that_is_read_and_the_next_one_clears_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from test_shards import *\n"
        f"writer = ShardWriter({str(tmp_path)!r}, '0', rows_per_shard=2)\n"
        "for i in range(3): writer.add(row(i, (16, 16, 80, 80)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert done_ids(tmp_path) == {"clip-0", "clip-1"} and len(Shards([tmp_path], COLUMNS)) == 2
    write(tmp_path, range(2, 3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0-00000.parquet", "0-00001.parquet"]


def test_nulls_come_back(tmp_path: Path) -> None:
    first, second = row(0), row(1, pooled=False)
    write_nulls(
        tmp_path,
        {"": (first.embeddings, first.mask, first.pooled), "bad, ü": (second.embeddings, second.mask, None)},
    )
    found = read_nulls(tmp_path / "nulls.safetensors")
    assert set(found) == {"", "bad, ü"}
    assert torch.equal(found[""].pooled, first.pooled) and found["bad, ü"].pooled is None
    for prompt, expected in (("", first), ("bad, ü", second)):
        assert torch.equal(found[prompt].embeddings, expected.embeddings)
        assert torch.equal(found[prompt].mask, expected.mask)
    assert read_nulls(tmp_path / "none") == {}
    (tmp_path / "nulls.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"nulls\.safetensors is damaged"):
        read_nulls(tmp_path / "nulls.safetensors")


# Mistakes


def test_a_torn_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    path = tmp_path / "0-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (lambda: Shards([tmp_path], []), lambda: done_ids(tmp_path)):
        with pytest.raises(ValueError, match=r"0-00000\.parquet can't be read .*Remove it and run"):
            read()


def test_a_damaged_page_is_told_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    path, inside = tmp_path / "0-00000.parquet", row(1).latents.numpy().tobytes()[40:80]
    data = bytearray(path.read_bytes())
    data[data.index(inside)] ^= 1
    path.write_bytes(data)
    shards = Shards([tmp_path], COLUMNS)
    with pytest.raises(ValueError, match=r"0-00000\.parquet can't be read"):
        tensor(shards, 1, LATENT)


def test_bytes_that_disagree_with_their_shape_are_told(tmp_path: Path) -> None:
    values = {f"{LATENT}_bytes": bytes(12), f"{LATENT}_shape": [1, 1, 2, 2], f"{LATENT}_dtype": "float32"}
    pq.write_table(pa.Table.from_pylist([{"caption": "a", **values}], SCHEMA), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet.*12 bytes of vae_latent for \[1, 1, 2, 2\] in float32"):
        tensor(Shards([tmp_path], COLUMNS), 0, LATENT)


def foreign_rows(folder: Path, rows: list[dict], **how: object) -> None:
    """A shard as others write it, with latents [4, 1, 2, 2] of ones where a row doesn't say otherwise."""
    values = (np.ones(16, np.float32).tobytes(), [4, 1, 2, 2], "float32")
    full = {"caption": "a", **dict(zip(tensor_columns(LATENT), values, strict=True))}
    schema = pa.schema([SCHEMA.field(name) for name in full])
    pq.write_table(pa.Table.from_pylist([full | row for row in rows], schema), folder / "a.parquet", **how)


@pytest.mark.parametrize("statistics", [True, False])
def test_what_rows_lack_is_in_the_index(tmp_path: Path, statistics: bool) -> None:
    lacking = [
        {},
        {"caption": None},
        {f"{LATENT}_dtype": None},
        {f"{LATENT}_shape": None},
        {f"{LATENT}_dtype": "complex64"},
        {"caption": ""},
        {f"{LATENT}_bytes": None},
    ]
    foreign_rows(tmp_path, lacking, write_statistics=statistics, row_group_size=2)
    shards = Shards([tmp_path], tensor_columns(LATENT))
    last = NO_TENSOR if statistics else SOUND  # null bytes are known where the writer counted them
    assert shards.state_of.tolist() == [SOUND, NO_CAPTION, NO_TENSOR, NO_TENSOR, UNKNOWN_TYPE, SOUND, last]
    assert shards.faults("latents") == [
        "1 without a caption",
        f"{2 + statistics} without latents",
        "1 with latents of an unknown type",
    ]
    group = shards.read(shards.group_of(6), COLUMNS)
    with pytest.raises(ValueError, match=r"row 6 of .*a\.parquet has no vae_latent"):
        group.finite(6, LATENT)


@pytest.mark.parametrize("name", ["<f4", "f4", "float32", "torch.float32", "single"])
def test_types_go_by_numpys_names_too(tmp_path: Path, name: str) -> None:
    foreign_rows(tmp_path, [{f"{LATENT}_dtype": name}])
    shards = Shards([tmp_path], tensor_columns(LATENT))
    assert shards.state_of.tolist() == [SOUND] and tensor(shards, 0, LATENT).equal(torch.ones(4, 1, 2, 2))
    assert known_dtype("<f2") == torch.float16 and known_dtype("|u1") == torch.uint8
    assert [known_dtype(other) for other in (">f4", "<f8", "no type", "(", None, "")] == [None] * 6


def test_numbers_that_are_not_finite_are_told_by_file_and_row(tmp_path: Path) -> None:
    bad = np.ones(16, np.float32)
    bad[3] = np.inf
    foreign_rows(tmp_path, [{}, {}, {f"{LATENT}_bytes": bad.tobytes()}], row_group_size=2)
    shards = Shards([tmp_path], tensor_columns(LATENT))
    group = shards.read(shards.group_of(2), COLUMNS)
    with pytest.raises(ValueError, match=r"row 2 of .*a\.parquet has vae_latent with numbers that are not finite"):
        group.finite(2, LATENT)
    assert shards.read(0, COLUMNS).finite(1, LATENT).equal(torch.ones(4, 1, 2, 2))


def test_places_are_one_or_several_and_may_look_like_numbers() -> None:
    assert listed("one") == [Path("one")] and listed(2024) == [Path("2024")] and listed(Path("a")) == [Path("a")]
    assert listed(["a", 7]) == [Path("a"), Path("7")]
    for nothing in (None, [], "", ["a", None]):
        with pytest.raises(ValueError, match="name at least one"):
            listed(nothing)


def test_a_foreign_parquet_and_empty_places_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        Shards([tmp_path / "nowhere"], [])
    with pytest.raises(ValueError, match="has no parquet file in it"):
        Shards([tmp_path], [])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet is no shard.*columns caption, vae_latent_bytes"):
        Shards([tmp_path], tensor_columns(LATENT))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"latents_dtype": "int8"}, "latents_dtype is 'int8'; shards hold float32, float16, bfloat16"),
        ({"rows_per_shard": 0}, "rows_per_shard is 0"),
    ],
)
def test_settings_that_make_no_shards_are_told(tmp_path: Path, settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ShardWriter(tmp_path, "0", **settings)


def test_a_row_of_wrong_shapes_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip-0 has latents \[4, 3, 5\]"), ShardWriter(tmp_path, "0") as writer:
        writer.add(row(0)._replace(latents=torch.zeros(4, 3, 5)))
    assert list(tmp_path.iterdir()) == []
