"""WebDataset tars: `key.mp4` next to `key.txt` or `key.json`, read where they lie."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dollar.data.listed import CAPTIONS, STILLS, VIDEOS, Entry, Origin, Skipped, caption_of, first_of, plain
from dollar.data.prompts import decode_utf8

USED = VIDEOS | STILLS | {".txt", ".json"}


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

    @property
    def origin(self) -> Origin:
        """The tar, and its place in it."""
        return Origin((self.tar,), f"{self.name} {self.offset}+{self.size}")

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


class _Sample(NamedTuple):
    """The video (or picture) of a clip and the file of its caption; `problem` is why it can't be used."""

    id: str
    picture: Member | None
    text: Member | None
    cause: str = ""
    problem: str = ""


class Tars:
    """The samples of tars in their order, each tar's headers read once.

    files: (name, path) of each tar; a clip's id is `name:key`. A torn tar gives the samples before the tear.
    """

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        self._samples: list[tuple[str, _Sample | Skipped]] = []
        for name, path in files:
            keys, problem = _scan(path)
            self._samples += [(f"{name}:{s.id}", s) for key, members in keys.items() for s in _matched(key, members)]
            if problem:
                id = f"{name}:"
                sentence = f"{path} is torn after {len(keys)} samples: {problem}; fetch it again."
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
        if sample.cause:
            return Skipped(id, file, sample.cause, sample.problem)
        if sample.text is None:
            sentence = f"{file} has no caption; it needs a member of the same name with the ending txt or json."
            return Skipped(id, file, "unreadable caption", sentence)
        try:
            return Entry(id, file, _caption(sample.text))
        except (OSError, ValueError) as error:
            return Skipped(id, file, "unreadable caption", f"the caption {sample.text} can't be used: {error}.")


def _matched(key: str, members: Sequence[Member]) -> list[_Sample]:
    """The samples of one key: a video has the caption of its whole name, or the key's where there is but one of both.

    A picture counts where its name, or the key, has no video.
    """
    videos, stills, texts = (_by_stem(members, endings) for endings in (VIDEOS, STILLS, {".txt"}))
    texts = _by_stem(members, {".json"}) | texts  # a txt comes before a json
    films = stills | videos
    samples = [_sample(stem, films[stem], texts[stem][0]) for stem in films if stem in texts]
    left = {stem: files for stem, files in (videos or stills).items() if stem not in texts}
    if len(samples) == 1 and not left:
        return [samples[0]._replace(id=key)]
    if len(videos or stills) == 1 and left and not samples:
        (files,) = left.values()
        txts = [t for t in texts if texts[t][0].suffix.lower() == ".txt"] or list(texts)
        if len(txts) < 2:
            return [_sample(key, files, texts[txts[0]][0] if txts else None)]
        several = f"{files[0]} has the captions {', '.join(texts[t][0].name for t in txts[:2])}; give one its own name."
        return [_Sample(key, files[0], None, "two captions of one key", several)]
    if videos or not samples:  # next to a clip with a caption, a picture is a thumbnail
        for stem, files in left.items():
            reason = f"{files[0]} is not alone with the key {key}, and no caption has its whole name."
            samples.append(_Sample(stem, files[0], None, "two videos of one key", reason))
    if not films and texts:
        samples.append(_Sample(key, None, next(iter(texts.values()))[0]))
    return samples


def _by_stem(members: Sequence[Member], endings: AbstractSet[str]) -> dict[str, list[Member]]:
    """The members of these endings by their names up to the last dot."""
    found: dict[str, list[Member]] = {}
    for member in members:
        if member.suffix.lower() in endings:
            found.setdefault(member.name.removesuffix(member.suffix), []).append(member)
    return found


def _sample(id: str, files: Sequence[Member], text: Member | None) -> _Sample:
    """A clip of the files of one name, which must be one unless they are pictures of several kinds."""
    file = files[0]
    if len(files) == 1 or (file.suffix.lower() in STILLS and all(f.name != file.name for f in files[1:])):
        return _Sample(id, file, text)
    if files[1].name == file.name:
        reason = f"{file} is in its tar twice; give each video a name of its own."
        return _Sample(id, file, text, "listed twice", reason)
    reason = f"{file} and {files[1].name} have one name but for the ending; give each video a name of its own."
    return _Sample(id, file, text, "two videos of one key", reason)


def _caption(member: Member) -> str:
    text = decode_utf8(member.read_bytes(), str(member))
    if member.suffix.lower() == ".json":
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("it is not valid json") from None
        return caption_of(first_of(row, CAPTIONS))
    return caption_of(text)


def _scan(path: Path) -> tuple[dict[str, list[Member]], str]:
    """The members of a tar by key, and what is wrong with the rest of it, if anything."""
    keys: dict[str, list[Member]] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                if not info.isreg():
                    continue
                if info.offset_data + info.size > size:
                    return keys, f"it ends within {plain(info.name)}"
                name = plain(info.name.removeprefix("./"))
                folder, _, base = name.rpartition("/")
                if base.startswith("."):  # what other systems leave next to a file
                    continue
                # As WebDataset cuts names: the key ends at the first dot after the folder.
                key = f"{folder}/{base.split('.')[0]}" if folder else base.split(".")[0]
                members = keys.setdefault(key, [])
                member = Member(path, name, info.offset_data, info.size)
                if member.suffix.lower() in USED:
                    members.append(member)
            end = tar.offset
        with path.open("rb") as stream:
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                return keys, f"the header at byte {end} is damaged"
    except (tarfile.TarError, OSError, ValueError) as error:
        return keys, str(error)
    return keys, ""
