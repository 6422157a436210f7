"""The folder of an export: whether it may be written, and how it appears whole."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dollar.storage import free_bytes


def check_out(out: Path, what: str, place: Path, overwrite: bool) -> None:
    """Raise ValueError unless `out` may be written and neither it nor the needed `place` lies in the other."""
    here, there = out.resolve(), place.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(f"out={out} and the {what} {place} lie in one another; name a folder beside it")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"out={out} is not empty; name another folder, or give overwrite=true")
    if not (out / "README.md").is_file() or not (out / "scheduler").is_dir():
        raise ValueError(f"overwrite=true replaces an earlier export, and out={out} holds something else")


def check_space(out: Path, needed: int, link: bool) -> None:
    """Raise ValueError unless the folder's disk has room for so many bytes."""
    if needed > (free := free_bytes(out)):
        raise ValueError(
            f"the export needs {needed:,} bytes and {free:,} are free for {out}; name a folder elsewhere"
            + ("" if link else ", or share the teacher's files with link=true")
        )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder next to `out` that takes its place when the block ends well, and is removed when it doesn't.

    An earlier export stays until the new one is whole. What killed exports to this place have left beside it goes.
    """
    out = out.resolve()  # a link stays, and what it leads to is replaced
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear(out)
    aside, before = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        if out.exists():
            os.replace(out, before)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not out.exists():
            os.replace(before, out)
        shutil.rmtree(before, ignore_errors=True)


def _clear(out: Path) -> None:
    """Remove what killed exports have left beside `out`; an earlier export that one had moved away is put back."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*"):
        number, _, kind = left.name.removeprefix(f".{out.name}.").partition(".")
        if not number.isdigit() or kind not in ("tmp", "old") or _lives(int(number)):
            continue
        if kind == "old" and not out.exists():
            os.replace(left, out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether there is such a process on this machine, so that its folder is in use."""
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (OSError, OverflowError):
        return False
    return True
