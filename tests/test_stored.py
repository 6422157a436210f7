"""Training from shards: every row once an epoch, the same from any start; read ahead as plainly; prompts looked up."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TinyClips
from test_shards import row, write

from dollar.data.latents import Batch, check_identity
from dollar.data.nulls import write_nulls
from dollar.data.shard_format import EMBEDDING, SCHEMA, StoredClip, tensor_columns
from dollar.data.shard_writer import ShardWriter
from dollar.data.stored import LatentShards, StoredText
from dollar.data.walk import Walk
from dollar.models.denoiser import Condition
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.training.loop import Loop

SHAPE = (4, 3, 5, 6)
ROWS = 23


def doubled(z: torch.Tensor) -> torch.Tensor:
    return 2 * z


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 rows in two parts of small shards, as two processes of preprocessing leave them."""
    bucket = tmp_path / "out" / "9x40x48"
    write(bucket, range(14), "0", rows_per_shard=4)
    write(bucket, range(14, ROWS), "1", rows_per_shard=4)
    return tmp_path / "out"


def opened(folder: Path, **settings: object) -> LatentShards:
    return LatentShards(folder, SHAPE, doubled, seed=3, **settings)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("shards")]


# The order


@pytest.mark.parametrize("block_rows", [1, 7, 10**6])
def test_every_row_comes_once_an_epoch_in_a_new_order(block_rows: int) -> None:
    walk = Walk(np.array([5, 1, 8, 3]), 0, block_rows)
    epochs = [[walk(17 * epoch + i) for i in range(17)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Walk(np.array([5, 1, 8, 3]), 1, block_rows)(i) for i in range(17)] != epochs[0]


def test_an_epoch_goes_through_the_files_block_by_block() -> None:
    """Files of 10 rows, blocks of two: each run of 20 samples is of two files, mixed; files don't come by name."""
    walk = Walk(np.full(8, 10), 0, block_rows=20)
    files = [[walk(20 * block + i) // 10 for i in range(20)] for block in range(4)]
    assert all(len(set(block)) == 2 and block != sorted(block) for block in files)
    assert sorted(file for block in files for file in set(block)) == list(range(8))
    assert [set(block) for block in files] != [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    later = [{walk(80 + 20 * block + i) // 10 for i in range(20)} for block in range(4)]
    assert later != [set(block) for block in files]


def test_samples_are_the_same_from_any_start_and_for_any_process(folder: Path) -> None:
    data = opened(folder, block_bytes=4 * 5 * 4 * 90)
    walked = [data.batch(range(i, i + 2)) for i in range(0, 3 * ROWS, 2)]
    prompts = [prompt for batch in walked for prompt in batch.prompts]
    latents = torch.cat([batch.latents for batch in walked])
    for epoch in range(3):
        assert sorted(prompts[ROWS * epoch : ROWS * (epoch + 1)]) == sorted(f"clip {i}" for i in range(ROWS))
    fresh = opened(folder, block_bytes=4 * 5 * 4 * 90).batch(range(ROWS + 4, ROWS + 10))
    assert fresh.prompts == prompts[ROWS + 4 : ROWS + 10]
    assert torch.equal(fresh.latents, latents[ROWS + 4 : ROWS + 10])
    strided = [opened(folder, block_bytes=4 * 5 * 4 * 90).batch(range(rank, 8, 2)) for rank in range(2)]
    assert [strided[i % 2].prompts[i // 2] for i in range(8)] == prompts[:8]


def test_a_sample_is_its_rows_latents_normalised_under_its_caption(folder: Path) -> None:
    data = opened(folder)
    assert len(data) == ROWS and sorted(data.captions) == sorted(f"clip {i}" for i in range(ROWS))
    batch = data.batch(range(ROWS))
    for prompt, latents, (place, _) in zip(batch.prompts, batch.latents, batch.keys, strict=True):
        assert torch.equal(latents, 2 * row(int(prompt.split()[1])).latents)
        assert data.captions[place] == prompt
    assert len(set(batch.keys)) == ROWS
    bare = data.batch(range(ROWS), latents=False)
    assert bare.latents is None and bare.prompts == batch.prompts and bare.keys == batch.keys


def test_a_process_reads_no_row_groups_but_those_of_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardWriter(tmp_path, "0") as writer:
        for i in range(6):
            writer.add(row(i, (16, 16, 64, 64)))  # 4 MB, a group each
    data = LatentShards(tmp_path, (16, 16, 64, 64), doubled, 0, cache_bytes=13_000_000)
    data.close()  # what is read ahead comes on top
    read, plain = [], data._shards.read
    monkeypatch.setattr(data._shards, "read", lambda n, c: read.append(n) or plain(n, c))
    batch = data.batch([0, 2, 4])
    assert [f"clip {n}" for n in read] == batch.prompts
    data.batch([0, 2, 4])
    assert len(read) == 3
    data.batch([1, 3, 5])
    assert len(read) == 6 and len(data._cache._groups) == 3 and data._cache._groups.currsize <= 13_000_000


# Reading ahead


def test_what_is_read_ahead_is_what_is_read_plainly(folder: Path) -> None:
    plain, told = opened(folder), opened(folder)
    plain.close()
    for start in range(0, 60, 3):
        samples = range(start, start + 3)
        expected = plain.batch(samples)
        told.ahead(range(start + 3, start + 6))
        found = told.batch(samples)
        assert found.prompts == expected.prompts and torch.equal(found.latents, expected.latents)
    assert not plain._coming and told._coming


def test_the_thread_has_read_what_was_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(folder)
    data.ahead(range(5))
    data._pool.shutdown(wait=True)
    monkeypatch.setattr(data._shards, "read", lambda *_: pytest.fail("it should be in memory"))
    assert data.batch(range(5)).latents.shape == (5, *SHAPE)


def test_an_error_in_the_thread_reaches_the_caller_as_its_sentence(folder: Path) -> None:
    data = opened(folder)
    kept = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    for path in kept:
        path.write_bytes(b"gone")
    data.ahead(range(2))
    while not all(future.done() for future in data._coming.values()):
        time.sleep(0.01)
    for path, data_before in kept.items():
        path.write_bytes(data_before)  # the caller itself would find nothing wrong
    with pytest.raises(ValueError, match=r"\.parquet can't be read .*Remove it"):
        data.batch(range(2))


def test_no_thread_outlives_its_reader(folder: Path) -> None:
    gc.collect()
    before = set(readers())
    closed, dropped = opened(folder), opened(folder)
    for data in (closed, dropped):
        data.ahead(range(ROWS))
    threads = set(readers()) - before
    assert len(threads) == 4
    closed.close()
    closed.close()
    del data, dropped
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert closed.batch([0]).latents is not None


# What fits


def test_rows_of_other_shapes_are_left_out_and_counted(folder: Path) -> None:
    with ShardWriter(folder / "9x40x64", "0") as writer:
        for i in range(30, 33):
            writer.add(row(i, (4, 3, 5, 8)))
    data = opened(folder)
    assert len(data) == ROWS and data.report.endswith("; rows that are left out: 3 of other latent shapes")
    wide = LatentShards(folder, (4, 3, 5, 8), doubled, 0)
    assert sorted(wide.batch(range(3)).prompts) == ["clip 30", "clip 31", "clip 32"]
    with pytest.raises(ValueError, match=r"are \[4, 3, 9, 9\].*23 of \[4, 3, 5, 6\], 3 of \[4, 3, 5, 8\].*buckets="):
        LatentShards(folder, (4, 3, 9, 9), doubled, 0)


def test_rows_without_a_caption_are_left_out_and_counted(folder: Path) -> None:
    file = folder / "9x40x48" / "2-00000.parquet"
    (folder / "9x40x48" / "0-00000.parquet").rename(file)
    table = pq.read_table(file)
    captions = pa.array([None, *table["caption"].to_pylist()[1:]], pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("caption"), "caption", captions), file)
    data = opened(folder)
    assert len(data) == ROWS - 1 and "; rows that are left out: 1 without a caption" in data.report
    prompts = [prompt for i in range(2 * ROWS) for prompt in data.batch([i]).prompts]
    assert set(prompts) == {f"clip {i}" for i in range(1, ROWS)}
    with pytest.raises(ValueError, match=r"the prompt '' is not stored in .*1 without a caption"):
        text_of(folder)([""])


def test_latents_that_are_not_finite_stop_the_run_by_name(folder: Path) -> None:
    with ShardWriter(folder, "bad") as writer:
        writer.add(row(40)._replace(latents=torch.full(SHAPE, float("nan"))))
    with pytest.raises(ValueError, match=r"row 0 of .*bad-00000\.parquet has vae_latent with numbers that are not"):
        opened(folder).batch(range(ROWS + 1))


def test_an_identity_tells_other_files_and_rows_but_not_another_place(folder: Path, tmp_path: Path) -> None:
    before = opened(folder).identity()
    assert before == json.loads(json.dumps(before)) and (before["clips"], before["files"]) == (ROWS, 7)
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert opened(moved).identity() == before
    file = moved / "9x40x48" / "0-00003.parquet"
    renamed = file.rename(file.with_name("z.parquet"))
    assert opened(moved).identity()["rows"] != before["rows"]
    renamed.rename(file)
    write(moved / "9x40x48", range(30, 31), "1")
    after = opened(moved).identity()
    with pytest.raises(ValueError, match=r"other data \(clips 23 then, 24 now; files 7 then, 8 now; .*run=NAME"):
        check_identity(before, after)
    check_identity({}, after)  # of a checkpoint from before there was any


@pytest.mark.parametrize("key", ["cache_bytes", "block_bytes"])
def test_less_than_no_memory_is_told(folder: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"data.{key} is -1"):
        opened(folder, **{key: -1})


def test_row_groups_larger_than_the_memory_for_them_are_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"row groups of 0\.00\d GiB.*Raise data\.cache_bytes"):
        opened(folder, cache_bytes=1000)


def test_a_family_may_pad_what_is_stored(folder: Path) -> None:
    def padded(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z[:, :, :1], z], 2)

    data = LatentShards(folder, (4, 4, 5, 6), padded, 0)
    batch = data.batch([5])
    assert torch.equal(batch.latents[0], padded(row(int(batch.prompts[0].split()[1])).latents[None])[0])


def test_another_teachers_folder_is_refused_by_what_differs(folder: Path) -> None:
    (folder / "fingerprint.json").write_text(json.dumps({"vae": "abc", "scaling": [0.7, 1], "fps": 8}))
    opened(folder, fingerprint={"vae": "abc", "scaling": (0.7, 1), "text_length": 12})
    for path in (folder, folder / "9x40x48"):
        with pytest.raises(ValueError, match="another teacher: vae abc there, xyz here. Train with the teacher that"):
            opened(path, fingerprint={"vae": "xyz", "scaling": (0.7, 1)})


def test_another_speed_is_told_and_a_broken_fingerprint_too(folder: Path) -> None:
    file = folder / "fingerprint.json"
    file.write_text(json.dumps({"vae": "abc", "preprocess": {"fps": 8.0}}))
    opened(folder, fingerprint={"vae": "abc", "fps": 8.0})
    opened(folder, fingerprint={"vae": "abc"})
    with pytest.raises(
        ValueError, match=r"clips of 8\.0 frames a second, and this teacher's have 16\.0\. Set teacher.f"
    ):
        opened(folder, fingerprint={"vae": "abc", "fps": 16.0})
    for broken in ("[]", "3", '{"preprocess": [1]}', "{", '{"preprocess": null}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"fingerprint\.json is damaged"):
            opened(folder, fingerprint={"vae": "abc", "fps": 8.0})


# Stored text


def text_of(folder: Path, length: int = 12, **settings: object) -> StoredText[Condition]:
    return StoredText([folder], length, Condition, **settings)


def test_prompts_are_looked_up_and_padded(folder: Path) -> None:
    text = text_of(folder, 15, cache_bytes=1)
    found = text(["clip 20", "clip 3", "clip 20"])
    assert found.embeddings.shape == (3, 15, 8) and found.embeddings.dtype == torch.float32
    for i, number in enumerate((20, 3, 20)):
        expected = row(number)
        assert torch.equal(found.embeddings[i, :12], expected.embeddings) and not found.embeddings[i, 12:].any()
        assert torch.equal(found.mask[i, :12], expected.mask) and not found.mask[i, 12:].any()
        assert torch.equal(found.pooled[i], expected.pooled)
    assert text.unknown("clip 3") == [] and text.device == torch.device("cpu")


def test_captions_with_one_hash_are_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredText, "_hash", staticmethod(lambda prompt: 0))
    text = text_of(folder)
    for number in (0, 11, 22):
        assert torch.equal(text([f"clip {number}"]).embeddings[0], row(number).embeddings)
    with pytest.raises(ValueError, match="'clip 23' is not stored"):
        text(["clip 23"])


def test_the_null_prompts_are_known_and_others_are_told(folder: Path) -> None:
    null = row(99)
    write_nulls(folder, {"": (null.embeddings, null.mask, null.pooled)})
    for path in (folder, folder / "9x40x48"):
        assert torch.equal(text_of(path)([""]).embeddings[0], null.embeddings)
    with pytest.raises(ValueError, match=r"'a dog' is not stored in .*preprocess\.py, or load the text encoder"):
        text_of(folder)(["a dog"])
    (folder / "nulls.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the prompt '' is not stored.*nulls\.safetensors"):
        text_of(folder)([""])


def test_null_prompts_may_come_from_another_folder_of_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    other, null = tmp_path / "other", row(99)
    write_nulls(other, {"": (null.embeddings, null.mask, null.pooled), "ugly": (null.embeddings, null.mask, None)})
    for place in (other, other / "nulls.safetensors"):
        assert torch.equal(text_of(folder, nulls=place)([""]).embeddings[0], null.embeddings)
    (other / "fingerprint.json").write_text(json.dumps({"vae": "another", "text_encoder": "b", "text_length": 12}))
    text_of(folder, nulls=other, fingerprint={"vae": "a", "text_encoder": "b", "text_length": 12})
    with pytest.raises(ValueError, match="other was made with another teacher: text_encoder b there, c here"):
        text_of(folder, nulls=other, fingerprint={"vae": "a", "text_encoder": "c"})
    with pytest.raises(ValueError, match=r"data\.nulls=.*nowhere: there is no .*nowhere/nulls\.safetensors; any run"):
        text_of(folder, nulls=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"the prompt '' is not stored.*give data\.nulls=FOLDER.*preprocess\.py"):
        text_of(folder)([""])


def test_captions_without_an_embedding_are_known_before_training(tmp_path: Path) -> None:
    rows = [foreign(row(i)) for i in range(4)]
    rows[2] |= dict.fromkeys(tensor_columns(EMBEDDING))
    schema = pa.schema([SCHEMA.field(name) for name in ["id", "caption", *tensor_columns(EMBEDDING)]])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    text = text_of(tmp_path)
    text.check(["clip 0", "clip 3"])
    with pytest.raises(ValueError, match=r"2 captions have no .*1 without a text embedding.* the first .* 'clip 2'"):
        text.check(["clip 0", "clip 2", "clip 9"])
    with pytest.raises(ValueError, match="'clip 2' is not stored"):
        text(["clip 2"])


def test_an_embedding_of_a_wrong_shape_is_told_by_file_and_row(tmp_path: Path) -> None:
    rows = [foreign(row(i)) for i in range(2)]
    rows[1][f"{EMBEDDING}_shape"] = [96]
    schema = pa.schema([SCHEMA.field(name) for name in ["id", "caption", *tensor_columns(EMBEDDING)]])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 1 of .*a\.parquet has a text embedding \[96\]; it must be \[L, D\]"):
        text_of(tmp_path)(["clip 1"])


def test_more_tokens_than_the_teacher_reads_are_told(folder: Path) -> None:
    assert text_of(folder, 7)(["clip 1"]).embeddings.shape == (1, 7, 8)  # only zeros are cut
    with pytest.raises(ValueError, match=r"'clip 1' is stored with 7 tokens.*teacher\.text_length=6"):
        text_of(folder, 6)(["clip 1"])


def foreign(given: StoredClip) -> dict:
    """A row as others write it: no mask, no pooled embedding, a leading 1 before the embeddings."""
    words = given.embeddings[None].numpy()
    columns = (words.tobytes(), list(words.shape), str(words.dtype))
    return {"id": given.id, "caption": given.caption, **dict(zip(tensor_columns(EMBEDDING), columns, strict=True))}


def test_text_of_foreign_shards_has_its_mask_from_its_zeros(tmp_path: Path) -> None:
    names = ["id", "caption", *tensor_columns(EMBEDDING)]
    schema = pa.schema([SCHEMA.field(name) for name in names])
    pq.write_table(pa.Table.from_pylist([foreign(row(i)) for i in range(4)], schema), tmp_path / "a.parquet")
    found = text_of(tmp_path)(["clip 2"])
    assert found.pooled is None
    assert torch.equal(found.embeddings[0], row(2).embeddings) and torch.equal(found.mask[0], row(2).mask)


def test_pooled_embeddings_of_some_prompts_only_are_told(folder: Path) -> None:
    null = row(99)
    write_nulls(folder, {"": (null.embeddings, null.mask, None)})
    assert text_of(folder)([""]).pooled is None
    with pytest.raises(ValueError, match="have pooled embeddings and some don't"):
        text_of(folder)(["", "clip 1"])


# Training


@pytest.fixture(scope="module")
def stored(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny clips as preprocessing leaves them for the tiny teacher."""
    out = tmp_path_factory.mktemp("stored")
    clips = TinyClips(size=12)
    with ShardWriter(out / "9x32x32", "0", rows_per_shard=5) as writer:
        for i in range(12):
            clip, caption = clips.clip(i, 0.0)
            video = torch.from_numpy(clip).permute(0, 3, 1, 2)[None] / 255
            embeddings, mask, _ = teacher.text.encode([caption])
            latents = teacher.codec.moments(video)[0]
            writer.add(StoredClip(str(i), f"{i}", caption, latents, embeddings[0], mask[0], None, 32, 32, 9, 8.0))
    embeddings, mask, _ = teacher.text.encode([""])
    write_nulls(out, {"": (embeddings[0], mask[0], None)})
    (out / "fingerprint.json").write_text(json.dumps(teacher.fingerprint() | {"preprocess": {"windows": 1}}))
    return out


def losses(loop: Loop) -> list[dict]:
    assert loop.train()
    lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]


def test_stored_clips_and_prompts_train_as_encoded_ones(
    build: Callable[..., Loop], stored: Path, teacher: Teacher, capsys: pytest.CaptureFixture
) -> None:
    """A sample's latents are what the codec makes of its clip; stored prompts give the same run as encoded ones."""
    data = ("data=latents", f"data.path={stored}")
    online = build(data=data)
    assert "12 stored clips in 3 shards" in capsys.readouterr().out
    clips = TinyClips(size=12)
    batch = online.data.batch(range(12))
    for caption, latents in zip(batch.prompts, batch.latents, strict=True):
        videos = [clips.clip(i, 0.0)[0] for i in range(12) if clips.captions[i] == caption]
        pixels = torch.from_numpy(np.stack(videos)).permute(0, 1, 4, 2, 3).float() / 255
        assert any(torch.equal(latents, made) for made in teacher.codec.encode(pixels))
    offline = build("++teacher.text=stored", data=data)
    assert isinstance(offline.method.run.text, StoredText)
    expected = losses(online)
    assert losses(offline) == expected and any("loss/cd" in line for line in expected)


def test_a_run_on_shards_goes_on_exactly(build: Callable[..., Loop], stored: Path) -> None:
    data = ("data=mixture", f"data.paths=[{stored},{stored / '9x32x32'}]", "data.weights=[1,3]")
    unbroken, first, second = (build("lrm.mismatched=true", data=data) for _ in range(3))
    unbroken.timetable.cycles = second.timetable.cycles = 4
    assert unbroken.train() and first.train()
    second.load(checkpoint.load(checkpoint.newest(first.folder / "checkpoints")))
    assert second.train()
    for name, value in unbroken.state()[0].items():
        assert value.equal(second.state()[0][name]), name


def test_a_run_does_not_go_on_with_other_shards(build: Callable[..., Loop], stored: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(stored, tmp_path / "copy"))
    data = ("data=latents", f"data.path={place}")
    first = build("cycles=1", "beta_ft=0", data=data)
    assert first.train()
    state = checkpoint.load(checkpoint.newest(first.folder / "checkpoints"))
    build("cycles=2", "beta_ft=0", data=data).load(state)
    shutil.copy(place / "9x32x32" / "0-00000.parquet", place / "9x32x32" / "0-00003.parquet")
    with pytest.raises(ValueError, match="begun on other data .clips 12 then, 17 now; files 3 then, 4 now"):
        build("cycles=2", "beta_ft=0", data=data).load(state)


@pytest.mark.parametrize("settings", [(), ("student.input=noised_data", "fake_updates=3"), ("beta_cd=0",)])
def test_all_latents_of_a_cycle_have_been_told_before(
    build: Callable[..., Loop], stored: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """What a cycle asks for is what its start told of it, in order, and what the cycle before told."""
    loop = build(*settings, data=("data=latents", f"data.path={stored}"))
    told, asked, plain = [], [], loop.data.batch
    monkeypatch.setattr(loop.data, "ahead", lambda samples: told.append(list(samples)))

    def watched(samples: Sequence[int], latents: bool = True) -> Batch:
        asked[-1] += list(samples) if latents else []
        return plain(samples, latents)

    monkeypatch.setattr(loop.data, "batch", watched)
    for cycle in range(3):
        asked.append([])
        loop.run_cycle(cycle)
    assert all(asked) and told == [asked[0] + asked[1], asked[1] + asked[2], asked[2]]


def test_without_guidance_no_null_prompt_is_needed(build: Callable[..., Loop], stored: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(stored, tmp_path / "bare"))
    (place / "nulls.safetensors").unlink()
    data, text = ("data=latents", f"data.path={place}"), "++teacher.text=stored"
    unguided = ("vsd.guidance_scale=1", "cd.guidance_scale=1")
    assert build(text, *unguided, "lrm.text=true", data=data).train()
    for guided in ("vsd.guidance_scale=2", "cd.guidance_scale=2", "validation.every=2"):
        with pytest.raises(ValueError, match=r"the prompt '' is not stored.*data\.nulls=FOLDER"):
            build(text, *unguided, guided, data=data)
    assert build(text, data=(*data, f"data.nulls={stored}")).train()


def test_prompts_alone_train_with_a_reward_on_what_is_made(build: Callable[..., Loop], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(TinyClips(size=9).captions))
    data = ("data=prompts", f"data.path={tmp_path / 'prompts.txt'}")
    unbroken, first, second = (build("beta_cd=0", data=data) for _ in range(3))
    unbroken.timetable.cycles = second.timetable.cycles = 4
    lines = losses(unbroken)
    assert all("loss/lrm" in line and "reward/data" not in line and np.isfinite(line["reward/true"]) for line in lines)
    assert len(unbroken.method.run.surrogate.past[-1].prompts) == 2  # lrm.clips, of x_hat alone
    assert first.train()
    second.load(checkpoint.load(checkpoint.newest(first.folder / "checkpoints")))
    assert losses(second)[-1] == lines[-1]
    with pytest.raises(ValueError, match=r"beta_cd=0\.5 and .* prompts alone; set beta_cd=0"):
        build("beta_cd=0.5", data=data)
    with pytest.raises(ValueError, match=r"beta_adversarial=0\.5 .* prompts alone; set beta_adversarial=0, or give"):
        build("beta_cd=0", "beta_adversarial=0.5", data=data)
    with pytest.raises(ValueError, match="student.input=noised_data, but this data has prompts alone"):
        build("beta_cd=0", "student.input=noised_data", data=data)


def test_stored_text_needs_data_that_has_it_of_the_same_models(
    build: Callable[..., Loop], stored: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"teacher\.text is stored, but this data stores none; use data=latents"):
        build("++teacher.text=stored")
    other = Path(shutil.copytree(stored, tmp_path / "other"))
    changed = json.loads((other / "fingerprint.json").read_text()) | {"text_encoder": "other"}
    (other / "fingerprint.json").write_text(json.dumps(changed))
    data = ("data=latents", f"data.path={other}")
    build(data=data)  # its prompts are encoded anew, so how they were doesn't matter
    with pytest.raises(ValueError, match="made with another teacher: text_encoder other there"):
        build("++teacher.text=stored", data=data)
