"""One command at a time in a folder, however many processes it has."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from dollar.log import logger

LOCK = ".lock"  # of a command's first process; the others' end in their ranks, as .lock-1


class Lock:
    """A command's hold on a folder: each of its processes keeps a lock file of its own, and the first looks at all.

    The first process (rank 0) has the folder once this is built; the others call `join` after that. A second command is
    therefore refused as long as any process of the first lives, for a lock is let go with its process at the latest.
    ValueError when another command, or a process that it left, has the folder.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._own = _lock(folder / (LOCK if rank == 0 else f"{LOCK}-{rank}"))
        if rank == 0 and self._take(self._own):
            for path in folder.glob(f"{LOCK}-*"):
                left = _lock(path)
                self._take(left)
                left.release()

    def join(self) -> None:
        """Hold the folder as one of its command's further processes; the first one holds it already."""
        if not self._own.is_locked:
            self._take(self._own)

    def close(self) -> None:
        """Let the folder go."""
        self._own.release()

    def _take(self, lock: FileLock) -> bool:
        """Take a lock file; False with a note where its file system has no locks."""
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.close()
            raise ValueError(
                f"another command writes to out={self.folder}, or processes that it left still run; wait for it, end "
                "it, or name another folder with out=FOLDER"
            ) from None
        except PermissionError:  # the file can't be opened
            raise
        except OSError as error:  # some network file systems know no locks
            logger.warning(f"note: {self.folder} can't be locked ({error.strerror}); run one command at a time in it")
            return False
        return True


def _lock(path: Path) -> FileLock:
    """The operating system's lock on a file that stays; no substitute for it, which a killed process would leave."""
    return FileLock(path, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)
