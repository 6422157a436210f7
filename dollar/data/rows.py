"""The rows of lists: csv of any usual delimiter, tsv, json lines, and json lists and objects.

A row that can't be read is one problem with its line; no row is cut, and none swallows those after it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dollar.data.listed import STILLS, VIDEOS, cut, first_of, tidy
from dollar.data.text import read_text

DELIMITERS = (",", ";", "\t", "|")
TABLES = {".csv", ".tsv"}
JSON = {".json", ".jsonl", ".ndjson"}
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # with its end, which a caption within quotes may have
SPACE = re.compile(r"[\s\ufeff]*")
BROKEN = "broken quotes"
SHOWN = 200  # letters of a line that a sentence shows

Groups = Sequence[tuple[str, ...]]  # what is wanted: the names of a column, the likeliest first, for each of them


class Row(NamedTuple):
    """One row: `values`, one for each group of names that was wanted, or what is wrong with it and its cause.

    number: its line in the file, or which entry of a json object it is. there: the names that the row has.
    """

    number: int
    values: tuple[Any, ...]
    there: tuple[str, ...] = ()
    cause: str = ""
    problem: str = ""
    unit: str = "line"

    @property
    def where(self) -> str:
        """What sentences call it."""
        return f"{self.unit} {self.number}"


def lines_of(text: str) -> list[str]:
    """The lines of a text; not str.splitlines, which also cuts at what captions may hold (U+2028, form feed)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def is_json(line: str) -> bool:
    """Whether the first line of a file is an object or a list of json, or opens one."""
    return line in ("{", "[") or isinstance(_value(line), dict | list)


class NoColumns(ValueError):
    """The list has no columns of these names."""


def read_rows(path: Path, groups: Groups) -> list[Row]:
    """The rows of a list, blank ones left out; the last group is of text, which may have the delimiter in it.

    Raises ValueError for what is no text, NoColumns where a whole list can't have what is wanted.
    """
    text, ending = read_text(path), path.suffix.lower()
    return list(_table(text, path, groups) if ending in TABLES else _json(text, path, groups))


# Tables


class _Header(NamedTuple):
    delimiter: str
    names: list[str]
    places: list[int]  # of the groups' columns


def _table(text: str, path: Path, groups: Groups) -> Iterator[Row]:
    lines = LINE.findall(text)
    start = next((n for n, line in enumerate(lines) if line.strip()), len(lines))
    given = ""
    if start < len(lines) and (said := re.fullmatch(r"sep=(.)\s*", lines[start], re.IGNORECASE)):
        given, start = said[1], start + 1  # what spreadsheets write above the header
    if start >= len(lines):
        return
    header = _header(lines[start], path, groups, given)
    for number, fields, raw in _records(lines, start + 1, header):
        if isinstance(fields, csv.Error):
            yield Row(number, (), cause=BROKEN, problem=_of_quotes(number, path, fields))
        elif any(field.strip() for field in fields):
            yield _row(number, fields, raw, header, path)


def _header(line: str, path: Path, groups: Groups, given: str) -> _Header:
    """How the table is cut: by the delimiter that finds the most of what is wanted in its first line."""
    usual = sorted(DELIMITERS, key=lambda delimiter: path.suffix.lower() == ".tsv" and delimiter != "\t")
    found: list[_Header] = []
    for delimiter in [given] if given else usual:
        names = [name.strip() for name in _cut(line, delimiter)]
        while names and not names[-1]:
            names.pop()
        alike = [tidy(name) for name in names]
        wanted = [next((tidy(n) for n in group if tidy(n) in alike), None) for group in groups]
        found.append(_Header(delimiter, names, [alike.index(name) for name in wanted if name is not None]))
    best = max(found, key=lambda header: len(header.places))
    alike, first = [tidy(name) for name in best.names], line.strip()[:SHOWN]
    if len(best.places) < len(groups):
        if any(cut(field.strip())[1] in VIDEOS | STILLS for field in _cut(line, best.delimiter)):
            raise NoColumns(
                f"{path} has no header, for its first line is a clip: {first!r}; it needs the names of its columns "
                f"above: {','.join(group[0] for group in groups)}"
            )
        other = "; video_column=NAME and caption_column=NAME name others" if len(groups) > 1 else ""
        missing = [" or ".join(group[:4]) for group in groups if not {tidy(name) for name in group} & set(alike)]
        raise NoColumns(
            f"{path} lacks a column: its first line is {first!r}, and doesn't name {' and '.join(missing)}{other}"
        )
    for place in best.places:
        if alike.count(alike[place]) > 1:
            raise ValueError(f"{path} has the column {best.names[place]!r} more than once; leave one of them")
    return best


def _cut(line: str, delimiter: str, blanks: bool = False) -> list[str]:
    """The fields of one line; the whole line where its quotes are broken. blanks: keep those after a delimiter."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=not blanks, strict=True), [])
    except csv.Error:
        return [line]


def _records(lines: Sequence[str], start: int, header: _Header) -> Iterator[tuple[int, list[str] | csv.Error, str]]:
    """(line number, fields or what is wrong, the text) of each row; after broken quotes it goes on in the next line."""
    at = start
    while at < len(lines):
        first = at
        rest = map(lines.__getitem__, range(at, len(lines)))
        reader = csv.reader(rest, delimiter=header.delimiter, skipinitialspace=True, strict=True)
        try:
            for fields in reader:
                after = at + reader.line_num
                if after > first + 1 and any(_is_row(line, header) for line in lines[first + 1 : after]):
                    raise csv.Error("it goes on to the end of another row")
                yield first + 1, fields, "".join(lines[first:after])
                first = after
            return
        except csv.Error as error:
            yield first + 1, _literal(lines[first], header) or error, lines[first]
            at = first + 1


def _literal(line: str, header: _Header) -> list[str] | None:
    """The fields of a row with quotes of its text's own, as `a.mp4,"Stop" says a sign`; None where one is left open."""
    if line.count('"') % 2 or header.places[-1] != len(header.names) - 1:
        return None
    last = len(header.names) - 1
    parts = line.split(header.delimiter, last)
    fields = [_bare(part.strip()) for part in parts]
    return fields if len(fields) > last and _named(fields, header) else None


def _bare(field: str) -> str:
    """A field without quotes around the whole of it, as `"a "big" dog"`; those of `"Stop" says "no"` are its own.

    The first quote within tells them apart: it opens, after a blank, or closes.
    """
    if len(field) < 2 or not field[0] == field[-1] == '"':
        return field
    inner = field[1:-1].replace('""', "\0")  # text has no character 0
    before, quote, _ = inner.partition('"')
    return field if quote and not before[-1:].isspace() else inner.replace("\0", '"')


def _named(fields: Sequence[str], header: _Header) -> bool:
    """Whether the field of the file, if files are wanted, has the ending of one."""
    return len(header.places) < 2 or cut(fields[header.places[0]].strip())[1] in VIDEOS | STILLS


def _is_row(line: str, header: _Header) -> bool:
    """Whether a line within quotes is a row itself, so that the quotes were left open.

    A line with a quote that closes is one by what comes before: `b.mp4,a cat"` is a row, and `of a text",b.mp4` is not.
    """
    if len(header.places) < 2:
        return False
    closes = line.count('"') % 2 == 1
    fields = _cut(line.partition('"')[0] if closes else line, header.delimiter)
    return len(fields) >= (header.places[0] + 2 if closes else len(header.names)) and _named(fields, header)


def _of_quotes(number: int, path: Path, error: csv.Error) -> str:
    return (
        f"line {number} of {path} has a quote \" that isn't closed, or goes on after it ({error}); close it, and write "
        'a quote within quotes twice ("").'
    )


def _row(number: int, fields: list[str], raw: str, header: _Header, path: Path) -> Row:
    """A row by the header; where it has more fields, and the text comes last, the rest is of the text."""
    delimiter, names, places = header
    while len(fields) > len(names) and not fields[-1].strip():  # padding, as spreadsheets write it
        fields.pop()
        raw = raw.rstrip().removesuffix(delimiter)
    if len(fields) > len(names):
        last = len(names) - 1
        if places[-1] != last or not _named(fields, header):
            sentence = (
                f"line {number} of {path} has {len(fields)} fields, and its header {len(names)}; put a text that has "
                f"{delimiter!r} in it into double quotes."
            )
            return Row(number, (), cause="too many fields", problem=sentence)
        literal = _literal(raw, header)
        if literal and literal[:last] == [field.strip() for field in fields[:last]]:
            fields = literal
        else:  # what comes before the text has delimiters within quotes, or the text goes over several lines
            whole = _cut(raw, delimiter, blanks=True) if "\n" not in raw.strip() else fields
            fields = [*fields[:last], delimiter.join(whole[last:]).strip()]
    values = tuple(fields[place] if place < len(fields) else None for place in places)
    return Row(number, values, tuple(names[: len(fields)]))


# Json


def _json(text: str, path: Path, groups: Groups) -> Iterator[Row]:
    at = _skip(text, 0)
    if text[at : at + 1] == "[":
        return _elements(text, at + 1, path, groups)
    if text[at : at + 1] == "{":
        try:
            return iter(_whole(json.loads(text[at:], object_pairs_hook=_Pairs), path, groups))
        except (ValueError, RecursionError) as error:
            # An object a line is usual in files of either ending.
            if isinstance(error, NoColumns) or (
                path.suffix.lower() == ".json" and _value(text.partition("\n")[0]) is None
            ):
                raise NoColumns(f"{path} can't be read as json: {error}") from None
    lines = enumerate(LINE.findall(text), 1)
    return (_object(n, _value(line), path, groups) for n, line in lines if line.strip("\ufeff \t\r\n"))


def _whole(whole: _Pairs, path: Path, groups: Groups) -> list[Row]:
    """The rows of a file that is one object: a list with a name, a single row, or files with their texts."""
    first = first_of(dict(whole), groups[0])
    if not isinstance(first, str) and (members := _named_list(whole, first, groups)) is not None:
        return [_object(n, _plain(value), path, groups, "entry") for n, value in enumerate(members, 1)]
    if path.suffix.lower() != ".json" or first is not None:
        return [_object(1, _plain(whole), path, groups)]
    named = any(cut(key)[1] in VIDEOS | STILLS for key, _ in whole)
    rows = []
    for number, (key, value) in enumerate(whole, 1):
        text = first_of(dict(value), groups[-1]) if isinstance(value, _Pairs) else value
        named = named or (isinstance(value, _Pairs) and isinstance(text, str))
        rows.append(Row(number, (key, text)[-len(groups) :], (key,), unit="entry"))
    if not named:
        keys = ", ".join(repr(key) for key, _ in whole[:4]) or "none"
        raise NoColumns(f"it is one object, and no list of clips or texts, nor are its keys files; they are {keys}")
    return rows


def _named_list(whole: _Pairs, first: Any, groups: Groups) -> list[Any] | None:
    """The list that an object holds under a name, beside what it says of itself; None where no one list is meant.

    first: what it has by the names of the first column. Clips need a list of objects, texts any list.
    """
    lists = [value for _, value in whole if isinstance(value, list) and not isinstance(value, _Pairs)]
    lists = [first] if any(first is value for value in lists) else lists
    if len(lists) != 1 or (len(groups) > 1 and not all(isinstance(value, _Pairs) for value in lists[0])):
        return None
    return lists[0]


class _Pairs(list[tuple[str, Any]]):
    """A json object as its members in order, those that come twice too."""


def _plain(value: Any) -> Any:
    """The same with dicts for objects."""
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _elements(text: str, at: int, path: Path, groups: Groups) -> Iterator[Row]:
    """The rows of a json list, with the line that each begins in; a list that breaks off gives those before."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    while True:
        at = _skip(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
            yield _object(line, value, path, groups)
            at = _skip(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise ValueError("a comma or the closing bracket is missing")
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(": line")[0]
            sentence = f"{path} is no valid json from line {line} on, and nothing after that is read: {reason}."
            yield Row(line, (), cause="torn list", problem=sentence)
            return
        at += text[at] == ","


def _object(number: int, value: Any, path: Path, groups: Groups, unit: str = "line") -> Row:
    if isinstance(value, str) and len(groups) == 1:
        return Row(number, (value,), unit=unit)
    if not isinstance(value, Mapping):
        sentence = f"{unit} {number} of {path} is no json object ({{...}})."
        return Row(number, (), (), "unreadable caption", sentence, unit)
    return Row(number, tuple(first_of(value, group) for group in groups), tuple(map(str, value)), unit=unit)


def _value(line: str) -> Any:
    try:
        return json.loads(line.strip("\ufeff \t\r\n,"))  # objects of a list, a line each, have commas between them
    except (ValueError, RecursionError):
        return None


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no blank."""
    found = SPACE.match(text, at)
    return found.end() if found else at
