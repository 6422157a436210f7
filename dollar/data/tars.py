"""WebDataset tars: `key.mp4` beside `key.txt` or `key.json`, read where they lie."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dollar.data.listed import CAPTIONS, STILLS, VIDEOS, Entry, Skipped, caption_of, first_of, plain
from dollar.data.prompts import decode_utf8


class Member(NamedTuple):
    """A file within a tar: `size` bytes from `offset` on."""

    tar: Path
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Its content; ValueError when the tar has become shorter."""
        with self.tar.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.tar} ends within {self.name}")
        return data

    def __str__(self) -> str:
        return f"{self.tar}:{self.name}"


class _Sample:
    """The members of one key: the video (or picture) and what holds its caption."""

    __slots__ = ("again", "picture", "text")

    def __init__(self) -> None:
        self.picture: Member | None = None
        self.text: Member | None = None
        self.again = False

    def take(self, member: Member) -> None:
        """Keep a member that is of use; a video comes before a picture, a txt before a json."""
        ending = member.suffix.lower()
        if ending in VIDEOS | STILLS:
            before = self.picture
            if before is None or (ending in VIDEOS and before.suffix.lower() in STILLS):
                self.picture = member
            self.again |= before is not None and before.name == member.name
        elif ending in (".txt", ".json") and (self.text is None or self.text.suffix.lower() == ".json"):
            self.text = member


class Tars:
    """The samples of tars in their order, each tar's headers read once.

    files: (name, path) of each tar; a clip's id is `name:key`. A torn tar gives the samples before the tear.
    """

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        self._samples: list[tuple[str, _Sample | Skipped]] = []
        for name, path in files:
            samples, problem = _scan(path)
            self._samples += [(f"{name}:{key}", s) for key, s in samples.items() if s.picture or s.text]
            if problem:
                id = f"{name}:"
                sentence = f"{path} is torn after {len(samples)} samples: {problem}; fetch it again."
                self._samples.append((id, Skipped(id, path, "torn file", sentence)))

    def __len__(self) -> int:
        return len(self._samples)

    def id(self, index: int) -> str:
        """`name:key` of a sample."""
        return self._samples[index][0]

    def __getitem__(self, index: int) -> Entry | Skipped:
        id, sample = self._samples[index]
        if isinstance(sample, Skipped):
            return sample
        if sample.picture is None:
            assert sample.text is not None
            return Skipped(id, sample.text, "missing file", f"{sample.text} has no video of the same key in its tar.")
        file = sample.picture
        if sample.again:
            return Skipped(id, file, "listed twice", f"{file} is in its tar twice; give each video a name of its own.")
        if sample.text is None:
            sentence = f"{file} has no caption; it needs a member of the same name with the ending txt or json."
            return Skipped(id, file, "unreadable caption", sentence)
        try:
            return Entry(id, file, _caption(sample.text))
        except (OSError, ValueError) as error:
            return Skipped(id, file, "unreadable caption", f"the caption {sample.text} can't be used: {error}.")


def _caption(member: Member) -> str:
    text = decode_utf8(member.read_bytes(), str(member))
    if member.suffix.lower() == ".json":
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("it is not valid json") from None
        return caption_of(first_of(row, CAPTIONS))
    return caption_of(text)


def _scan(path: Path) -> tuple[dict[str, _Sample], str]:
    """The samples of a tar by key, and what is wrong with the rest of it, if anything."""
    samples: dict[str, _Sample] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                if not info.isreg():
                    continue
                if info.offset_data + info.size > size:
                    return samples, f"it ends within {plain(info.name)}"
                name = plain(info.name.removeprefix("./"))
                folder, _, base = name.rpartition("/")
                # As WebDataset cuts names: the key ends at the first dot after the folder.
                key = f"{folder}/{base.split('.')[0]}" if folder else base.split(".")[0]
                samples.setdefault(key, _Sample()).take(Member(path, name, info.offset_data, info.size))
            end = tar.offset
        with path.open("rb") as stream:
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                return samples, f"the header at byte {end} is damaged"
    except (tarfile.TarError, OSError, ValueError) as error:
        return samples, str(error)
    return samples, ""
