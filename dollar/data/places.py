"""Where files are: names in lists as people write them, places that aren't read, and files of other kinds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dollar.data.listed import STILLS, VIDEOS, cut, form_of

ARCHIVES = re.compile(r"\.(tar\.[a-z0-9]+|t[gbx]z2?|tzst|zip|7z|rar|gz|bz2|xz|zst)$", re.IGNORECASE)
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?=[^/]|/[^/])", re.IGNORECASE)  # pathlib makes one slash of two
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
ENDINGS = (*sorted(VIDEOS), *sorted(STILLS))
TOOLS = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd", "zip": "unzip", "7z": "7z x", "rar": "unrar"}
POINTER = b"version https://git-lfs"
FETCH = {
    "hf": "hf download NAME --repo-type dataset --local-dir FOLDER",
    "s3": "aws s3 cp --recursive",
    "gs": "gcloud storage cp --recursive",
}


def network(place: str | Path) -> str:
    """What to do instead where this is an address (`s3://...`) and no path; empty for a path."""
    if not (found := ADDRESS.match(str(place))) or os.path.lexists(place):
        return ""
    scheme = found[1].lower()
    if scheme == "file":
        path = "/" + str(place)[found.end() :].lstrip("/")
        return f"{place} is written as an address; write the path alone, as {path}"
    how = f" (such as with `{FETCH[scheme]}`)" if scheme in FETCH else ""
    return f"{place} is on a network, and only files are read; fetch it first{how}, and give the path it has then"


def reachable(place: str | Path) -> Path:
    """The path, whether there is something or not; ValueError for an address, and for what can't be looked at."""
    if address := network(place):
        raise ValueError(address)
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be looked into
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ValueError(f"{str(place)[:200]} can't be reached: {reason}") from None
    return Path(place)


def packed(name: str) -> bool:
    """Whether the name is that of a packed file or an archive, a plain tar apart."""
    return ARCHIVES.search(name) is not None


def unpack(place: object) -> str:
    """What to do with an archive."""
    name = str(place).lower()
    tool = "tar xf" if re.search(r"\.(tar\.\w+|t\w+)$", name) else TOOLS.get(name.rpartition(".")[2], "tar xf")
    return f"{place} is packed, and clips are read where they lie; unpack it (with {tool}) into a folder, and give that"


def in_fact(path: Path) -> str:
    """What a file that can't be read is by its first bytes: packed, or a pointer of Git LFS; empty where unknown."""
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except OSError:
        return ""
    return instead(head) or packed_with(head)


def instead(head: bytes) -> str:
    """What a file of text is by its first bytes where it stands for another; empty for any other text."""
    if head.startswith(POINTER):
        return "it is a pointer of Git LFS and not the file itself, which `git lfs pull` fetches"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, so it was not what was meant to be downloaded"
    return ""


def packed_with(head: bytes) -> str:
    """What is to be done with a packed file, by its first bytes; empty for others."""
    kind = next((kind for mark, kind in PACKED.items() if head.startswith(mark)), "")
    return f"it is packed with {kind}; unpack it first" if kind else ""


class Names:
    """Looks files up by the names that lists give; each folder is listed once.

    Where there is no file of exactly this name, one counts that is the same in the other Unicode form (as from a Mac),
    with slashes for a Windows path's backslashes, in other capitals where that is clear, with `~` for the home, or with
    an ending where the name has none.
    """

    def __init__(self) -> None:
        self._there: dict[str, _Folder | None] = {}

    def find(self, folder: Path, name: str) -> Path:
        """The file; the path as it is written where there is none."""
        written = folder / name
        if self._has(written):
            return written
        for spelled in dict.fromkeys((name, name.replace("\\", "/"), os.path.expanduser(name))):
            path = Path(spelled)
            found = self._walk(Path(path.anchor) if path.anchor else folder, path.parts[bool(path.anchor) :])
            if found is not None:
                return found
        return written

    def _has(self, path: Path) -> bool:
        there = self._list(path.parent)
        return there is None or path.name in there.names

    def _walk(self, at: Path, parts: Sequence[str]) -> Path | None:
        """The file, folder by folder; each part as it is written, or in another form."""
        for number, part in enumerate(parts, 1):
            there = self._list(at)
            if there is not None and part != ".." and part not in there.names:
                known = there.by_form.get(there.form(part))
                if known is None and number == len(parts) and cut(part)[1] not in VIDEOS | STILLS:
                    named = (there.form(part + ending) for ending in ENDINGS)
                    known = next((there.by_form[n] for n in named if n in there.by_form), None)
                if known is None:
                    return None
                part = known
            at = at / part
        return at

    def _list(self, folder: Path) -> _Folder | None:
        """What a folder holds; None where that can't be said."""
        key = str(folder)
        if key not in self._there:
            try:
                names = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                names = set()
            except (OSError, ValueError):
                self._there[key] = None
                return None
            form = form_of(names)
            self._there[key] = _Folder(names, form, {form(name): name for name in sorted(names, reverse=True)})
        return self._there[key]


class _Folder(NamedTuple):
    names: set[str]
    form: Callable[[str], str]
    by_form: dict[str, str]
