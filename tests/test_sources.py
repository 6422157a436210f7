"""Every kind of source lists the same clips, and what is damaged in one is a sentence."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dollar import media
from dollar.data import tables
from dollar.data.clips import ClipFolder
from dollar.data.listed import Entry, Skipped, Source
from dollar.data.sources import open_source
from dollar.data.tables import Tables

FRAMES = 9


def write_clips(folder: Path, count: int) -> list[Path]:
    """name0.mp4, name1.mp4, ...: noise of its own in each."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"name{k}.mp4" for k in range(count)]
    for path in paths:
        media.write_mp4(path, rng.integers(0, 256, (FRAMES + 3, 1, 1, 3), np.uint8).repeat(32, 1).repeat(32, 2), 8)
    return paths


def caption(k: int) -> str:
    return f"the caption of clip {k}, für 🦆"


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return write_clips(tmp_path / "originals", 5)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs_in_tar(clips: Sequence[Path], first: int = 0) -> list[tuple[str, bytes]]:
    """The clips with a txt for even numbers and a json for odd ones."""
    members = []
    for k, clip in enumerate(clips, first):
        text = ("txt", caption(k)) if k % 2 == 0 else ("json", json.dumps({"text": caption(k), "width": 32}))
        members += [(f"{k:04d}.mp4", clip.read_bytes()), (f"{k:04d}.{text[0]}", text[1].encode())]
    return members


def listed(source: Source) -> list[Entry | Skipped]:
    found = [source[i] for i in range(len(source))]
    assert [f.id for f in found] == [source.id(i) for i in range(len(source))]
    assert len({f.id for f in found}) == len(found)
    return found


def causes(source: Source) -> dict[str, str]:
    return {f.id: f.cause for f in listed(source) if isinstance(f, Skipped)}


def as_folder(folder: Path, clips: Sequence[Path]) -> Path:
    for k, clip in enumerate(clips):
        (folder / clip.name).write_bytes(clip.read_bytes())
        (folder / clip.name).with_suffix(".txt").write_text(caption(k))
    return folder


def as_list(folder: Path, clips: Sequence[Path], name: str, file: str, text: str) -> Path:
    rows = [{file: clip.name, text: caption(k)} for k, clip in enumerate(clips)]
    for clip in clips:
        (folder / clip.name).write_bytes(clip.read_bytes())
    with (folder / name).open("w", newline="") as stream:
        if name.endswith("csv"):
            writer = csv.DictWriter(stream, [file, text])
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def as_tars(folder: Path, clips: Sequence[Path]) -> Path:
    write_tar(folder / "part" / "0.tar", pairs_in_tar(clips[:2]))
    write_tar(folder / "part" / "1.tar", pairs_in_tar(clips[2:], 2))
    return folder


def struct_table(clips: Sequence[Path]) -> pa.Table:
    """As Hugging Face stores videos."""
    video = [{"bytes": c.read_bytes(), "path": f"/home/of/someone/{c.name}"} for c in clips]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"caption": [caption(k) for k in range(len(clips))], "video": pa.array(video, kind)})


def as_parquet(folder: Path, clips: Sequence[Path]) -> Path:
    (folder / "data").mkdir()
    table = struct_table(clips)
    pq.write_table(table[:3], folder / "data" / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table[3:], folder / "data" / "train-00001-of-00002.parquet")
    (folder / "README.md").write_text("a data set")
    return folder


def as_bytes(folder: Path, clips: Sequence[Path]) -> Path:
    columns = {"mp4": [c.read_bytes() for c in clips], "prompt": [caption(k) for k in range(len(clips))]}
    pq.write_table(pa.table(columns), folder / "one.parquet")
    return folder / "one.parquet"


def as_paths(folder: Path, clips: Sequence[Path]) -> Path:
    as_list(folder, clips, "unused.txt", "file", "caption")
    columns = {"file_name": [c.name for c in clips], "text": [caption(k) for k in range(len(clips))]}
    pq.write_table(pa.table(columns), folder / "metadata.parquet")
    return folder


def write_stream(path: Path, table: pa.Table, rows: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def as_saved(folder: Path, clips: Sequence[Path]) -> Path:
    """As save_to_disk leaves a data set, with a cache of another table beside it."""
    write_stream(folder / "train" / "data-00000-of-00001.arrow", struct_table(clips))
    write_stream(folder / "train" / "cache-1234.arrow", pa.table({"other": [1]}))
    (folder / "train" / "state.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return folder


KINDS: dict[str, Callable[[Path, Sequence[Path]], Path]] = {
    "pairs": as_folder,
    "captions.jsonl": lambda folder, clips: as_list(folder, clips, "captions.jsonl", "file", "caption"),
    "metadata.jsonl": lambda folder, clips: as_list(folder, clips, "metadata.jsonl", "file_name", "text"),
    "metadata.csv": lambda folder, clips: as_list(folder, clips, "metadata.csv", "file_name", "caption"),
    "tars": as_tars,
    "parquet": as_parquet,
    "parquet of bytes": as_bytes,
    "parquet of paths": as_paths,
    "arrow": as_saved,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_clips(tmp_path: Path, clips: list[Path], kind: str) -> None:
    (tmp_path / "given").mkdir()
    place = KINDS[kind](tmp_path / "given", clips)
    found = listed(open_source(place))
    assert [f.caption for f in found if isinstance(f, Entry)] == [caption(k) for k in range(5)]
    for k in (4, 0, 2, 3, 1):  # in any order
        assert isinstance(entry := found[k], Entry) and entry.file.read_bytes() == clips[k].read_bytes()
    plain = ClipFolder(as_folder(clips[0].parent, clips), FRAMES, 16, 16, 8)
    given = ClipFolder(place, FRAMES, 16, 16, 8)
    assert len(given) == 5 and not given.report.skipped
    for k in range(5):
        assert np.array_equal(given.clip(k, 0.6)[0], plain.clip(k, 0.6)[0])


def test_ids_are_what_a_person_would_look_for(tmp_path: Path, clips: list[Path]) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    ids = lambda place: [f.id for f in listed(open_source(place))]  # noqa: E731
    assert ids(as_tars(tmp_path / "a", clips)) == [f"part/{k // 2 if k < 4 else 1}.tar:{k:04d}" for k in range(5)]
    assert ids(tmp_path / "a" / "part" / "*.tar")[:3] == ["0.tar:0000", "0.tar:0001", "1.tar:0002"]
    files = [tmp_path / "a" / "part" / f"{k}.tar" for k in range(2)]
    assert ids(files) == ids(tmp_path / "a" / "part" / "?.tar")
    first, second = (f"data/train-0000{k}-of-00002.parquet" for k in range(2))
    assert ids(as_parquet(tmp_path / "b", clips)) == [f"{first}:{k}" for k in range(3)] + [f"{second}:0", f"{second}:1"]
    as_folder(tmp_path / "c", clips[:1])
    (tmp_path / "c" / "captions.jsonl").write_text('{"file": "name0.mp4", "caption": "one"}\n' * 2)
    assert ids(tmp_path / "c") == ["name0.mp4", "name0.mp4#2"]


def test_pairs_have_one_picture_a_name_and_hidden_files_are_passed_over(tmp_path: Path, clips: list[Path]) -> None:
    where = tmp_path / "given"
    where.mkdir()
    as_folder(where, clips[:2])
    for name in ("name0.jpg", "name0.png", "still.png", "still.jpg", "._name1.mp4"):
        (where / name).write_bytes(b"a picture")
    for name in ("still.txt", "._name1.txt"):
        (where / name).write_text("a caption")
    (where / ".cache").mkdir()
    write_tar(where / ".cache" / "0.tar", pairs_in_tar(clips))
    found = listed(open_source(where))
    assert [f.id for f in found if isinstance(f, Entry)] == ["name0.mp4", "name1.mp4", "still.jpg"]
    assert causes(open_source(where)) == dict.fromkeys(("name0.jpg", "name0.png", "still.png"), "thumbnail")
    assert len(open_source([where, write_tar(tmp_path / "1.tar", pairs_in_tar(clips[:2]))])) == 2  # of the 1.tar


def test_half_a_character_has_a_sentence_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "a \\ud83e"}\n{"file": "b.mp4"}\n')
    first, second = listed(open_source(tmp_path))
    assert isinstance(first, Skipped) and "line 1" in first.sentence and "half a character" in first.sentence
    assert isinstance(second, Skipped) and "line 2" in second.sentence and "has no `file` and" in second.sentence


def test_two_tars_of_one_name_are_told_apart(tmp_path: Path, clips: list[Path]) -> None:
    places = [write_tar(tmp_path / side / "0.tar", pairs_in_tar(clips[:1])) for side in ("a", "b")]
    assert [f.id for f in listed(open_source(places))] == [f"{p.as_posix()}:0000" for p in places]


def test_pairs_may_lie_in_folders(tmp_path: Path, clips: list[Path]) -> None:
    (tmp_path / "given" / "deep").mkdir(parents=True)
    as_folder(tmp_path / "given" / "deep", clips)
    assert [f.id for f in listed(open_source(tmp_path / "given"))] == [f"deep/name{k}.mp4" for k in range(5)]


# Tars


def test_what_is_missing_in_a_tar_is_told(tmp_path: Path, clips: list[Path]) -> None:
    video = clips[0].read_bytes()
    members = [
        ("set/a.b/good.mp4", video),  # the key ends at the first dot of the name, not of the folder
        ("set/a.b/good.thumb.jpg", b"a picture"),
        ("set/a.b/good.txt", b" caption \n"),
        ("mute.mp4", video),
        ("mute.cls", b"7"),
        ("blank.mp4", video),
        ("blank.txt", b"  \n"),
        ("latin.mp4", video),
        ("latin.txt", "für".encode("latin-1")),
        ("torn.mp4", video),
        ("torn.json", b'{"caption": '),
        ("fieldless.mp4", video),
        ("fieldless.json", b'{"caption": null, "width": 4}'),
        ("surrogate.mp4", video),
        ("surrogate.json", b'{"caption": "\\ud83e"}'),
        ("silent.txt", b"a caption"),
        ("twice.mp4", video),
        ("twice.txt", b"a caption"),
        ("twice.mp4", video),
        ("__index__", b""),
    ]
    source = open_source(write_tar(tmp_path / "0.tar", members))
    good = source[0]
    assert isinstance(good, Entry)
    assert (good.id, good.caption, good.file.read_bytes()) == ("0.tar:set/a.b/good", "caption", video)
    keys = ("mute", "blank", "latin", "torn", "fieldless", "surrogate")
    expected = {f"0.tar:{key}": "unreadable caption" for key in keys}
    assert causes(source) == expected | {"0.tar:silent": "missing file", "0.tar:twice": "listed twice"}
    for found in listed(source):
        if isinstance(found, Skipped):
            assert found.id.partition(":")[2] in found.sentence and found.sentence.endswith(".")


def found_in_tar(folder: Path, *names: str) -> dict[str, tuple[str, str] | str]:
    """By id the (video, caption) that a tar of these members gives, or the cause; a member's content is its name."""
    members = [
        (name, json.dumps({"caption": name}).encode() if name.endswith("json") else name.encode()) for name in names
    ]
    source = open_source(write_tar(folder / "0.tar", members))
    return {
        f.id.partition(":")[2]: (f.file.read_bytes().decode(), f.caption) if isinstance(f, Entry) else f.cause
        for f in listed(source)
    }


def test_a_tars_videos_have_the_captions_of_their_whole_names(tmp_path: Path) -> None:
    two = "two videos of one key"
    for names, expected in [
        # Each has its own caption, whatever the order.
        ("a.1.mp4 a.2.mp4 a.2.txt a.1.txt", {"a.1": ("a.1.mp4", "a.1.txt"), "a.2": ("a.2.mp4", "a.2.txt")}),
        ("v1.0.mp4 v1.0.json", {"v1": ("v1.0.mp4", "v1.0.json")}),
        # One of each: the key joins them.
        ("a.video.mp4 a.caption.txt", {"a": ("a.video.mp4", "a.caption.txt")}),
        ("a.video.mp4 a.meta.json a.words.txt", {"a": ("a.video.mp4", "a.words.txt")}),
        # Nobody can tell whose it is.
        ("a.1.mp4 a.2.mp4 a.txt", {"a.1": two, "a.2": two}),
        ("a.mp4 a.2.mp4 a.txt", {"a": ("a.mp4", "a.txt"), "a.2": two}),
        ("a.mp4 a.webm a.txt", {"a": two}),
        ("a.mp4 a.1.txt a.2.txt", {"a": "two captions of one key"}),
        ("a.1.jpg a.2.jpg a.txt", {"a.1": two, "a.2": two}),
        # What lies beside a clip is no clip.
        ("a.mp4 a.jpg a.txt a.thumb.jpg a.meta.json", {"a": ("a.mp4", "a.txt")}),
        ("a.jpg a.txt a.png", {"a": ("a.jpg", "a.txt")}),
        ("._a.mp4 a.mp4 a.txt ._a.txt", {"a": ("a.mp4", "a.txt")}),
        ("d.x/a.mp4 d.x/a.txt d.y/a.mp4 d.y/a.txt", {f"d.{k}/a": (f"d.{k}/a.mp4", f"d.{k}/a.txt") for k in "xy"}),
    ]:
        assert found_in_tar(tmp_path, *names.split()) == expected, names


@pytest.mark.parametrize("damage", ["cut in a video", "cut in a header", "a header", "cut at a header"])
def test_a_torn_tar_gives_what_is_whole(tmp_path: Path, clips: list[Path], damage: str) -> None:
    path = write_tar(tmp_path / "0.tar", pairs_in_tar(clips))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]
    data = bytearray(path.read_bytes())
    if damage == "a header":
        data[third.offset + 10 : third.offset + 200] = b"#" * 190
    else:
        data = data[: {"video": third.offset_data + 100, "header": third.offset + 100}.get(damage.split()[-1], 0)]
        if damage == "cut at a header":
            data = data[: third.offset]
    path.write_bytes(data)
    found = listed(open_source(path))
    assert [f.id for f in found if isinstance(f, Entry)] == ["0.tar:0000", "0.tar:0001"]
    if damage != "cut at a header":  # a tar without an end is one that may have been written on
        assert isinstance(found[-1], Skipped) and found[-1].cause == "torn file"
        assert "0.tar is torn after 2 samples" in found[-1].sentence


def test_no_tar_at_all_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "1.tar").write_bytes(b"")
    write_tar(tmp_path / "2.tar", [])
    assert causes(open_source(tmp_path)) == {"0.tar:": "torn file", "1.tar:": "torn file"}


def test_a_tar_that_shrinks_later_is_a_sentence(tmp_path: Path, clips: list[Path]) -> None:
    path = write_tar(tmp_path / "0.tar", pairs_in_tar(clips))
    folder = ClipFolder(path, FRAMES, 16, 16, 8)
    path.write_bytes(path.read_bytes()[:-20000][: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"0.tar:0004.mp4 can't be decoded"):
        assert folder.clip(4, 0.0)[1] == caption(0)


# Tables


def test_columns_can_be_named(tmp_path: Path, clips: list[Path]) -> None:
    columns = {
        "film": [c.read_bytes() for c in clips],
        "video": ["words"] * 5,
        "deutsch": [caption(k) for k in range(5)],
        "caption": ["english"] * 5,
        "text": [1] * 5,
    }
    pq.write_table(pa.table(columns), path := tmp_path / "a.parquet")
    entry = open_source(path, "film", "deutsch")[3]
    assert isinstance(entry, Entry) and entry.caption == caption(3) and entry.file.read_bytes() == clips[3].read_bytes()
    for video, text, said in [
        ("movie", None, "video_column=movie.*film"),
        (None, "text", "caption_column=text.*int64"),
    ]:
        with pytest.raises(ValueError, match=said):
            open_source(path, video, text)
    pq.write_table(pa.table({"width": [1], "caption": ["a"]}), path)
    with pytest.raises(ValueError, match=r"no column of videos among width \(int64\), caption .*video_column=NAME"):
        open_source(path)


def test_tables_of_other_columns_are_skipped_with_the_column_that_they_lack(tmp_path: Path, clips: list[Path]) -> None:
    video = [c.read_bytes() for c in clips[:2]]
    pq.write_table(pa.table({"width": [1, 2]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"mp4": video, "text": ["one", "two"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"mp4": video}), tmp_path / "2.parquet")
    write_stream(tmp_path / "3.arrow", pa.table({"mp4": video, "text": [1, 2]}))
    structs = struct_table(clips[:2]).rename_columns(["text", "mp4"])  # another kind of the same column
    write_stream(tmp_path / "4.arrow", structs)
    found = listed(open_source(tmp_path))
    assert [f.id for f in found] == [
        "0.parquet:",
        *(f"1.parquet:{k}" for k in range(2)),
        "2.parquet:",
        "3.arrow:",
        *(f"4.arrow:{k}" for k in range(2)),
    ]
    for k, said in ((0, "0.parquet has no column mp4"), (3, "2.parquet has no column text"), (4, r"text (int64)")):
        assert isinstance(skip := found[k], Skipped) and skip.cause == "missing column" and said in skip.sentence
    for k in (1, 2, 5, 6):
        assert isinstance(entry := found[k], Entry) and entry.file.read_bytes() == video[(k - 1) % 2]
    assert [found[k].file.name for k in (1, 5)] == ["0", "name0.mp4"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_captions_may_be_numbers_of_a_dictionary(tmp_path: Path, clips: list[Path], kind: str) -> None:
    text = pa.array([caption(k % 2) for k in range(5)]).dictionary_encode()
    table = pa.table({"mp4": [c.read_bytes() for c in clips], "text": text})
    path = tmp_path / f"a.{kind}"
    pq.write_table(table, path) if kind == "parquet" else write_stream(path, table)
    assert [f.caption for f in listed(open_source(path)) if isinstance(f, Entry)] == [caption(k % 2) for k in range(5)]


def test_a_path_in_a_table_that_no_file_can_have_is_skipped(tmp_path: Path, clips: list[Path]) -> None:
    as_folder(tmp_path, clips[:1])
    (tmp_path / "name0.txt").unlink()
    pq.write_table(pa.table({"file": ["name0.mp4", "x" * 300], "text": ["one", "two"]}), tmp_path / "a.parquet")
    folder = ClipFolder(tmp_path, FRAMES, 16, 16, 8)
    assert len(folder) == 1 and "a.parquet can't be read: " in str(folder.report)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bad_rows_of_a_table(tmp_path: Path, clips: list[Path], kind: str) -> None:
    video = clips[0].read_bytes()
    values = [
        {"bytes": video, "path": "good.mp4"},
        {"bytes": video, "path": None},
        {"bytes": None, "path": "name1.mp4"},  # beside the table
        {"bytes": None, "path": "gone.mp4"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"no video at all" * 9, "path": "bad.mp4"},
        {"bytes": b"", "path": "void.mp4"},
        {"bytes": video, "path": "good.mp4"},
        {"bytes": video, "path": "good.mp4"},
    ]
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    captions = ["a caption"] * 8 + [None, "  "]
    table = pa.table({"video": pa.array(values, kinds), "text": captions})
    (tmp_path / "name1.mp4").write_bytes(clips[1].read_bytes())
    path = tmp_path / f"a.{kind}"
    pq.write_table(table, path, row_group_size=4) if kind == "parquet" else write_stream(path, table, 4)
    folder = ClipFolder(path, FRAMES, 16, 16, 8, max_bad_fraction=0.9)
    assert [item.file.name for item in folder.items] == ["good.mp4", "1", "name1.mp4"]
    assert folder.report.causes == {"corrupt": 4, "empty": 1, "unreadable caption": 2}
    assert "row 5 of" in str(folder.report) and "has no video" in str(folder.report)


def test_a_damaged_page_costs_its_own_rows_only(tmp_path: Path, clips: list[Path]) -> None:
    columns = {"mp4": [c.read_bytes() for c in clips], "text": [caption(k) for k in range(5)]}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    middle = place.data_page_offset + place.total_compressed_size // 2
    data[place.data_page_offset : middle] = b"\xff" * (middle - place.data_page_offset)
    path.write_bytes(data)
    folder = ClipFolder(path, FRAMES, 16, 16, 8)
    assert [item.caption for item in folder.items] == [caption(k) for k in (0, 1, 3, 4)]
    assert [s.id for s in folder.report.skipped] == ["a.parquet:2"] and folder.report.causes == {"corrupt": 1}


def test_torn_tables(tmp_path: Path, clips: list[Path]) -> None:
    whole = as_bytes(tmp_path, clips)
    (tmp_path / "two.parquet").write_bytes(whole.read_bytes()[:-100])
    table = struct_table(clips).rename_columns(["prompt", "mp4"])
    cut = write_stream(tmp_path / "three.arrow", table)
    whole.rename(tmp_path / "a.parquet")
    source = open_source(tmp_path)
    assert causes(source) == {"two.parquet:": "torn file"} and len(source) == 11
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 5])  # within the second of three batches
    found = listed(open_source(cut))
    assert [type(f) for f in found] == [Entry, Entry, Skipped] and found[2].id == "three.arrow:"
    assert isinstance(found[2], Skipped) and "torn after 2 rows" in found[2].sentence
    cut.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the tables .* can be read; .*three.arrow"):
        open_source(cut)


def test_a_row_group_is_read_once_in_order_and_never_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**18
    rows = [np.random.default_rng(k).bytes(size) for k in range(64)]
    table = pa.table({"video": rows, "text": ["a caption"] * 64})
    # Pages of a few rows, as writers of large values make them.
    pq.write_table(table, tmp_path / "a.parquet", data_page_size=2**19, write_batch_size=2, use_dictionary=False)
    del table
    begun = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **kw: begun.append(args[3]) or real(*args, **kw))
    source = open_source(tmp_path / "a.parquet")
    assert isinstance(source, Tables)
    before, most = pa.total_allocated_bytes(), 0
    for k in [0, 2, 1, 3, *range(4, 64)]:  # threads that read ahead are a little out of step
        assert source.video(k) == rows[k]
        most = max(most, pa.total_allocated_bytes() - before)
    assert begun == [["video"]]
    assert most < 6 * tables.BATCH * size < 64 * size // 2
    assert source.video(0) == rows[0] and len(begun) == 2


# What can't be a source


def test_what_is_no_source_is_a_sentence(tmp_path: Path, clips: list[Path]) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"none-\*.tar does not exist"):
        open_source(tmp_path / "none-*.tar")
    (tmp_path / "odd").mkdir()
    for name in ("a.npz", "b.npz", "c.md"):
        (tmp_path / "odd" / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"lists no clips; it holds 2 files .npz, 1 file .md. It needs captions.jsonl"):
        open_source(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"is 1 file .npz; give tars alone"):
        open_source(tmp_path / "odd" / "a.npz")
    tar = write_tar(tmp_path / "0.tar", pairs_in_tar(clips))
    with pytest.raises(ValueError, match=r"1 file .tar, 1 file .parquet; give tars alone"):
        open_source([tar, as_bytes(tmp_path, clips)])
    (tmp_path / "odd" / "captions.csv").write_bytes(b"file,caption\n" + b'a.mp4,"' + b"x" * 200_000 + b"\n")
    assert causes(open_source(tmp_path / "odd")) == {"captions.csv:2": "broken quotes"}
    with pytest.raises(ValueError, match="empty"):
        open_source([])
