"""One set of rules for folders of every depth: what has a caption is used, or counted by its cause."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dollar import media
from dollar.data.clips import ClipFolder
from dollar.data.listed import Entry, Skipped, Source
from dollar.data.sources import open_source

NFC, NFD = (unicodedata.normalize(form, "Vidéo ü") for form in ("NFC", "NFD"))


def fill(folder: Path, *names: str) -> None:
    """Files of these names, which they hold."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"caption": name, "width": 3}) if name.endswith(".json") else name)


def read(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """Captions and causes by id."""
    items = [source[i] for i in range(len(source))]
    assert [item.id for item in items] == [source.id(i) for i in range(len(source))]
    assert len({item.id for item in items}) == len(items)
    captions = {item.id: item.caption for item in items if isinstance(item, Entry)}
    return captions, {item.id: item.cause for item in items if isinstance(item, Skipped)}


def test_captions_next_to_clips(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "a.txt", "a.json", "b.mp4", "b.mp4.txt", "c.mp4", "c.caption", "d.mp4", "d.json")
    fill(
        tmp_path,
        "CLIP1.MP4",
        "CLIP1.TXT",
        "Clip2.MOV",
        "clip2.txt",
        f"{NFD}.mov",
        f"{NFC}.txt",
        "e.mp4",
        "e.webm",
        "e.txt",
        "e.webm.txt",
    )
    assert read(open_source(tmp_path)) == (
        {
            "CLIP1.MP4": "CLIP1.TXT",
            "Clip2.MOV": "clip2.txt",
            f"{NFD}.mov": f"{NFC}.txt",
            "a.mp4": "a.txt",
            "b.mp4": "b.mp4.txt",
            "c.mp4": "c.caption",
            "d.mp4": "d.json",
            "e.mp4": "e.txt",
            "e.webm": "e.webm.txt",
        },
        {},
    )


def test_capitals_count_only_where_names_differ_by_them(tmp_path: Path) -> None:
    """Two such files change nothing for the others of their folder, in pairs and in lists."""
    fill(tmp_path, "C.mp4", "c.mp4", "c.TXT", "C.mp4.txt", "Other.MP4", "OTHER.txt", "README.txt", "readme.txt")
    expected = {"C.mp4": "C.mp4.txt", "c.mp4": "c.TXT", "Other.MP4": "OTHER.txt"}
    assert read(open_source(tmp_path)) == (expected, {})
    (tmp_path / "captions.csv").write_text("file,caption\nother.mp4,a\nC,b\nc.MP4,none\n")
    source = open_source(tmp_path)
    files = [entry.file for k in range(3) if isinstance(entry := source[k], Entry)]
    assert files == [tmp_path / name for name in ("Other.MP4", "C.mp4", "c.MP4")]


@pytest.mark.parametrize(
    "ending",
    ["mpg", "mpeg", "wmv", "ts", "mts", "m2ts", "flv", "3gp", "ogv", "avif", "bmp", "tif", "tiff", "heic", "heif"],
)
def test_endings_of_videos_and_pictures_are_known(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, f"a.{ending}", "a.txt", "b.mp4", "b.txt")
    assert read(open_source(tmp_path)) == ({f"a.{ending}": "a.txt", "b.mp4": "b.txt"}, {})


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "a.txt", "a.png", "deep/b.mp4", "deep/b.txt", "deep/er/mute.mp4")
    fill(tmp_path, "deep/c.png", "deep/c.jpg", "deep/c.png.txt", "deep/c.txt")
    fill(tmp_path, "c.xyz", "c.txt", "d.txt", "README.txt", "e.png", "f.zip", "g.tar.gz", "g.txt", "h.tar", "i.parquet")
    fill(tmp_path, ".hidden/j.mp4", ".hidden/j.txt", "._a.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    fill(tmp_path, "gone.txt", "deep/k.json")
    captions, causes = read(open_source(tmp_path))
    # A link that leads nowhere is listed, and counted as missing when it is looked at.
    expected = {"a.mp4": "a.txt", "deep/b.mp4": "deep/b.txt", "gone.mp4": "gone.txt"}
    expected |= {"deep/c.jpg": "deep/c.txt", "deep/c.png": "deep/c.png.txt"}
    assert captions == expected
    assert causes == {
        "a.png": "thumbnail",
        "e.png": "picture without a caption",
        "deep/er/mute.mp4": "unreadable caption",
        "c.xyz": "unknown ending",
        "d.txt": "caption without a video",
        "g.txt": "caption without a video",
        "f.zip": "packed archive",
        "g.tar.gz": "packed archive",
        "h.tar": "other kind of source",
        "i.parquet": "other kind of source",
    }


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path / "given", "a.mp4", "a.txt", "real/b.mp4", "real/b.txt")
    fill(tmp_path / "disk", "c.mp4", "c.txt", "deep/d.mp4", "deep/d.txt")
    fill(tmp_path, "above.mp4", "above.txt")
    for link, place in [("linked", "../disk"), ("again", "real"), ("up", "..")]:
        (tmp_path / "given" / link).symlink_to(place)
    (tmp_path / "disk" / "deep" / "loop").symlink_to("..")
    (tmp_path / "disk" / "back").symlink_to("../given")
    (tmp_path / "alias").symlink_to("given")
    expected = {
        "a.mp4": "a.txt",
        "linked/c.mp4": "c.txt",
        "linked/deep/d.mp4": "deep/d.txt",
        "real/b.mp4": "real/b.txt",
    }
    for place in ("given", "alias"):
        assert read(open_source(tmp_path / place)) == (expected, {})
    assert list(expected) == list(read(open_source(tmp_path / "given"))[0])


def test_a_folder_that_may_not_be_looked_into_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.mp4", "a.txt", "shut/b.mp4", "shut/b.txt")
    real = os.scandir

    def refused(path: str) -> object:
        if str(path).rstrip("/").endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert read(open_source(tmp_path)) == ({"a.mp4": "a.txt"}, {"shut": "unreadable folder"})
    with pytest.raises(ValueError, match="shut can't be looked into: Permission denied"):
        open_source(tmp_path / "shut")


def test_a_link_to_a_folder_that_is_gone_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "a.txt")
    (tmp_path / "disk2").symlink_to("/not/mounted")
    (tmp_path / "notes.md").symlink_to("/not/there")
    assert read(open_source(tmp_path)) == ({"a.mp4": "a.txt"}, {"disk2": "unreadable folder"})


def test_a_list_beside_the_folder_of_its_clips(tmp_path: Path) -> None:
    """What it names isn't counted as lacking a caption, nor used twice."""
    fill(tmp_path, "videos/a.mp4", "videos/b.mp4", "videos/b.txt", "videos/c.mp4", "videos/c.txt", "videos/d.mp4")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "train.csv").write_text("file,caption\n")
    (tmp_path / "alias").symlink_to("videos")
    (tmp_path / "meta" / "captions.csv").write_text(f"file,caption\n../videos/a.mp4,x\n{tmp_path}/alias/b.mp4,y\n")
    assert read(open_source(tmp_path)) == (
        {"meta/../videos/a.mp4": "x", f"{tmp_path}/alias/b.mp4": "y", "videos/c.mp4": "videos/c.txt"},
        {"videos/d.mp4": "unreadable caption"},
    )


def test_several_folders_are_read_together(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.mp4", "x/a.txt", "y/a.mp4", "y/mute.mp4", "y/a.txt", "deep/x/a.mp4", "deep/x/a.txt")
    places = [tmp_path / "x", tmp_path / "y", tmp_path / "y" / ".." / "x"]
    assert read(open_source(places)) == (
        {"x/a.mp4": "x/a.txt", "y/a.mp4": "y/a.txt"},
        {"y/mute.mp4": "unreadable caption"},
    )
    # A pattern of folders, and folders that lie in another of the places.
    expected = {"x/a.mp4": "x/a.txt", "y/a.mp4": "y/a.txt"}
    assert read(open_source(tmp_path / "[xy]"))[0] == expected
    assert list(read(open_source(tmp_path / "[x]"))[0]) == ["x/a.mp4"]  # as where it means more
    again = [tmp_path / "deep" / "x", tmp_path / "y", tmp_path / "deep"]
    assert list(read(open_source(again))[0]) == ["y/a.mp4", "deep/x/a.mp4"]
    twice = [tmp_path / "x", tmp_path / "deep" / "x"]
    assert list(read(open_source(twice))[0]) == [f"{place.as_posix()}/a.mp4" for place in twice]


def test_lists_and_folders_are_read_together(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.mp4", "x/a.txt", "b.mp4")
    (tmp_path / "train.csv").write_text("file,caption\nb.mp4,b\n")
    (tmp_path / "more.jsonl").write_text('{"file": "x/a.mp4", "caption": "again"}')
    lists = {"train.csv/b.mp4": "b", "more.jsonl/x/a.mp4": "again"}
    assert read(open_source([tmp_path / "train.csv", tmp_path / "more.jsonl"])) == (lists, {})
    assert read(open_source([tmp_path / "x", tmp_path / "train.csv"])) == (
        {"train.csv/b.mp4": "b", "x/a.mp4": "x/a.txt"},
        {},
    )
    assert read(open_source([tmp_path / "train.csv"])) == ({"b.mp4": "b"}, {})


def test_what_cannot_be_reached_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="xxx can't be reached: File name too long"):
        open_source("x" * 5000)
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,a\n")

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ValueError, match=r"captions.csv can't be read: Permission denied"):
        open_source(tmp_path)


def test_folders_that_a_pattern_means_beside_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "x/a.mp4", "x/a.txt", "b.mp4")
    (tmp_path / "x.csv").write_text("file,caption\nb.mp4,b\n")
    assert read(open_source(tmp_path / "x*")) == ({"b.mp4": "b"}, {})
    assert f"x* means files and folders; {tmp_path}/x is not read" in caplog.text


def test_a_pattern_meets_each_file_once(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to("..")
    assert [open_source(f"{tmp_path}/**/*.tar").id(n) for n in range(1)] == ["a.tar:a"]
    assert len(open_source(f"{tmp_path}/**/*.tar")) == 1


def test_hugging_face_splits_are_read_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(
        tmp_path,
        "train/a.mp4",
        "train/more/b.mp4",
        "train/c.mp4",
        "train/c.txt",
        "test/a.mp4",
        "free/d.mp4",
        "free/d.txt",
    )
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\na.mp4,one, two\nmore/b.mp4,three\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "four"}\n')
    assert read(open_source(tmp_path)) == (
        {"test/a.mp4": "four", "train/a.mp4": "one, two", "train/more/b.mp4": "three", "free/d.mp4": "free/d.txt"},
        {"train/c.mp4": "not listed"},
    )
    assert f"the lists of {tmp_path}/test (1), {tmp_path}/train (2) are read together" in caplog.text
    caplog.clear()
    # A list above the others governs them all.
    (tmp_path / "captions.csv").write_text("file,caption\ntrain/c.mp4,five\n")
    unlisted = ("free/d.mp4", "test/a.mp4", "train/a.mp4", "train/more/b.mp4")
    assert read(open_source(tmp_path)) == ({"train/c.mp4": "five"}, dict.fromkeys(unlisted, "not listed"))
    assert f"a list above them counts: {tmp_path}/test/metadata.jsonl, {tmp_path}/train/metadata.csv" in caplog.text


def test_tables_of_splits_find_their_own_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(tmp_path, f"{split}/a.mp4", f"{split}/{NFD}.mp4")
        names = ["a.mp4", f"{NFC}.mp4", "s3://bucket/a.mp4"]
        pq.write_table(pa.table({"File Name": names, "Text": [split] * 3}), tmp_path / split / "metadata.PARQUET")
    source = open_source(tmp_path)
    ids = [f"{split}/metadata.PARQUET:{row}" for split in ("test", "train") for row in range(3)]
    assert read(source) == (
        {id: id.split("/")[0] for id in ids if id[-1] != "2"},
        dict.fromkeys(ids[2::3], "on a network"),
    )
    contents = [entry.file.read_bytes().decode() for n in range(6) if isinstance(entry := source[n], Entry)]
    assert contents == [f"{split}/{name}.mp4" for split in ("test", "train") for name in ("a", NFD)]


def test_a_json_of_other_things_is_no_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "a.mp4", "a.txt")
    (tmp_path / "metadata.json").write_text('{"splits": ["train"], "license": "cc"}')
    assert read(open_source(tmp_path)) == ({"a.mp4": "a.txt"}, {})
    assert "metadata.json can't be read as json" in caplog.text and "'splits', 'license'" in caplog.text


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "b.TGZ", "c.zip", "d.tar.zst"):
        fill(tmp_path / name[0], name)
        for place in (tmp_path / name[0], tmp_path / name[0] / name, tmp_path / name[0] / "*"):
            with pytest.raises(ValueError, match=rf"{name} is packed, .*unpack it"):
                open_source(place)
    (tmp_path / "e.tar").write_bytes(gzip.compress(b"a tar"))
    (tmp_path / "f.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, cause, said in [
        ("e", "packed archive", "packed with gzip; unpack it"),
        ("f", "torn file", "git lfs pull"),
    ]:
        skipped = open_source(tmp_path / f"{name}.tar")[0]
        assert isinstance(skipped, Skipped) and skipped.cause == cause and said in skipped.sentence


def test_what_a_clip_is_instead_is_told(tmp_path: Path) -> None:
    media.write_mp4(tmp_path / "a.mp4", np.zeros((9, 16, 16, 3), np.uint8), 8)
    (tmp_path / "b.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "c.png").write_bytes(b"\n<!DOCTYPE html><html>404</html>")
    (tmp_path / "d.mp4").write_bytes(gzip.compress(np.random.default_rng(0).bytes(100_000)))
    fill(tmp_path, "a.txt", "b.txt", "c.txt", "d.txt")
    report = ClipFolder(tmp_path, 9, 16, 16, 8, max_bad_fraction=0.9).report
    assert report.causes == {"corrupt": 3} and "d.mp4 can't be decoded: it is packed with gzip" in str(report)
    assert "b.mp4 can't be decoded: it is a pointer of Git LFS" in str(report) and "c.png can't" in str(report)
    assert "it is a web page" in str(report)


def test_tars_have_the_rules_of_folders_and_links_are_followed(tmp_path: Path) -> None:
    links = {
        "h.mp4": (tarfile.LNKTYPE, "b.mp4"),
        "s/j.mp4": (tarfile.SYMTYPE, "../b.mp4"),
        "i.mp4": (tarfile.SYMTYPE, "/i"),
    }
    names = [
        "A.MP4",
        "A.TXT",
        "b.mp4",
        "b.mp4.txt",
        "c.mp4",
        "c.caption",
        "e.1.mp4",
        "e.1.mp4.txt",
        "e.2.mp4",
        "e.2.mp4.txt",
        "f.wmv",
        "f.txt",
        "g.xyz",
        "g.txt",
    ]
    with tarfile.open(tmp_path / "0.TAR", "w") as tar:
        for name in [*names, "h.mp4", "h.txt", "s/j.mp4", "s/j.txt", "i.mp4", "i.txt"]:
            info = tarfile.TarInfo(name)
            if name in links:
                info.type, info.linkname = links[name]
            else:
                info.size = len(name)
            tar.addfile(info, None if name in links else io.BytesIO(name.encode()))
    source = open_source(tmp_path)
    captions, causes = read(source)
    assert captions == {
        "0.TAR:A": "A.TXT",
        "0.TAR:b": "b.mp4.txt",
        "0.TAR:c": "c.caption",
        "0.TAR:f": "f.txt",
        "0.TAR:h": "h.txt",
        "0.TAR:e.1": "e.1.mp4.txt",
        "0.TAR:e.2": "e.2.mp4.txt",
        "0.TAR:s/j": "s/j.txt",
        "0.TAR:i": "i.txt",
    }
    assert causes == {"0.TAR:g": "unknown ending"}
    files = {source.id(n): entry.file for n in range(len(source)) if isinstance(entry := source[n], Entry)}
    assert files["0.TAR:h"].read_bytes() == files["0.TAR:s/j"].read_bytes() == b"b.mp4"
    with pytest.raises(ValueError, match="it is a link to /i, which is not in the tar"):
        files["0.TAR:i"].read_bytes()


def test_what_lies_beside_tars_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "b.tar.gz", "c.parquet", "cache-d.arrow", "a.txt", "e.xyz", "e.txt")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.mp4", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    causes = {"b.tar.gz": "packed archive", "c.parquet": "other kind of source", "e.xyz": "unknown ending"}
    expected = {"a.tar:a": "a.txt"}, causes
    assert read(open_source(tmp_path)) == expected


def test_captions_in_utf16_are_read_and_other_encodings_told(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    for name, data in [
        ("a", "für 🦆".encode("utf-16")),
        ("b", "für".encode("latin-1")),
        ("c", "no".encode("utf-16-le")),
    ]:
        (tmp_path / f"{name}.txt").write_bytes(data)
    bad = dict.fromkeys(("b.mp4", "c.mp4"), "unreadable caption")
    assert read(open_source(tmp_path)) == ({"a.mp4": "für 🦆"}, bad)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
        (gzip.compress(b"a dog", mtime=0), "packed with gzip; unpack it first"),
    ],
)
def test_what_stands_in_place_of_a_caption_is_told(tmp_path: Path, data: bytes, said: str) -> None:
    fill(tmp_path, "a.mp4", "b.mp4", "b.txt")
    (tmp_path / "a.txt").write_bytes(data)
    source = open_source(tmp_path)
    assert read(source) == ({"b.mp4": "b.txt"}, {"a.mp4": "unreadable caption"})
    assert isinstance(skipped := source[0], Skipped) and said in skipped.sentence
    (tmp_path / "captions.csv").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        open_source(tmp_path)


def test_names_that_look_like_protocols_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "12:30:05.mp4",
        "concat:a.mp4",
        "pipe:0.mp4",
        "-a.mp4",
        "a?b.mp4",
        "a%03d.gif",
        "a#b|c.mp4",
        "1:2.png",
        "%d.png",
    ]
    clip = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    monkeypatch.chdir(tmp_path)
    media.write_mp4("12:30:05.mp4", clip, 8)  # written here, too
    Image.fromarray(clip[0]).save("1:2.png")
    frames = [Image.fromarray(picture) for picture in clip]
    frames[0].save("a%03d.gif", save_all=True, append_images=frames[1:], duration=125)
    made = {".mp4": "12:30:05.mp4", ".png": "1:2.png", ".gif": "a%03d.gif"}
    for name in names:
        Path(name).write_bytes(Path(made[name[-4:]]).read_bytes())
        Path(name).with_suffix(".txt").write_text(name)
    folder = ClipFolder(".", 9, 16, 16, 8, max_bad_fraction=0.0)
    assert sorted(folder.captions) == sorted(names) and not folder.report.skipped
    for index in range(len(folder)):
        assert folder.clip(index, 0.0)[1] == folder.captions[index]
    assert not folder.report.failed


def test_what_is_no_fault_of_the_folder_is_not_bad(tmp_path: Path) -> None:
    """Thumbnails, unlisted files and archives are counted, and don't stop a run; a video without a caption may."""
    clip = np.zeros((9, 16, 16, 3), np.uint8)
    media.write_mp4(tmp_path / "a.mp4", clip, 8)
    fill(tmp_path, "a.txt", "a.png", "b.png", "c.txt", "d.zip", "e.tar")
    report = ClipFolder(tmp_path, 9, 16, 16, 8, max_bad_fraction=0.0).report
    causes = (
        "thumbnail",
        "picture without a caption",
        "caption without a video",
        "packed archive",
        "other kind of source",
    )
    assert report.causes == Counter(causes) and report.bad_fraction == 0
    fill(tmp_path, "deep/mute.mp4")
    assert ClipFolder(tmp_path, 9, 16, 16, 8).report.bad_fraction == 0.5


def test_a_large_folder_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is looked at by itself, and no caption read, before it is asked for."""
    fill(tmp_path, *(f"{k % 3}/{k}.{ending}" for k in range(300) for ending in ("mp4", "txt")))
    looked: Counter[str] = Counter()
    for module, name in ((os, "stat"), (os, "scandir"), (os, "listdir"), (Path, "open"), (Path, "stat")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, n=name, do=real, **how: (looked.update([n]), do(*given, **how))[1]
        )
    source = open_source(tmp_path)
    assert len(source) == 300 and source.id(0) == "0/0.mp4"
    assert looked["scandir"] == 4 and looked["listdir"] == looked["open"] == 0
    assert looked["stat"] < 4 + 30  # each folder, and those above
