"""What looking into clips found is kept beside them, and never trusted after an edit."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import free_port, start_process

from dollar import media
from dollar.data import probed, probing
from dollar.data.clips import ClipFolder
from dollar.parallel.world import World

SIZE = (17, 32, 32, 8)  # frames, height, width, fps


def film(frames: int = 17) -> np.ndarray:
    return np.repeat(np.arange(frames, dtype=np.uint8)[:, None, None, None] * 9, 32, 1).repeat(32, 2).repeat(3, 3)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that were looked into since this was last cleared."""
    seen: list[str] = []
    real = probing.look_at

    def counted(file: Any) -> Any:
        seen.append(file.name)
        return real(file)

    monkeypatch.setattr(probed.Memory.__init__, "__defaults__", (counted,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for name in "abc":
        media.write_mp4(folder / f"{name}.mp4", film(), 8)
        (folder / f"{name}.txt").write_text(f"caption {name}")
    (folder / "b.mp4").write_bytes(b"no film" * 50)
    return folder


def test_a_second_start_opens_no_clip(clips: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = ClipFolder(clips, *SIZE)
    assert sorted(looks) == ["a.mp4", "b.mp4", "c.mp4"]
    looks.clear()
    monkeypatch.setattr(av, "open", lambda *a: pytest.fail("a clip was opened"))
    again = ClipFolder(clips, *SIZE)
    assert looks == [] and again.items == first.items and again.report == first.report
    # 17 frames at 8 fps last two seconds: 9 frames at 4 fps have one start, 5 of them five, and 18 at 8 fps none.
    assert [i.windows for i in ClipFolder(clips, 5, 32, 32, 4).items] == [5, 5]
    with pytest.raises(ValueError, match=r"100% .* 2 too short, 1 corrupt"):
        ClipFolder(clips, 18, 32, 32, 8)
    with pytest.raises(ValueError, match=r"are bad; at most 10%"):
        ClipFolder(clips, *SIZE, max_bad_fraction=0.1)
    assert looks == []


def in_place(path: Path) -> None:
    """Another film of the same size in bytes, at another time."""
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def backdated(path: Path) -> None:
    media.write_mp4(path, film(9), 8)
    os.utime(path, ns=(10**18, 10**18))


def as_if_untouched(path: Path) -> None:
    times = path.stat()
    in_place(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("edit", [in_place, backdated, as_if_untouched, lambda path: media.write_mp4(path, film(9), 8)])
def test_an_edited_clip_is_looked_into_again(clips: Path, looks: list[str], edit: Callable[[Path], None]) -> None:
    ClipFolder(clips, *SIZE)
    looks.clear()
    edit(clips / "c.mp4")
    ClipFolder(clips, *SIZE, max_bad_fraction=1.0)
    assert looks == ["c.mp4"]
    looks.clear()
    ClipFolder(clips, *SIZE, max_bad_fraction=1.0)
    assert looks == []


def test_a_mended_clip_is_used_and_captions_are_never_remembered(clips: Path, looks: list[str]) -> None:
    assert ClipFolder(clips, *SIZE).captions == ["caption a", "caption c"]
    looks.clear()
    media.write_mp4(clips / "b.mp4", film(), 8)
    (clips / "c.txt").write_text("another")
    assert ClipFolder(clips, *SIZE).captions == ["caption a", "caption b", "another"] and looks == ["b.mp4"]


def test_a_folder_that_moved_keeps_its_memory(clips: Path, looks: list[str]) -> None:
    before = ClipFolder(clips, *SIZE).report.skipped[0].sentence
    looks.clear()
    moved = clips.rename(clips.with_name("elsewhere"))
    after = ClipFolder(moved, *SIZE).report.skipped[0].sentence
    assert looks == [] and after == before.replace(str(clips), str(moved)) != before


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "bad disk")])
def test_a_fault_that_may_pass_is_forgotten(
    clips: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    real = probing.load

    def failing(file: Any) -> Any:
        if file.name != "b.mp4":
            raise error
        return real(file)

    with monkeypatch.context() as patch:
        patch.setattr(probing, "load", failing)
        with pytest.raises(ValueError, match="3 corrupt"):
            ClipFolder(clips, *SIZE)
    looks.clear()
    assert len(ClipFolder(clips, *SIZE)) == 2
    assert sorted(looks) == ["a.mp4", "c.mp4"]  # what b holds is no film on any disk


def test_a_damaged_memory_is_no_error(clips: Path, looks: list[str], caplog: pytest.LogCaptureFixture) -> None:
    first, place = ClipFolder(clips, *SIZE), clips / probed.PLACE
    whole = place.read_bytes()
    head, *lines = whole.split(b"\n")
    torn = [b'["a", 1, "', b'["[\\"c.mp4\\",\\"\\"]",[[1,2]],[1,2]]', b'["[]",[[1]],["a","b"]]', *lines[1:]]
    for damage, expected in ((b"\xff\0", 3), (whole[:-20], 1), (b"\n".join([head, *torn]), 1)):
        place.write_bytes(damage)
        looks.clear()
        caplog.clear()
        assert ClipFolder(clips, *SIZE).items == first.items and len(looks) == expected
        assert [r.message.split(" (")[0] for r in caplog.records] == [f"note: {place} can't be read"]
        looks.clear()
        caplog.clear()
        assert ClipFolder(clips, *SIZE).items == first.items and looks == [] and not caplog.records


def test_where_nothing_may_be_written(
    clips: Path, looks: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clips / ".dollar").write_text("a file where the folder would be")
    ClipFolder(clips, *SIZE)
    looks.clear()
    ClipFolder(clips, *SIZE)
    assert looks == [] and len(list((tmp_path / "cache").rglob("*.jsonl"))) == 1  # the user's own cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(clips / "a.txt"))
    caplog.clear()
    assert len(ClipFolder(clips, *SIZE)) == 2 and len(looks) == 3
    assert len(caplog.records) == 1


def test_other_code_looks_again(clips: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ClipFolder(clips, *SIZE)
    looks.clear()
    monkeypatch.setattr(probed, "_code", lambda: "the next version")
    ClipFolder(clips, *SIZE)
    assert len(looks) == 3


def test_a_reader_that_was_installed_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC pictures are skipped with the advice to install pillow-heif."""
    real = probed.version
    before = probed._code.__wrapped__()
    monkeypatch.setattr(probed, "version", lambda name: "1.1" if name == "pillow-heif" else real(name))
    assert probed._code.__wrapped__() != before


def test_two_that_look_at_once_lose_nothing_of_each_other(clips: Path, looks: list[str]) -> None:
    one, two = probed.Memory(clips), probed.Memory(clips)
    one.look(clips / "a.mp4")
    two.look(clips / "c.mp4")
    one.close()
    two.close()
    looks.clear()
    both = probed.Memory(clips)
    both.look(clips / "a.mp4")
    both.look(clips / "c.mp4")
    assert looks == []


def test_what_is_gone_is_dropped_and_what_is_not_listed_is_kept(clips: Path, looks: list[str]) -> None:
    ClipFolder(clips, *SIZE)
    (clips / "a.mp4").unlink()
    (clips / "c.txt").unlink()
    media.write_mp4(clips / "d.mp4", film(), 8)
    (clips / "d.txt").write_text("new")
    ClipFolder(clips, *SIZE, max_bad_fraction=1.0)
    rows = [json.loads(line) for line in (clips / probed.PLACE).read_text().splitlines()[1:]]
    assert sorted(json.loads(row[0])[0] for row in rows) == ["b.mp4", "c.mp4", "d.mp4"]


def test_clips_in_tars_and_tables(clips: Path, looks: list[str], tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    data = (clips / "a.mp4").read_bytes()

    def fill(keys: str) -> None:
        with tarfile.open(inside / "s.tar", "w") as tar:
            for name, content in [(f"{k}{end}", c) for k in keys for end, c in ((".mp4", data), (".txt", b"x"))]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    fill("ab")
    assert len(ClipFolder(inside / "s.tar", *SIZE)) == 2 and len(looks) == 2
    looks.clear()
    ClipFolder(inside, *SIZE)
    assert looks == []
    fill("abc")
    assert len(ClipFolder([str(inside / "s.tar")], *SIZE)) == 3 and len(looks) == 3
    (inside / "s.tar").unlink()
    looks.clear()
    # A table that holds one film and names another, which lies beside it.
    shutil.copy(clips / "c.mp4", inside / "c.mp4")
    rows = [{"bytes": data, "path": "a.mp4"}, {"bytes": None, "path": "c.mp4"}]
    pq.write_table(pa.table({"video": rows, "caption": ["x", "y"]}), inside / "t.parquet")
    assert len(ClipFolder(inside / "t.parquet", *SIZE)) == 2 and sorted(looks) == ["a.mp4", "c.mp4"]
    looks.clear()
    assert len(ClipFolder(inside / "t.parquet", *SIZE)) == 2 and looks == []
    in_place(inside / "c.mp4")
    ClipFolder(inside / "t.parquet", *SIZE, max_bad_fraction=1.0)
    assert looks == ["c.mp4"]


def joined(folder: Path, rank: int, port: int) -> None:
    """One of two processes of a machine: writes the order in which the two looked."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"), None, rank)

    def make() -> int:
        found = len(list(folder.glob("*.looked")))
        (folder / f"{rank}.looked").write_text(str(found))
        return found

    def fail() -> int:
        raise ValueError(f"process {rank} sees what is wrong")

    (folder / f"{rank}.out").write_text(str(world.first_here(make)))
    try:
        world.first_here(fail)
    except ValueError as error:
        (folder / f"{rank}.err").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_one_process_of_a_machine_looks_before_the_others(tmp_path: Path) -> None:
    port = free_port()
    both = [start_process(joined, tmp_path, rank, port) for rank in (1, 0)]
    for process in both:
        process.join(60)
    assert [(tmp_path / f"{rank}.out").read_text() for rank in (0, 1)] == ["0", "1"]
    assert [(tmp_path / f"{rank}.err").read_text() for rank in (0, 1)] == [
        f"process {rank} sees what is wrong" for rank in (0, 1)
    ]


def test_the_bar_shows_in_the_first_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dollar.log import progress

    for rank, shown in (("0", True), ("3", False)):
        monkeypatch.setenv("RANK", rank)
        stream = io.StringIO()
        for _ in progress(3, "looking", stream=stream):
            pass
        assert ("3/3" in stream.getvalue()) is shown
    monkeypatch.setenv("RANK", "0")
    stream = io.StringIO()
    for _ in progress(3, "looking", stream=stream, delay=60.0):
        pass
    assert stream.getvalue() == ""
