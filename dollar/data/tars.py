"""WebDataset tars: `key.mp4` next to `key.txt` or `key.json`, read where they lie."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dollar.data.listed import STILLS, TEXTS, VIDEOS, Entry, Origin, Skipped, cut, plain
from dollar.data.places import in_fact
from dollar.data.text import caption_from

USED = VIDEOS | STILLS | set(TEXTS)


class Member(NamedTuple):
    """A file within a tar: `size` bytes from `offset` on, or why it has none."""

    tar: Path
    name: str
    offset: int
    size: int
    problem: str = ""

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def origin(self) -> Origin:
        """The tar, and its place in it."""
        return Origin((self.tar,), f"{self.name} {self.offset}+{self.size}")

    def read_bytes(self) -> bytes:
        """Its content; ValueError when it has none, or the tar has become shorter."""
        if self.problem:
            raise ValueError(self.problem)
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
                self._samples.append((f"{name}:", _torn(f"{name}:", path, len(keys), problem)))

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
            return Entry(id, file, caption_from(sample.text.read_bytes(), sample.text.suffix.lower(), str(sample.text)))
        except (OSError, ValueError) as error:
            return Skipped(id, file, "unreadable caption", f"the caption {sample.text} can't be used: {error}.")


def _torn(id: str, path: Path, samples: int, problem: str) -> Skipped:
    """What can't be read of a tar."""
    if not samples and (fact := in_fact(path)):
        cause = "packed archive" if "packed" in fact else "torn file"
        return Skipped(id, path, cause, f"{path} can't be read as a tar: {fact}.")
    return Skipped(id, path, "torn file", f"{path} is torn after {samples} samples: {problem}; fetch it again.")


def _matched(key: str, members: Sequence[Member]) -> list[_Sample]:
    """The samples of one key: a video has the caption of its whole name, or the key's where there is but one of both.

    A picture counts where its name, or the key, has no video.
    """
    videos, stills = (_by_stem(members, endings) for endings in (VIDEOS, STILLS))
    films = stills | videos
    texts = _texts(members, films)
    samples = [_sample(stem, films[stem], texts[stem][0]) for stem in films if stem in texts]
    left = {stem: files for stem, files in (videos or stills).items() if stem not in texts}
    if len(samples) == 1 and not left:
        return [samples[0]._replace(id=key)]
    if len(videos or stills) == 1 and left and not samples:
        (files,) = left.values()
        txts = [t for t in texts if texts[t][0].suffix.lower() != ".json"] or list(texts)
        if len(txts) < 2:
            return [_sample(key, files, texts[txts[0]][0] if txts else None)]
        several = f"{files[0]} has the captions {', '.join(texts[t][0].name for t in txts[:2])}; give one its own name."
        return [_Sample(key, files[0], None, "two captions of one key", several)]
    if videos or not samples:  # next to a clip with a caption, a picture is a thumbnail
        for stem, files in left.items():
            reason = f"{files[0]} is not alone with the key {key}, and no caption has its whole name."
            samples.append(_Sample(stem, files[0], None, "two videos of one key", reason))
    if not films and texts:
        samples.append(_alone(key, next(iter(texts.values()))[0], members))
    return samples


def _alone(key: str, text: Member, members: Sequence[Member]) -> _Sample:
    """A caption without a video: what else has its key is told."""
    if (other := next((member for member in members if cut(member.name)[1] not in USED), None)) is None:
        return _Sample(key, None, text)
    reason = f"{other} has a caption, {text.name}, but {other.suffix or 'a name without an ending'} is not known for a "
    return _Sample(
        key, other, text, "unknown ending", reason + "video; unpack the tar, and a captions.jsonl may name it."
    )


def _texts(members: Sequence[Member], films: dict[str, list[Member]]) -> dict[str, list[Member]]:
    """The captions by the names that their videos have before the ending; `a.mp4.txt` is that of `a.mp4`."""
    found: dict[str, list[Member]] = {}
    for ending in reversed(TEXTS):  # of several endings the first counts
        texts = _by_stem(members, {ending})
        found |= texts
        for stem, files in films.items():
            for file in files:
                if file.name in texts and file.name not in films:
                    found[stem] = found.pop(file.name)
    return found


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


def _member(tar: Path, name: str, info: tarfile.TarInfo, files: dict[str, Member]) -> Member:
    """A file of a tar, or what a link in it leads to among the `files` before it."""
    if info.isreg():
        return Member(tar, name, info.offset_data, info.size)
    folder = "" if info.islnk() else posixpath.dirname(name)
    target = plain(posixpath.normpath(posixpath.join(folder, info.linkname)))
    if (found := files.get(target)) is not None:
        return found._replace(name=name)
    problem = f"it is a link to {plain(info.linkname)}, which is not in the tar before it; make the tar with tar -h"
    return Member(tar, name, 0, 0, problem)


def _scan(path: Path) -> tuple[dict[str, list[Member]], str]:
    """The members of a tar by key, and what is wrong with the rest of it, if anything."""
    keys: dict[str, list[Member]] = {}
    files: dict[str, Member] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                if not (info.isreg() or info.islnk() or info.issym()):
                    continue
                if info.isreg() and info.offset_data + info.size > size:
                    return keys, f"it ends within {plain(info.name)}"
                name = plain(info.name.removeprefix("./"))
                folder, _, base = name.rpartition("/")
                if base.startswith("."):  # what other systems leave next to a file
                    continue
                # As WebDataset cuts names: the key ends at the first dot after the folder.
                key = f"{folder}/{base.split('.')[0]}" if folder else base.split(".")[0]
                member = _member(path, name, info, files)
                keys.setdefault(key, []).append(member)
                if cut(base)[1] in USED:  # what links may lead to
                    files[name] = member
            end = tar.offset
        with path.open("rb") as stream:
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                return keys, f"the header at byte {end} is damaged"
    except (tarfile.TarError, OSError, ValueError) as error:
        return keys, str(error)
    return keys, ""
