"""Clips become shards: each once, in the size that suits it, however often the command is stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, TINY, Said, fork, free_port, start_process
from safetensors import safe_open

from dollar import media
from dollar.data import buckets, probing
from dollar.data.buckets import Bucket, choose, finished, read_ahead, row_ids, spread
from dollar.data.clips import ClipFolder
from dollar.data.encoding import work as store
from dollar.data.listed import Skipped
from dollar.data.skips import Skip, SkipLog, read_skips
from dollar.data.sources import open_source
from dollar.models.codec import Codec
from dollar.models.teacher import Teacher
from dollar.parallel.lock import Lock

NAME = "9x32x32"


def write_clip(folder: Path, name: str, frames: int = 12, height: int = 40, width: int = 48) -> None:
    """A clip of noise with a caption of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(name.encode()))
    noise = rng.integers(0, 256, (frames, height // 8, width // 8, 3), np.uint8)
    media.write_mp4(folder / f"{name}.mp4", noise.repeat(8, 1).repeat(8, 2), 8)
    (folder / f"{name}.txt").write_text(f"a {name} circle")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven clips, of which one is short and one is none."""
    for name in ("a", "b", "c", "d", "e"):
        write_clip(tmp_path / "clips", name)
    write_clip(tmp_path / "clips", "short", 4)
    (tmp_path / "clips" / "torn.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "clips" / "torn.txt").write_text("a caption")
    return tmp_path / "clips"


def arguments(folder: Path, out: Path, teacher_folder: Path, *more: str) -> list[str]:
    tiny = [f"teacher.{key}={value}" for key, value in TINY.items()]
    return [f"data={folder}", f"out={out}", f"teacher.folder={teacher_folder}", *tiny, "parallel.device=cpu", *more]


@pytest.fixture
def run(command: Callable[..., Said], folder: Path, tmp_path: Path, tiny_teacher_folder: Path) -> Callable[..., Said]:
    """run("key=value", ...) preprocesses the seven clips into `out`."""
    return lambda *more: command("preprocess", *arguments(folder, tmp_path / "out", tiny_teacher_folder, *more))


def sentence(said: Said, *words: str) -> None:
    """The last line on standard error says these words, and the exit code says no."""
    assert said.code == 2 and "Traceback" not in said.err
    last = said.err.strip().splitlines()[-1]
    for word in words:
        assert word in last


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def tensor(row: dict[str, Any], name: str) -> torch.Tensor:
    dtype = getattr(torch, row[f"{name}_dtype"])
    return torch.frombuffer(bytearray(row[f"{name}_bytes"]), dtype=dtype).reshape(row[f"{name}_shape"])


# Sizes and windows


SIZES = [Bucket(9, 32, 32), Bucket(17, 32, 32), Bucket(9, 64, 64), Bucket(9, 32, 64), Bucket(33, 32, 64)]


@pytest.mark.parametrize(
    ("frames", "height", "width", "expected"),
    [
        (100, 40, 40, (17, 32, 32)),  # the longest that is long enough
        (16, 40, 40, (9, 32, 32)),  # of two alike the one that enlarges nothing
        (16, 64, 70, (9, 64, 64)),
        (16, 8, 8, (9, 32, 32)),  # both would enlarge: the smaller
        (33, 100, 180, (33, 32, 64)),
        (32, 100, 180, (9, 32, 64)),
        (100, 180, 100, (17, 32, 32)),  # an upright clip is nearer to a square than to a wide one
        (8, 40, 40, None),
        (float("inf"), 40, 90, (33, 32, 64)),
    ],
)
def test_the_bucket_of_a_clip(frames: float, height: int, width: int, expected: tuple[int, ...] | None) -> None:
    assert choose(SIZES, frames, height, width) == expected


def test_windows_are_evenly_spread() -> None:
    assert spread(101, 1) == [50] and spread(1, 5) == [0] and spread(3, 3) == [0, 1, 2]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(2, 3) == [0, 1]  # fewer places than windows


def test_a_clip_is_finished_when_all_its_rows_are_there() -> None:
    whole, part, single = row_ids("x#2.mp4", 3, 3), row_ids("y.mp4", 2, 3), row_ids("z.mp4", 1, 3)
    assert whole == ["x#2.mp4#1of3", "x#2.mp4#2of3", "x#2.mp4#3of3"]
    assert finished({*whole, part[0], *single}, 3) == {"x#2.mp4", "z.mp4"}
    assert finished({whole[0], whole[2]}, 3) == set()  # a shard with the one between was removed
    assert row_ids("a", 1, 1) == ["a"] and finished({"a"}, 1) == {"a"}


def test_reading_ahead_keeps_order_and_bounds() -> None:
    started: list[int] = []
    gate = threading.Event()

    def job(k: int) -> int:
        started.append(k)
        gate.wait(0.002 * (k % 3))
        return k * k

    results = read_ahead(range(40), job, 3, 5)
    for k, result in enumerate(results):
        assert result == k * k
        assert max(started) <= k + 5
    assert sorted(started) == list(range(40))


def test_an_error_while_reading_ahead_reaches_the_caller_and_ends_the_threads() -> None:
    def job(k: int) -> int:
        if k == 3:
            raise ValueError("clip 3")
        return k

    before = threading.active_count()
    got = []
    with pytest.raises(ValueError, match="clip 3"):
        for k in read_ahead(iter(range(10**9)), job, 2, 4):
            got.append(k)
    assert got == [0, 1, 2] and threading.active_count() == before


def test_skips_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip = lambda k: Skipped(f"{k}.mp4", Path(f"{k}.mp4"), "corrupt", f"{k} für 🦆\n or so.")  # noqa: E731
    log = SkipLog(tmp_path, "000")
    log.add(skip(1))
    assert read_skips(tmp_path) == {}
    monkeypatch.setattr("dollar.data.skips.SECONDS", -1.0)
    log.add(skip(2))
    assert read_skips(tmp_path) == {f"{k}.mp4": Skip("corrupt", f"{k} für 🦆\n or so.") for k in (1, 2)}
    again = SkipLog(tmp_path, "000")
    again.add(skip(3))
    assert len(read_skips(tmp_path)) == 3 and again.path.name == "000-00001.jsonl"
    again.path.write_text('{"id": "x"}\n')
    with pytest.raises(ValueError, match="000-00001.jsonl, which remembers .* remove it"):
        read_skips(tmp_path)


# The command


def test_rows_are_what_the_teacher_makes_of_the_clips(
    run: Callable[..., Said], folder: Path, tmp_path: Path, teacher: Teacher
) -> None:
    said = run("rows_per_shard=2", "batch=3")
    assert said.code == 0, said.err
    out = tmp_path / "out"
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"{name}.mp4" for name in "abcde"]
    names = [p.name for p in sorted((out / NAME).iterdir())]
    assert len({name[:12] for name in names}) == 1  # of one process
    assert [name[:4] + name[12:] for name in names] == [f"000--0000{k}.parquet" for k in range(3)]
    plain = ClipFolder(folder, 9, 32, 32, 8)
    for k, row in enumerate(rows):
        clip, caption = plain.clip(k, 0.5)
        video = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
        expected = teacher.codec.moments(video)[0]
        torch.testing.assert_close(tensor(row, "vae_latent"), expected, rtol=1e-5, atol=1e-5)
        text = teacher.text([caption])
        mask = tensor(row, "text_attention_mask").bool()
        assert torch.equal(mask, text.mask[0].bool())
        stored = tensor(row, "text_embedding")
        assert torch.equal(stored, text.embeddings[0][: len(stored)])
        assert (row["caption"], row["file_name"]) == (caption, row["id"])
        assert [row[key] for key in ("width", "height", "num_frames", "fps")] == [32, 32, 9, 8.0]
    with safe_open(out / "nulls.safetensors", "pt") as file:
        assert list((file.metadata() or {}).values()) == [""]
        nulls = [file.get_tensor(name) for name in file.keys() if name.endswith("embeddings")]  # noqa: SIM118
    assert torch.equal(nulls[0], teacher.null(1).embeddings[0])


def test_the_report_and_what_is_remembered(
    run: Callable[..., Said], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    real = probing.examine
    monkeypatch.setattr(buckets, "examine", lambda entry, *how: looked.append(entry.id) or real(entry, *how))
    said = run()
    assert said.code == 0 and f"5 of {NAME}, 1 too short, 1 corrupt" in said.out
    assert "short.mp4 gives 4 frames at 8 fps; 9 are needed" in said.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["written"] == {NAME: 5} and report["skipped"] == {"too short": 1, "corrupt": 1}
    assert sorted(looked) == sorted(p.name for p in folder.glob("*.mp4"))

    looked.clear()
    assert f"5 of {NAME}, 1 too short, 1 corrupt" in run().out and looked == []
    write_clip(folder, "new")
    write_clip(folder, "torn")
    said = run()
    assert f"6 of {NAME}, 1 too short, 1 corrupt" in said.out and looked == ["new.mp4"]
    assert "1 clips (torn.mp4) changed after they had been skipped; retry_skipped=true" in said.out
    looked.clear()
    said = run("retry_skipped=true")
    assert f"7 of {NAME}, 1 too short\n" in said.out and sorted(looked) == ["short.mp4", "torn.mp4"]


def test_what_a_list_left_out_is_encoded_once_the_list_is_mended(
    run: Callable[..., Said], folder: Path, tmp_path: Path
) -> None:
    rows = ["file,caption,fps", "a.mp4,a,8", "b.mp4,b, c,8"]
    (folder / "captions.csv").write_text("\n".join(rows))
    assert f"1 of {NAME}, 6 not listed, 1 too many fields\n" in run().out
    (folder / "captions.csv").write_text("\n".join([*rows[:2], 'b.mp4,"b, c",8', "c.mp4,c,8"]))
    for _ in range(2):
        assert f"3 of {NAME}, 4 not listed\n" in run().out
    ids = [row["id"] for row in rows_of(tmp_path / "out")]
    assert sorted(ids) == ["a.mp4", "b.mp4", "c.mp4"] and len(read_skips(tmp_path / "out" / "skipped")) == 4


def test_a_run_that_is_interrupted_goes_on(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = store.Encoding._write, []

    def stops(self: Any, writer: Any, bucket: Any, group: Any) -> None:
        written.append(group)
        if len(written) == 5:
            raise KeyboardInterrupt
        real(self, writer, bucket, group)

    monkeypatch.setattr(store.Encoding, "_write", stops)
    how = ("rows_per_shard=3", "batch=1", "windows=2")
    assert run(*how).code == 130  # as a shell has it for Ctrl-C
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a.mp4#1of2", "a.mp4#2of2", "b.mp4#1of2"]
    monkeypatch.setattr(store.Encoding, "_write", real)
    assert run(*how).code == 0
    ids = Counter(row["id"] for row in rows_of(tmp_path / "out"))
    assert ids == Counter(f"{name}.mp4#{k}of2" for name in "abcde" for k in (1, 2))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_killed_run_goes_on_with_other_processes(
    run: Callable[..., Said], folder: Path, tmp_path: Path, tiny_teacher_folder: Path, teacher: Teacher
) -> None:
    for k in range(20):
        write_clip(folder, f"more{k}")
    out = tmp_path / "out"
    how = ("rows_per_shard=2", "batch=1", "readers=1")
    started = fork(tmp_path, "preprocess", *arguments(folder, out, tiny_teacher_folder, *how))
    while not list(out.rglob("*-00001.parquet")) and started.is_alive():
        time.sleep(0.002)
    started.kill()
    started.join()
    assert started.exitcode == -signal.SIGKILL
    before = [row["id"] for row in rows_of(out)]
    assert 4 <= len(before) < 25
    settings = store.EncodingSettings(1, "repeat", 2, "float32", "float32", 2, 1, 4, 1.0, False, False)
    source = open_source(folder)
    # As two processes do: both look, then both work.
    works = [store.Encoding(out, source, teacher, [Bucket(9, 32, 32)], settings, rank, 2) for rank in (0, 1)]
    assert abs(len(works[0].own) - len(works[1].own)) <= 1 and max(works[0].own) < min(works[1].own)
    for work in works:
        work.run()
    assert run(*how).code == 0  # and as one again, with nothing left to do
    ids = [row["id"] for row in rows_of(out)]
    assert ids.count("a.mp4") == 1 and Counter(ids) == Counter({f"{p.stem}.mp4" for p in folder.glob("[abcdem]*.mp4")})
    assert not list(out.rglob("*.tmp"))
    assert set(before) <= set(ids) and {p.name[:3] for p in (out / NAME).glob("0*")} == {"000", "001"}


# One command at a time, and its end


def test_a_second_command_in_the_folder_is_refused(run: Callable[..., Said], tmp_path: Path) -> None:
    first = Lock(tmp_path / "out")
    sentence(run(), f"another command writes to {tmp_path / 'out'} (", f"process {os.getpid()} on ", "out=FOLDER")
    also = Lock(tmp_path / "out", rank=1)  # another process of the first command
    also.join()
    first.close()
    sentence(run(), "processes that another command left still write")
    assert not list(tmp_path.rglob("*.parquet")) and not (tmp_path / "out" / "fingerprint.json").exists()
    also.close()
    assert run().code == 0 and run().code == 0


def test_a_file_system_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unknown)
    for rank in (0, 1):
        lock = Lock(tmp_path, rank)
        lock.join()
        lock.close()
        assert "can't be locked (No locks available); run one command at a time" in capsys.readouterr().out


def hold(folder: Path, sign: Path) -> None:
    """Hold a folder as a further process of a run does, and give a sign of it."""
    lock = Lock(folder, 1)
    lock.join()
    sign.touch()
    time.sleep(100)


def test_a_killed_process_lets_the_folder_go(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sign = tmp_path_factory.mktemp("sign") / "holds"
    held = start_process(hold, tmp_path, sign)
    while not sign.exists() and held.is_alive():
        time.sleep(0.01)
    assert held.is_alive()
    with pytest.raises(ValueError, match="processes that another command left still write"):
        Lock(tmp_path)
    held.kill()
    held.join()
    Lock(tmp_path).close()


def test_rows_that_are_there_twice_are_told_and_mended(run: Callable[..., Said], tmp_path: Path) -> None:
    assert run("rows_per_shard=2").code == 0
    shards = sorted((tmp_path / "out" / NAME).iterdir())
    again = pq.read_table(shards[0]).slice(1), pq.read_table(shards[2])
    later = tmp_path / "out" / NAME / "000-aaaaaaaa-00000.parquet"
    pq.write_table(pa.concat_tables(again), later)
    shards[2].unlink()  # so the later one holds a clip of its own too
    said = run()
    assert f"1 rows are there twice; remove {later}, and run" in said.out and f"5 of {NAME}" in said.out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["twice"] == 1
    later.unlink()
    assert "twice;" not in run().out
    assert Counter(row["id"] for row in rows_of(tmp_path / "out")) == Counter(f"{name}.mp4" for name in "abcde")


def test_clips_that_were_edited_are_encoded_anew(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    assert run("rows_per_shard=2", "windows=2").code == 0
    before = {row["id"]: row for row in rows_of(tmp_path / "out")}
    for path in folder.glob("*.mp4"):  # a copy of another date is no edit
        os.utime(path, (1, 1))
    assert "changed" not in run("rows_per_shard=2", "windows=2").out
    write_clip(folder, "c", frames=11)
    (folder / "c.txt").write_text("a c circle")
    (folder / "d.txt").write_text("a new caption")
    said = run("rows_per_shard=2", "windows=2")
    assert "2 clips (c.mp4, d.mp4) changed after they had been encoded, and are encoded anew" in said.out
    rows = rows_of(tmp_path / "out")
    after = {row["id"]: row for row in rows}
    assert len(rows) == len(after) == 10 and after.keys() == before.keys()
    different = {id for id in after if after[id] != before[id]}
    assert different == {"c.mp4#1of2", "c.mp4#2of2", "d.mp4#1of2", "d.mp4#2of2"}
    assert {after[f"d.mp4#{k}of2"]["caption"] for k in (1, 2)} == {"a new caption"}
    assert all(after[id]["vae_latent_bytes"] != before[id]["vae_latent_bytes"] for id in different if id[0] == "c")
    assert "changed" not in run("rows_per_shard=2", "windows=2").out


def test_clips_that_were_taken_out_are_said(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    assert f"5 of {NAME}, 1 too short, 1 corrupt" in run().out
    for path in (*folder.glob("c.*"), *folder.glob("torn.*")):
        path.unlink()
    said = run()
    assert f"5 of {NAME}, 1 too short\n" in said.out
    assert "note: 1 clips (c.mp4) are no longer among the clips, and what was made of them stays" in said.out + said.err


def test_a_fault_of_the_disk_is_not_remembered(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = buckets.read_window

    def failing(file: Any, *how: Any) -> Any:
        if file.name == "b.mp4":
            raise OSError(errno.EIO, "bad disk")
        return real(file, *how)

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "read_window", failing)
        said = run()
    assert f"4 of {NAME}" in said.out and "bad disk; the same command tries it again" in said.out
    assert f"5 of {NAME}" in run().out


def test_clips_that_moved_are_the_same(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    assert run().code == 0
    moved = folder.rename(tmp_path / "mount")
    said = run(f"data={moved}")
    assert said.code == 0 and f"5 of {NAME}" in said.out, said.err
    write_clip(moved, "new")
    assert f"6 of {NAME}" in run(f"data={moved}").out  # clips may be added where they are
    again = moved.rename(tmp_path / "again")
    write_clip(again, "newer")
    sentence(run(f"data={again}"), "preprocess.data was", "it held 16 files", "same=[data.path]")
    assert f"7 of {NAME}" in run(f"data={again}", "same=[data.path]").out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    real, before = store.Encoding._write, signal.getsignal(number)

    def asked(self: Any, writer: Any, bucket: Any, group: Any) -> None:
        if "b.mp4" in (window.id for window in group):
            os.kill(os.getpid(), number)
        real(self, writer, bucket, group)

    monkeypatch.setattr(store.Encoding, "_write", asked)
    said = run("batch=1", "readers=1")
    assert said.code == 3 and "the same command goes on" in said.out and "Traceback" not in said.err
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a.mp4", "b.mp4"]  # though the shard was not full
    assert signal.getsignal(number) == before
    monkeypatch.setattr(store.Encoding, "_write", real)
    assert run().code == 0
    assert Counter(row["id"] for row in rows_of(tmp_path / "out")) == Counter(f"{name}.mp4" for name in "abcde")


def torchrun(line: list[str]) -> None:
    """What torchrun does with a command line; it and what it starts print nothing."""
    from torch.distributed import run as launcher

    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1), os.dup2(nothing, 2)
    launcher.main(line)


def test_processes_end_when_torchrun_is_gone(folder: Path, tmp_path: Path, tiny_teacher_folder: Path) -> None:
    """Long before the work is done, and what they had encoded is kept."""
    for k in range(400):
        for ending in ("mp4", "txt"):
            (folder / f"more{k}.{ending}").hardlink_to(folder / f"a.{ending}")
    out = tmp_path / "out"
    given = arguments(folder, out, tiny_teacher_folder, "rows_per_shard=2", "batch=1", "readers=1")
    line = ["--nproc-per-node=2", str(ROOT / "launch" / "preprocess.py"), *given]
    started = start_process(torchrun, line)
    while not list(out.rglob("*.parquet")) and started.is_alive():
        time.sleep(0.002)
    os.kill(started.pid, signal.SIGKILL)
    started.join()
    until = time.monotonic() + 60
    while True:
        try:
            Lock(out).close()
            break
        except ValueError:  # processes that are left
            assert time.monotonic() < until, "they never end"
            time.sleep(0.1)
    ids = [row["id"] for row in rows_of(out)]
    assert 0 < len(ids) == len(set(ids)) < 400 and not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("rows", [0, 2])
def test_a_full_disk_is_a_sentence(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    real = store.ShardWriter.add
    written: list[Any] = []

    def full(self: Any, row: Any) -> None:
        if len(written) == rows:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(row)
        real(self, row)

    monkeypatch.setattr(store.ShardWriter, "add", full)
    sentence(run("batch=1", "rows_per_shard=1"), f"{tmp_path / 'out'} is full: ", "bytes are free", "bytes are needed")
    assert len(rows_of(tmp_path / "out")) == rows and not list(tmp_path.rglob("*.tmp"))


def test_two_processes_share_the_clips(folder: Path, tmp_path: Path, tiny_teacher_folder: Path) -> None:
    out, port = tmp_path / "out", free_port()
    given = arguments(folder, out, tiny_teacher_folder)
    both = [fork(tmp_path, "preprocess", *given, rank=rank, size=2, port=port) for rank in (0, 1)]
    for started in both:
        started.join(200)
        assert started.exitcode == 0
    printed = "".join((tmp_path / f"{rank}.out").read_text() for rank in (0, 1))
    assert printed.count(f"5 of {NAME}, 1 too short, 1 corrupt") == 1
    shards = {p.name[:3]: pq.read_table(p)["id"].to_pylist() for p in (out / NAME).glob("*-00000.parquet")}
    assert shards == {"000": ["a.mp4", "b.mp4", "c.mp4"], "001": ["d.mp4", "e.mp4"]}


def test_clips_go_into_their_buckets(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    write_clip(folder, "wide", 30, 32, 80)
    write_clip(folder, "wide_short", 12, 32, 80)
    media.Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "still.png")
    (folder / "still.txt").write_text("a still")
    said = run("buckets=[[9,32,32],[9,32,64],[17,32,64]]", "latents_dtype=bfloat16")
    assert said.code == 0, said.err
    found = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert [found["wide.mp4"][key] for key in ("num_frames", "height", "width")] == [17, 32, 64]
    assert found["wide.mp4"]["vae_latent_shape"] == [8, 5, 8, 16]
    assert found["wide.mp4"]["vae_latent_dtype"] == "bfloat16"
    assert found["wide_short.mp4"]["num_frames"] == 9 and found["still.png"]["width"] == 32
    counts = {p.parent.name: pq.read_metadata(p).num_rows for p in (tmp_path / "out").rglob("*.parquet")}
    assert counts == {NAME: 6, "9x32x64": 1, "17x32x64": 1}


def test_small_clips_are_enlarged_only_when_asked(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    write_clip(folder, "half", 12, 16, 16)
    write_clip(folder, "small", 12, 40, 8)
    media.Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "still.png")
    (folder / "still.txt").write_text("a still")
    said = run()
    assert said.code == 0 and f"6 of {NAME}, 2 too small" in said.out
    assert "small.mp4 is 8x40, less than half of 32x32 on a side; enlarge=true" in said.out
    assert f"8 of {NAME}, " in run("enlarge=true", "retry_skipped=true").out
    assert {"half.mp4", "small.mp4", "still.png"} < {row["id"] for row in rows_of(tmp_path / "out")}


def test_shards_may_not_lie_among_the_clips(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    for out, data in (
        (folder, folder),
        (folder / "deep" / "out", folder),
        (folder / ".." / "clips" / "out", folder),
        (folder / "out", f"{tmp_path}/**/*.tar"),
        (folder / "out", f"[{folder},{tmp_path / 'other'}]"),
    ):
        sentence(run(f"data={data}", f"out={out}"), "lies in the folder of the clips")
    assert not list(tmp_path.rglob(".lock"))


def test_the_same_folder_by_another_path_goes_on(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    assert run().code == 0
    (tmp_path / "link").symlink_to(folder)
    for data in (folder / ".." / "clips", os.path.relpath(folder), tmp_path / "link"):
        said = run(f"data={data}")
        assert said.code == 0 and f"5 of {NAME}" in said.out, said.err


def test_other_settings_are_refused(run: Callable[..., Said], tmp_path: Path) -> None:
    assert run().code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    said = run("windows=2", "teacher.fps=4")
    sentence(
        said, "another configuration", "preprocess.fps was 8.0, now 4.0", "preprocess.windows was 1, now 2", "out="
    )
    sentence(run("teacher.frozen_dtype=bfloat16"), "preprocess.frozen_dtype was float32, now bfloat16")
    sentence(run("buckets=[[9,32,64]]"), "preprocess.buckets was [[9, 32, 32]], now [[9, 32, 64]]")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    (tmp_path / "out" / "fingerprint.json").unlink()
    sentence(run(), "holds parquet files but no fingerprint.json")


def test_too_many_bad_clips_stop_it(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    sentence(run("max_bad_fraction=0.2"), "2 of the 7 clips can't be used", "29%", "retry_skipped=true")
    assert len(rows_of(tmp_path / "out")) == 5  # they are kept
    assert run("max_bad_fraction=0.3").code == 0
    for k in range(30):
        (folder / f"bad{k:02d}.mp4").write_bytes(b"x")
        (folder / f"bad{k:02d}.txt").write_text("a caption")
    sentence(run("max_bad_fraction=0.5", "readers=1"), "19 of the 37 clips can't be used")
    assert len(read_skips(tmp_path / "out" / "skipped")) == 19  # the rest can't make it good


def test_bad_clips_that_come_first_stop_nothing_that_the_rest_makes_good(
    run: Callable[..., Said], folder: Path, tmp_path: Path
) -> None:
    for name in ("0bad", "1bad", "2bad"):
        (folder / f"{name}.mp4").write_bytes(b"x")
        (folder / f"{name}.txt").write_text("a caption")
    assert run("max_bad_fraction=0.5").code == 0 and len(rows_of(tmp_path / "out")) == 5


def test_a_source_without_one_usable_clip(
    command: Callable[..., Said], tmp_path: Path, tiny_teacher_folder: Path
) -> None:
    write_clip(tmp_path / "clips", "short", 4)
    given = arguments(tmp_path / "clips", tmp_path / "out", tiny_teacher_folder, "max_bad_fraction=1")
    sentence(command("preprocess", *given), "not one clip could be used")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data=null"], ["data is not given", "data=PATH"]),
        (["out=null"], ["out is not given"]),
        (["data=nowhere at, all"], ["nowhere at, all does not exist"]),
        (["data=[one.tar,two.tar]"], ["one.tar does not exist"]),
        (["windows=0"], ["windows is 0", "at least 1"]),
        (["windows=many"], ["windows is a whole number"]),
        (["max_bad_fraction=1.5"], ["max_bad_fraction is 1.5"]),
        (["latents_dtype=int8"], ["latents_dtype is 'int8'", "bfloat16"]),
        (["data.stills=maybe"], ["data.stills is 'maybe'"]),
        (["buckets=9"], ["buckets is 9", "[frames, height, width]"]),
        (["buckets=[9,32,32]"], ["[frames, height, width]"]),
        (["buckets=[[9,32,-32]]"], ["buckets is [[9, 32, -32]]"]),
        (["data.movie=a"], ["no key 'data.movie'"]),
        (["teacher.text=stored"], ["captions are encoded here"]),
    ],
)
def test_mistakes_are_sentences(
    run: Callable[..., Said], given: list[str], said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was loaded first")

    monkeypatch.setattr("dollar.parallel.world.start", loaded)
    sentence(run(*given), *said)
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_teacher_cannot_make_is_refused(run: Callable[..., Said], tmp_path: Path) -> None:
    sentence(run("buckets=[[9,32,32],[10,32,32]]"), "the bucket [10, 32, 32] doesn't suit this teacher", "10")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]


def test_the_path_may_hold_anything(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "clips, of {1..2} (old) ${x} = 'a' \"b\""
    folder.rename(odd)
    said = run(f"data={odd}", "max_bad_fraction=0.4")
    assert said.code == 0 and f"5 of {NAME}" in said.out


def test_latents_that_are_not_finite_are_not_stored(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Codec.moments
    monkeypatch.setattr(Codec, "moments", lambda codec, videos: real(codec, videos) / 0)
    sentence(run(), "latents of", "a.mp4 are not finite", "frozen_dtype=float32")
    assert rows_of(tmp_path / "out") == []


def test_tars_and_names_that_are_no_text(run: Callable[..., Said], folder: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.mp4")
    (folder / "a.mp4").rename(folder / odd)
    (folder / "a.txt").rename((folder / odd).with_suffix(".txt"))
    for name, members in (("0", (odd, "b.mp4")), ("1", ("c.mp4", "torn.mp4"))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for file in (folder / member for member in members):
                tar.add(file, file.name)
                tar.add(file.with_suffix(".txt"), file.with_suffix(".txt").name)
    assert run(f"data=[{tmp_path}/0.tar,{tmp_path}/1.tar]").code == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [r"0.tar:\udcff", "0.tar:b", "1.tar:c"]
    assert list(read_skips(tmp_path / "out" / "skipped")) == ["1.tar:torn"]
    said = run(f"out={tmp_path / 'other'}")
    assert said.code == 0 and [row["file_name"] for row in rows_of(tmp_path / "other")][-1] == r"\udcff.mp4"


def test_training_commands_keep_their_data(command: Callable[..., Said]) -> None:
    """data=PATH is preprocess's; where data is a group it stays one."""
    from dollar.cli.arguments import as_they_stand

    assert as_they_stand("train", ["data=shapes"]) == ["data=shapes"]
    assert as_they_stand("preprocess", ["data=a b"]) == ['data.path="a b"']
    assert as_they_stand("preprocess", ["data=[a,b]"]) == ['data.path=["a","b"]']


@pytest.mark.skipif(not (ROOT.parent / "shared" / "clips").is_dir(), reason="the ten real clips are not here")
def test_ten_real_clips(command: Callable[..., Said], tmp_path: Path, tiny_teacher_folder: Path) -> None:
    given = arguments(ROOT.parent / "shared" / "clips", tmp_path / "out", tiny_teacher_folder, "windows=2")
    said = command("preprocess", *given)
    assert said.code == 0 and f"20 of {NAME}" in said.out and "captions are longer than the 12 tokens" in said.out
