"""Videos in tables: parquet files, and the arrow files that Hugging Face's save_to_disk leaves."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from cachetools import LRUCache

from dollar.data.listed import CAPTIONS, FILES, Entry, File, Origin, Skipped, caption_of, plain, tidy
from dollar.data.places import Names, in_fact, network

VIDEO_COLUMNS = tuple(dict.fromkeys(("video", "mp4", *FILES)))  # what the column is called, the likeliest first
BATCH = 4  # rows of a parquet file read together; their videos are in memory at once
KEPT = 3  # batches of a column that stay, for readers that are a little out of step
BUFFER = 2**20  # bytes; without one, a whole row group of a column is in memory
OPEN = 2  # tables held open
ERRORS = (pa.ArrowException, OSError, ValueError, IndexError)


class VideoCell(NamedTuple):
    """A video within a table."""

    tables: Tables
    number: int
    name: str
    where: str
    path: str = ""  # what the row says of where it came from, which is read where the row has no bytes

    @property
    def origin(self) -> Origin:
        """The table, with the file that its row names, and the row in it."""
        return self.tables.origin(self.number, self.path)

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot; often there is none."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Its content; ValueError or OSError when it can't be read."""
        return self.tables.video(self.number)

    def __str__(self) -> str:
        return self.where


class Span(NamedTuple):
    """A file of the source: `rows` of them can be read, and `problem` is what is wrong with the rest, if anything.

    names: the column that holds paths, if there is one, a field of a struct after a dot.
    """

    name: str
    path: Path
    rows: int
    problem: str
    cause: str = "torn file"
    names: str = ""


class Tables:
    """The rows of tables with a column of videos and one of captions; only what is needed is read.

    files: (name, path) of each table; a clip's id is `name:row`. folder: what relative paths in the column refer to.
    A video is bytes, a struct of bytes and path (as Hugging Face stores it), or a path. ValueError where no file has
    the columns, or none can be read; a file without the columns that the first fitting one has is one Skipped.
    """

    def __init__(
        self, files: Sequence[tuple[str, Path]], folder: Path, video: str | None = None, caption: str | None = None
    ) -> None:
        self.folder = folder
        found = [_span(name, path) for name, path in files]
        schemas = [schema for _, schema in found if schema is not None]
        if not schemas:
            raise ValueError(f"none of the tables in {folder} can be read; {found[0][0].path}: {found[0][0].problem}")
        self.video_column, self.caption_column = _columns(schemas, video, caption)
        self.spans = [span if schema is None else self._fitting(span, schema) for span, schema in found]
        self._starts = [0, *accumulate(s.rows + bool(s.problem) for s in self.spans)]
        self._open: LRUCache[int, _Table] = LRUCache(OPEN)
        self._lock = threading.Lock()
        self._names = Names()

    def __len__(self) -> int:
        return self._starts[-1]

    def id(self, index: int) -> str:
        """`name:row`, and `name:` for the rest of a torn file."""
        span, row = self._place(index)
        return f"{self.spans[span].name}:{row if row < self.spans[span].rows else ''}"

    def __getitem__(self, index: int) -> Entry | Skipped:
        id, (number, row) = self.id(index), self._place(index)
        span = self.spans[number]
        if row == span.rows:
            torn = f"{span.path} is torn after {span.rows} rows: {span.problem}; fetch it again."
            return Skipped(id, span.path, span.cause, torn if span.cause == "torn file" else span.problem)
        file: File = VideoCell(self, index, f"{row}", f"row {row} of {span.path}")
        try:
            caption = caption_of(self._value(self.caption_column, index))
        except ERRORS as error:
            return Skipped(id, file, "unreadable caption", f"the caption of {file} can't be used: {_told(error)}.")
        try:
            if span.names and isinstance(path := _path(self._value(span.names, index)), str):
                file = VideoCell(self, index, plain(PurePosixPath(path).name), f"row {row} of {span.path}", path)
                if span.names == self.video_column:
                    if address := network(path):
                        return Skipped(id, file, "on a network", f"{file}: {address}.")
                    file = self._beside(index, path)
        except ERRORS as error:
            return Skipped(id, file, "corrupt", f"{file} can't be read: {_told(error)}.")
        return Entry(id, file, caption)

    def video(self, index: int) -> bytes:
        """The bytes of a row's video; ValueError when it has none."""
        number, row = self._place(index)
        try:
            value = self._value(self.video_column, index)
        except ERRORS as error:
            raise ValueError(_told(error)) from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(path := _path(value), str):
            if address := network(path):
                raise ValueError(address)
            return self._beside(index, path).read_bytes()
        if not isinstance(data, bytes):
            raise ValueError(f"row {row} of {self.spans[number].path} has no video")
        return data

    def origin(self, index: int, path: str) -> Origin:
        """Where a row's video lies; path: of the file that the row names, which need not be there."""
        number, row = self._place(index)
        named = (self._beside(index, path),) if path else ()
        files = self.spans[number].path, *(file for file in named if file.is_file())
        return Origin(files, f"{self.video_column}:{row}")

    def _fitting(self, span: Span, schema: pa.Schema) -> Span:
        """A file with where its paths are; without rows where it lacks a column."""
        for column, fits in ((self.video_column, _is_video), (self.caption_column, _is_text)):
            if column not in schema.names or not fits(schema.field(column).type):
                there = ", ".join(f"{f.name} ({f.type})" for f in schema)
                sentence = f"{span.path} has no column {column}, which other tables of it hold; it has {there}."
                return span._replace(rows=0, problem=sentence, cause="missing column")
        kind = schema.field(self.video_column).type
        if pa.types.is_struct(kind):
            return span._replace(names=f"{self.video_column}.path" if kind.get_field_index("path") >= 0 else "")
        return span._replace(names="" if _is_bytes(kind) else self.video_column)

    def _place(self, index: int) -> tuple[int, int]:
        """(file, row) of clip `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        span = bisect_right(self._starts, index) - 1
        return span, index - self._starts[span]

    def _beside(self, index: int, path: str) -> Path:
        """The file that a path in a row means: relative to the folder, or to the table."""
        folders = self.folder, self.spans[self._place(index)[0]].path.parent
        written = (folder / path for folder in folders)
        other = (self._names.find(folder, path) for folder in folders)  # lists folders, so only where it must
        return next((file for file in chain(written, other) if file.is_file()), self.folder / path)

    def _value(self, column: str, index: int) -> Any:
        number, row = self._place(index)
        with self._lock:  # readers of several threads share what was read last
            if (table := self._open.get(number)) is None:
                table = self._open[number] = _open(self.spans[number].path)
            return table.value(column, row)


class _Table(Protocol):
    schema: pa.Schema
    rows: int
    problem: str

    def value(self, column: str, row: int) -> Any: ...


class _Arrow:
    """An arrow stream (or file) through the file system's cache: nothing is read but what is looked at."""

    def __init__(self, path: Path) -> None:
        memory, self.problem = pa.memory_map(str(path)), ""
        try:
            reader = pa.ipc.open_stream(memory)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(memory)  # the other of arrow's two forms, with an index at its end
            self.schema, parts = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            self.schema, parts = reader.schema, iter(reader)
        batches: list[pa.RecordBatch] = []
        try:
            for part in parts:
                batches.append(part)
        except (pa.ArrowException, OSError) as error:
            self.problem = _told(error)
        self._table = pa.Table.from_batches(batches, self.schema)
        self.rows = self._table.num_rows

    def value(self, column: str, row: int) -> Any:
        outer, _, inner = column.partition(".") if column not in self.schema.names else (column, "", "")
        found = self._table.column(outer)[row]
        return found[inner].as_py() if inner and found.is_valid else found.as_py()


class _Parquet:
    """A parquet file read forwards, a few rows at a time; a row before the last few begins its row group again."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        self.schema, self.rows, self.problem = self._file.schema_arrow, self._file.metadata.num_rows, ""
        groups = range(self._file.num_row_groups)
        self._starts = [0, *accumulate(self._file.metadata.row_group(g).num_rows for g in groups)]
        self._kept: dict[str, deque[tuple[int, pa.Array]]] = {}
        self._ahead: dict[str, tuple[int, int, Iterator[pa.RecordBatch]]] = {}

    def value(self, column: str, row: int) -> Any:
        for first, values in self._kept.setdefault(column, deque(maxlen=KEPT)):
            if first <= row < first + len(values):
                return values[row - first].as_py()
        group = bisect_right(self._starts, row) - 1
        at, now, batches = self._ahead.get(column, (-1, 0, iter(())))
        if at != group or now > row:
            now = self._starts[group]
            batches = self._file.iter_batches(BATCH, [group], [column], use_threads=False)
        try:
            for batch in batches:
                self._kept[column].append((now, batch.column(0)))
                now += batch.num_rows
                if now > row:
                    self._ahead[column] = group, now, batches
                    return batch.column(0)[row - now + batch.num_rows].as_py()
        except BaseException:
            self._ahead.pop(column, None)
            raise
        raise ValueError(f"it ends before row {row}")


def _open(path: Path) -> _Table:
    return _Arrow(path) if path.suffix.lower() == ".arrow" else _Parquet(path)


def _span(name: str, path: Path) -> tuple[Span, pa.Schema | None]:
    """What a file holds, and its columns; a file that can't be opened has no rows."""
    try:
        table = _open(path)
    except ERRORS as error:
        return Span(name, path, 0, in_fact(path) or _told(error)), None
    return Span(name, path, table.rows, table.problem), table.schema


def _columns(schemas: Sequence[pa.Schema], video: str | None, caption: str | None) -> tuple[str, str]:
    """The names of the columns in the first table that has both; ValueError, in the words for the first, if none."""
    problem = None
    for schema in schemas:
        try:
            return _column(schema, video, VIDEO_COLUMNS, "video"), _column(schema, caption, CAPTIONS, "caption")
        except ValueError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _column(schema: pa.Schema, given: str | None, usual: Sequence[str], kind: str) -> str:
    """The name of the column of videos or captions; ValueError, naming the columns that are there, when none fits."""
    fits = _is_video if kind == "video" else _is_text
    there = ", ".join(f"{f.name} ({f.type})" for f in schema)
    if given is not None:
        if given not in schema.names or not fits(schema.field(given).type):
            raise ValueError(f"{kind}_column={given} is no column of {kind}s; the columns are {there}")
        return given
    alike = {tidy(name): name for name in reversed(schema.names)}
    for name in (*usual, *(alike[tidy(n)] for n in usual if tidy(n) in alike)):  # `Caption` after `text`
        if schema.names.count(name) == 1 and fits(schema.field(name).type):
            return name
    raise ValueError(f"there is no column of {kind}s among {there}; name it with {kind}_column=NAME")


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_video(kind: pa.DataType) -> bool:
    inner = {f.name for f in kind} if pa.types.is_struct(kind) else set()
    return _is_text(kind) or _is_bytes(kind) or bool(inner & {"bytes", "path"})


def _path(value: Any) -> Any:
    return value.get("path") if isinstance(value, dict) else value


def _told(error: BaseException) -> str:
    """The first line of a library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
