"""One command at a time in a folder, however many processes it has."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dollar.log import logger
from dollar.storage import make_folder

LOCK = ".lock"  # of a command's first process; the others' end in their ranks, as .lock-1
EVALUATION = ".evaluation-lock"  # of an evaluation, which writes beside what a training of the same run writes
ANOTHER = "name another folder with out=FOLDER"


class Held(ValueError):
    """Another command has a folder. holder: which one, as a sentence's part."""

    def __init__(self, sentence: str, holder: str) -> None:
        super().__init__(sentence)
        self.holder = holder


class Lock:
    """A command's hold on a folder: each of its processes keeps a lock file of its own, and the first looks at all.

    The first process (rank 0) has the folder once this is built; the others call `join` after that. A second command is
    therefore refused as long as any process of the first lives, for a lock is let go with its process at the latest.
    Held, a ValueError, when another command, or a process that it left, has the folder; it says which, where, and since
    when. way_out: what else the user can do, which ends the sentence; name: of the lock file, where commands that don't
    disturb one another write into the same folder; stays: whether the lock file is left there, and the folder where it
    was made for the lock alone.
    """

    def __init__(
        self, folder: Path, rank: int = 0, way_out: str = ANOTHER, name: str = LOCK, stays: bool = True
    ) -> None:
        self._made, self._stays = rank == 0 and not folder.exists(), stays
        make_folder(folder)
        self.folder, self.way_out = folder, way_out
        self._file = folder / (name if rank == 0 else f"{name}-{rank}")
        self._own, self._inode, self._mark = _lock(self._file), -1, ""
        if rank == 0 and self._take(self._own):
            for path in folder.glob(f"{name}-*"):
                left = _lock(path)
                self._take(left)
                left.release()
        if rank == 0:
            self._sign()

    def join(self) -> None:
        """Hold the folder as one of its command's further processes; the first one holds it already."""
        if not self._own.is_locked:
            self._take(self._own)
            self._sign()

    def check(self) -> None:
        """Raise OSError where the folder is no longer the one that was locked: removed, renamed, or begun anew."""
        try:
            same = not self._mark or _signature(self._file).read_text(encoding="utf-8") == self._mark
        except FileNotFoundError:
            same = False
        except OSError as error:  # a file system that is slow to answer says nothing of the folder
            logger.warning(f"note: {_signature(self._file)} can't be read ({error.strerror})")
            return
        if not same:
            raise OSError(
                f"{self.folder} is no longer the folder that this command began to write to: it was removed, renamed "
                "or begun anew by another command. Nothing more is written"
            )

    def close(self) -> None:
        """Let the folder go."""
        with contextlib.suppress(OSError):
            if self._mark and _signature(self._file).read_text(encoding="utf-8") == self._mark:
                _signature(self._file).unlink()
        with contextlib.suppress(OSError):
            # One who waits for a file that is removed doesn't get it: filelock looks whether it is still there.
            if not self._stays and self._own.is_locked and self._file.stat().st_ino == self._inode:
                self._file.unlink()
                if self._made:
                    self.folder.rmdir()  # where nothing was written
        self._own.release()

    def _sign(self) -> None:
        """Write beside the lock file who holds it; without room for that, the lock itself still holds."""
        mark = json.dumps(
            {
                "command": Path(sys.argv[0]).name or "python",
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(" ", "seconds"),
            }
        )
        with contextlib.suppress(OSError):
            self._inode = self._file.stat().st_ino
            _signature(self._file).write_text(mark, encoding="utf-8")
            self._mark = mark

    def _take(self, lock: FileLock) -> bool:
        """Take a lock file; False with a note where its file system has no locks."""
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.close()
            holder = _holder(Path(lock.lock_file))
            who = "another command writes" if lock is self._own else "processes that another command left still write"
            sentence = f"{who} to {self.folder} ({holder}); wait for it, end it, or {self.way_out}"
            raise Held(sentence, holder) from None
        except PermissionError:  # the file can't be opened
            raise
        except OSError as error:  # some network file systems know no locks
            logger.warning(f"note: {self.folder} can't be locked ({error.strerror}); run one command at a time in it")
            return False
        return True


def _signature(path: Path) -> Path:
    """The file beside a lock file that says who holds it; it goes with the lock."""
    return path.with_name(f".held{path.name}")


def _holder(path: Path) -> str:
    """Who holds a lock file."""
    try:
        found: dict[str, Any] = json.loads(_signature(path).read_text(encoding="utf-8"))
        return f"{found['command']}, process {found['process']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or taken this moment
        return "it doesn't say which"


def _lock(path: Path) -> FileLock:
    """The operating system's lock on a file that stays; no substitute for it, which a killed process would leave."""
    return FileLock(path, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)
