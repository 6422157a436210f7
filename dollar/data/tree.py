"""What lies in a folder and all folders below it, links to folders followed; each folder is read once."""

from __future__ import annotations

import os
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

from dollar.data.listed import STILLS, TEXTS, VIDEOS, cut

KNOWN = VIDEOS | STILLS | set(TEXTS)


class Tree(NamedTuple):
    """The names of files by their folder's path below the root, which is ``""`` itself; nothing that begins with a dot.

    closed: folders that can't be looked into, and why.
    """

    files: dict[str, list[str]]
    closed: dict[str, str]


def walk(root: Path) -> Tree:
    """The tree below a folder. Links come last, and lead to no folder that was seen, and to none above the root."""
    seen = {_identity(str(folder)) for folder in root.resolve().parents}
    tree, waiting, links = Tree({}, {}), [""], list[str]()
    while waiting or links:
        if not waiting:
            waiting.append(heappop(links))
        below = waiting.pop()
        try:
            identity = _identity(os.path.join(root, below))
            if identity in seen:
                continue
            seen.add(identity)
            tree.files[below], folders, linked, broken = _read(root, below)
        except OSError as error:
            tree.closed[below] = error.strerror or str(error)
            continue
        tree.closed.update(dict.fromkeys(broken, "it is a link that leads nowhere"))
        waiting += folders
        for link in linked:
            heappush(links, link)
    return tree


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _read(root: Path, below: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """The names of a folder's files, and the paths below the root of its folders, links to folders, broken links.

    A broken link without an ending is taken for one to a folder, as where a disk isn't there.
    """
    names, folders, links, broken = [], [], [], []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # caches, and what other systems leave next to a file
                continue
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif not entry.is_symlink():
                names += [entry.name] if entry.is_file(follow_symlinks=False) else []  # no pipes
            elif cut(entry.name)[1] not in KNOWN and _leads_to_folder(entry):
                links.append(path)
            elif not cut(entry.name)[1] and not os.path.exists(entry.path):
                broken.append(path)
            else:  # a link that leads nowhere too, for reading it says so
                names.append(entry.name)
    return names, folders, links, broken


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:
        return False
