"""Lists as people write them: no caption is cut, no row lost in silence, and files found by what they are called."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from dollar.data.listed import Entry, Skipped
from dollar.data.sources import open_source

DOG = [("a.mp4", "a dog, running fast"), ("b.mp4", "a cat")]


def found(place: Path, **columns: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(file, caption) of each clip, and the cause of what is skipped by its id."""
    source = open_source(place, **columns)
    items = [source[i] for i in range(len(source))]
    clips = [(item.file.name, item.caption) for item in items if isinstance(item, Entry)]
    return clips, {item.id: item.cause for item in items if isinstance(item, Skipped)}


def in_list(folder: Path, text: str, name: str = "captions.csv") -> tuple[list[tuple[str, str]], dict[str, str]]:
    (folder / name).write_bytes(text.encode())
    return found(folder)


@pytest.mark.parametrize(
    "text",
    [
        "file,caption\na.mp4,a dog, running fast\nb.mp4,a cat\n",
        "file, caption\r\na.mp4, a dog, running fast\r\nb.mp4, a cat\r\n",
        "\ufefffile;caption\na.mp4;a dog, running fast\nb.mp4;a cat\n",
        "file\tcaption\na.mp4\ta dog, running fast\nb.mp4\ta cat",
        "sep=;\nfile;caption\na.mp4;a dog, running fast\nb.mp4;a cat\n",
        '"File Name","Caption",,\na.mp4,"a dog, running fast",,\n,,,\nb.mp4,a cat,,\n',
        '"File Name","Caption",,\na.mp4,a dog, running fast,,\nb.mp4,a cat, ,\n',
        'Caption,File\n"a dog, running fast", a.mp4\ra cat,b.mp4\r',
        "id|file|text\n1|a.mp4|a dog, running fast\n2|b.mp4|a cat\n",
    ],
)
def test_no_caption_is_cut_however_the_table_is_written(tmp_path: Path, text: str) -> None:
    assert in_list(tmp_path, text) == (DOG, {})
    (tmp_path / "captions.csv").unlink()
    assert in_list(tmp_path, text, "METADATA.TSV") == (DOG, {})


def test_a_row_of_too_many_fields_is_skipped_where_nobody_can_tell_which_is_the_captions(tmp_path: Path) -> None:
    text = 'caption,file\na dog, running fast,a.mp4\n"a cat",b.mp4\n'
    assert in_list(tmp_path, text) == ([("b.mp4", "a cat")], {"captions.csv:2": "too many fields"})
    source = open_source(tmp_path)
    assert isinstance(skipped := source[0], Skipped)
    assert "line 2 of" in skipped.sentence and "has 3 fields, and its header 2" in skipped.sentence
    # A comma in the file's name: joining would give a wrong file and a wrong caption.
    assert in_list(tmp_path, "file,caption\na,1.mp4,a dog\nb.mp4,a cat\n")[1] == {"captions.csv:2": "too many fields"}
    # Too few are no harm where the caption is there.
    text = "file,caption,fps\na.mp4,a dog\nb.mp4\n"
    assert in_list(tmp_path, text) == ([("a.mp4", "a dog")], {"captions.csv:3": "unreadable caption"})


@pytest.mark.parametrize(
    ("rows", "clips", "bad"),
    [
        # The quote of line 2 is left open: it swallows neither what follows nor the rest of the file.
        ('a.mp4,"a dog\nb.mp4,a cat\nc.mp4,"a cow"\n', ["b a cat", "c a cow"], [2]),
        ('a.mp4,"a dog\nb.mp4,a cat\nc.mp4,a cow\n', ["b a cat", "c a cow"], [2]),
        ('a.mp4,"a dog\nb.mp4,a cat "\nc.mp4,a cow\n', ['b a cat "', "c a cow"], [2]),
        # Quotes of the caption's own.
        ('a.mp4,"Stop", says a sign\nb.mp4,a "big" cat\n', ['a "Stop", says a sign', 'b a "big" cat'], []),
        ('a.mp4,"a "big", old dog"\nb.mp4,"say ""hi"""\n', ['a a "big", old dog', 'b say "hi"'], []),
        ('a.mp4,"Stop", says "it"\nb.mp4,"Stop" is "no"\n', ['a "Stop", says "it"', 'b "Stop" is "no"'], []),
        # A caption of two lines.
        ('a.mp4,"a dog,\n then a cat"\nb.mp4,a cow\n', ["a a dog,\n then a cat", "b a cow"], []),
    ],
)
def test_quotes(tmp_path: Path, rows: str, clips: list[str], bad: list[int]) -> None:
    expected = [(f"{clip[0]}.mp4", clip[2:]) for clip in clips]
    assert in_list(tmp_path, "file,caption\n" + rows) == (
        expected,
        {f"captions.csv:{line}": "broken quotes" for line in bad},
    )


def test_a_caption_of_two_lines_may_come_first(tmp_path: Path) -> None:
    text = 'caption,file\n"a dog,\n then a cat",a.mp4\n"a dog,b.mp4\na cow,c.mp4\n'
    assert in_list(tmp_path, text) == (
        [("a.mp4", "a dog,\n then a cat"), ("c.mp4", "a cow")],
        {"captions.csv:4": "broken quotes"},
    )


def test_many_open_quotes_are_quick(tmp_path: Path) -> None:
    rows = "".join(f'{k}.mp4,"a dog\n' for k in range(3000))
    clips, skipped = in_list(tmp_path, f"file,caption\n{rows}last.mp4,a cat\n")
    assert clips == [("last.mp4", "a cat")] and len(skipped) == 3000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.mp4,a dog\nb.mp4,a cat\n", "no header, for its first line is a clip: 'a.mp4,a dog'"),
        ("a.mp4\nb.mp4\n", "no header"),
        ("file_name,width\na.mp4,3\n", "'file_name,width', and doesn't name caption or text or prompt or description"),
        ("file,caption,Caption\na.mp4,a,b\n", "the column 'caption' more than once"),
        ("", "captions.csv is empty"),
    ],
)
def test_a_table_without_its_columns_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=said):
        in_list(tmp_path, text)
    with pytest.raises(ValueError, match=said):
        found(tmp_path / "captions.csv")


@pytest.mark.parametrize("name", ["my captions.csv", "train.json"])
def test_a_list_by_another_name_is_pointed_at(tmp_path: Path, name: str) -> None:
    """The captions are there, so nobody is asked for a.txt."""
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "other.json").write_text('{"width": 3}')
    text = "file,caption\na.mp4,a dog\n" if name.endswith("csv") else '[{"file": "a.mp4", "caption": "a dog"}]'
    with pytest.raises(ValueError, match=rf"{name} is a list of clips; give its path, or call it captions\.(csv|json)"):
        in_list(tmp_path, text, name)
    assert found(tmp_path / name) == ([("a.mp4", "a dog")], {})


def test_files_and_captions_of_the_same_lines(tmp_path: Path) -> None:
    (tmp_path / "videos.txt").write_text("deep/a.mp4\nb.mp4\n\n")
    (tmp_path / "prompts.txt").write_bytes("a dog,\u2028running\r\na cat\r\n".encode("utf-16"))
    assert found(tmp_path) == ([("a.mp4", "a dog,\u2028running"), ("b.mp4", "a cat")], {})
    (tmp_path / "prompts.txt").rename(tmp_path / "Prompts.TXT")
    assert found(tmp_path)[0][1] == ("b.mp4", "a cat")
    (tmp_path / "prompts.txt").write_text("one\n\nthree")
    (tmp_path / "videos.txt").write_text("deep/a.mp4\n\nb.mp4\n\n")
    assert found(tmp_path) == ([("a.mp4", "one"), ("b.mp4", "three")], {})
    (tmp_path / "Prompts.TXT").unlink()
    (tmp_path / "videos.txt").write_text("deep/a.mp4\nb.mp4\n")
    (tmp_path / "prompts.txt").write_text("one\n")
    with pytest.raises(ValueError, match=r"videos.txt has 2 lines and .*prompts.txt 1; each line of one"):
        found(tmp_path)
    (tmp_path / "prompts.txt").unlink()
    with pytest.raises(ValueError, match=r"videos.txt has no prompts.txt next to it"):
        found(tmp_path)


def test_columns_of_a_list_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("clip id,long,caption\na.mp4,a dog,dog\n")
    assert found(tmp_path, video_column="clip id", caption_column="long")[0] == [("a.mp4", "a dog")]
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text('{"clip id": "a.mp4", "long": "a dog", "caption": "dog"}\n')
    assert found(tmp_path, video_column="clip id", caption_column="long")[0] == [("a.mp4", "a dog")]


@pytest.mark.parametrize("name", ["captions.json", "metadata.json", "captions.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"file": file, "caption": text} for file, text in DOG], indent=1),
        json.dumps({"clips": [{"file_name": file, "text": text, "width": 3} for file, text in DOG]}),
        json.dumps({"version": 1, "video": [{"path": f, "text": t, "boxes": [{}]} for f, t in DOG], "by": ["x"]}),
        "\n".join(json.dumps({"Video Path": file, "Prompt": [text]}) for file, text in DOG),
        ",\n".join(json.dumps({"path": file, "cap": text}) for file, text in DOG),
        "\r\n\ufeff".join(json.dumps({"file": file, "caption": text}) for file, text in DOG),
    ],
)
def test_json_lists(tmp_path: Path, name: str, text: str) -> None:
    assert in_list(tmp_path, text, name) == (DOG, {})


def test_a_json_object_of_files(tmp_path: Path) -> None:
    members = f'{{"a.mp4": "{DOG[0][1]}", "b.mp4": {{"caption": "a cat"}}, "a.mp4": "again", "c.mp4": 3}}'
    clips, skipped = in_list(tmp_path, members, "captions.json")
    assert clips == [*DOG, ("a.mp4", "again")] and skipped == {"captions.json:4": "unreadable caption"}


def test_a_json_list_that_breaks_off_gives_what_is_before(tmp_path: Path) -> None:
    text = '[{"file": "a.mp4", "caption": "a dog, running fast"},\n {"file": "b.mp4", "caption": "a cat"},\n {"file'
    assert in_list(tmp_path, text, "captions.json") == (DOG, {"captions.json:3": "torn list"})
    assert in_list(tmp_path, "[3,\n" + text[1:] + "", "captions.json")[1] == {
        "captions.json:1": "unreadable caption",
        "captions.json:4": "torn list",
    }


def test_names_are_found_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the other Unicode form, with backslashes, in other capitals, with ~, without an ending, whole, with colons."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    there = ["deep/ü/a é.mp4", "home/b.mp4", "c.mov", "12:30:05.mp4", "d.mp4", "Take 1/F.MP4"]
    for name, form in zip(there, ["NFD"] + ["NFC"] * 5, strict=True):
        path = tmp_path / unicodedata.normalize(form, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = ["deep\\ü\\a é.mp4", "./deep/ü/a é.mp4", "~/b.mp4", "c", "12:30:05.mp4", str(tmp_path / "d.mp4"), "e.mp4"]
    names.append("take 1\\f.mp4")
    rows = [json.dumps({"file": name, "caption": "a"}) for name in names]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    source = open_source(tmp_path / "captions.jsonl")
    files = [entry.file for k in range(len(names)) if isinstance(entry := source[k], Entry)]
    deep = tmp_path / unicodedata.normalize("NFD", "deep/ü/a é.mp4")
    rest = [tmp_path / name for name in ("home/b.mp4", "c.mov", "12:30:05.mp4", "d.mp4", "e.mp4", "Take 1/F.MP4")]
    assert files == [deep, deep, *rest]
    assert source.id(0) == names[0] and source.id(1) == "deep/ü/a é.mp4" and source.id(3) == "c"


def test_places_on_a_network_are_told(tmp_path: Path) -> None:
    names = ["s3://bucket/a.mp4", "https://x.org/a.mp4", "hf://datasets/x/a.mp4", "file:///data/a.mp4", "a.mp4"]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps({"file": n, "caption": "a"}) for n in names))
    clips, skipped = found(tmp_path)
    assert clips == [("a.mp4", "a")]
    assert skipped == {f"captions.jsonl:{line}": "on a network" for line in (1, 2, 3, 4)}
    assert (
        isinstance(last := open_source(tmp_path)[3], Skipped)
        and "write the path alone, as /data/a.mp4" in last.sentence
    )
    for name in names[:3]:
        with pytest.raises(ValueError, match="is on a network, and only files are read; fetch it first"):
            open_source(name)
        with pytest.raises(ValueError, match="is on a network"):
            open_source([Path(name)])


def test_of_two_lists_one_counts_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file,caption\nb.mp4,two\n")
    assert in_list(tmp_path, '{"file": "a.mp4", "caption": "one"}', "captions.jsonl") == (
        [("a.mp4", "one")],
        {"b.mp4": "not listed"},
    )
    assert "captions.jsonl counts, and of its folder metadata.csv is not read" in caplog.text
