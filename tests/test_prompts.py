from __future__ import annotations

from pathlib import Path

import pytest

from dollar.data.prompts import read_prompts


def write(folder: Path, data: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_lines_are_read_in_order_with_duplicates_and_without_blanks(tmp_path: Path, end: bytes, bom: bytes) -> None:
    lines = ["a red circle", "", "  a Straße at night \t", "   ", "a red circle", "ein 🦆 schwimmt"]
    path = write(tmp_path, bom + end.join(line.encode() for line in lines))
    assert read_prompts(path) == ["a red circle", "a Straße at night", "a red circle", "ein 🦆 schwimmt"]


def test_a_line_separator_inside_a_prompt_does_not_cut_it(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path, "one\u2028still one\x0cstill\ntwo\n".encode())) == [
        "one\u2028still one\x0cstill",
        "two",
    ]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_bad_byte_is_named_by_its_offset_in_the_file(tmp_path: Path, bom: bytes) -> None:
    start = bom + "good\nä ".encode()
    with pytest.raises(ValueError, match=rf"prompts.txt.*0xff at byte offset {len(start)} \(line 2\)"):
        read_prompts(write(tmp_path, start + b"\xff bad\n"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_text_with_a_mark_is_read_by_it(tmp_path: Path, encoding: str) -> None:
    assert read_prompts(write(tmp_path, "a red circle\r\nein 🦆".encode(encoding))) == ["a red circle", "ein 🦆"]


def test_utf16_without_a_mark_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="character 0 .*UTF-16"):
        read_prompts(write(tmp_path, "a red circle".encode("utf-16-le")))


@pytest.mark.parametrize("data", [b"", b"\n \r\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match="prompts.txt has no prompts.*one prompt a line"):
        read_prompts(write(tmp_path, data))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'prompt\na dog, running\n"a cat, asleep"\n'),
        ("p.CSV", "Prompts;Category\r\na dog, running;1\r\na cat, asleep;2\r\n"),
        ("p.tsv", "Category\tPrompt\n1\ta dog, running\n2\ta cat, asleep\n"),
        ("p.jsonl", '{"prompt": "a dog, running", "text": "no"}\n\n"a cat, asleep"\n'),
        ("p.json", '["a dog, running",\n "a cat, asleep"]'),
        ("p.json", '[{"prompt_en": "a dog, running"}, {"caption": "a cat, asleep", "seed": 1}]'),
        ("p.json", '{"prompts": ["a dog, running", "a cat, asleep"]}'),
        ("p.json", '{"version": 1, "tags": ["x"], "prompts": ["a dog, running", "a cat, asleep"]}'),
        ("p.json", '{"a.mp4": "a dog, running", "b.mp4": "a cat, asleep"}'),
    ],
)
def test_prompts_of_tables_and_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == ["a dog, running", "a cat, asleep"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "a dog\na cat\n", "'a dog', and doesn't name prompt .* ending txt has one prompt a line"),
        ("p.csv", "prompt,seed\na dog, running,1\n", "line 2 of .* has 3 fields, and its header 2"),
        ("p.csv", "prompt,seed\na dog,1\n,2\n", "line 3 of .* has no prompt"),
        ("p.csv", 'prompt\n"a dog\na cat\n', "line 2 of .* has a quote"),
        ("p.jsonl", '{"prompt": "a"}\n{"prom', "line 2 of .* is no json object"),
        ("p.json", '["a", "b"', "no valid json from line 1"),
        ("p.json", '{"seed": 1}', "no list of clips or texts"),
        ("p.json", "[]", "has no prompts in it"),
        (
            "p.yaml",
            "- a dog\n- a cat\n",
            r"of a kind that isn't read \(.yaml\); give text with one prompt a line, or a csv",
        ),
        ("p.txt", '{"prompt": "a dog"}\n{"prompt": "a cat"}\n', "holds json.* give it the ending .jsonl"),
        ("p.txt", '[\n  "a dog"\n]', "holds json"),
        ("p.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "it is a pointer of Git LFS"),
    ],
)
def test_no_prompt_of_a_table_is_lost(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / name)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.txt does not exist"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(tmp_path)
    with pytest.raises(ValueError, match="is on a network"):
        read_prompts("https://example.org/prompts.txt")
