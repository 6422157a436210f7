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


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.txt does not exist"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(tmp_path)
