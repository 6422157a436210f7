"""Clips with their captions next to them: `a.mp4` and `a.txt`, and what of a folder is left over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dollar.data.listed import STILLS, TEXTS, VIDEOS, Skipped, cut, form_of, plain
from dollar.data.lists import Pair
from dollar.data.places import packed, unpack

ABOUT = {"readme", "license", "licence", "notice", "changelog", "requirements"}  # texts that are no captions
Form = Callable[[str], str]


class Place(NamedTuple):
    """A file `name` in the folder `below` the root."""

    root: Path
    below: str
    name: str

    @property
    def id(self) -> str:
        """Its path below the root, as text that can be stored."""
        return plain(f"{self.below}/{self.name}" if self.below else self.name)

    @property
    def path(self) -> Path:
        """Its path."""
        return self.root / self.below / self.name

    def skipped(self, cause: str, sentence: str) -> Skipped:
        """It isn't used; the sentence goes on after its path."""
        return Skipped(self.id, self.path, cause, plain(f"{self.path} {sentence}."))


def pairs(root: Path, below: str, names: Sequence[str]) -> list[tuple[str, Pair | Skipped]]:
    """(name, clip or what it isn't used for) of the files of these names in the folder `below` the root.

    The caption of `a.mp4` is `a.mp4.txt`, `a.txt`, or the same with `.caption` or `.json`, the first that is there; the
    Unicode form of names doesn't matter, nor do capitals where names stay different without them. A picture next to a
    video of its name, and a second picture, is a thumbnail, unless it has a caption of its whole name.
    """
    form = form_of(names)
    texts, first = _texts(names, form), _first_of_each_name(names, form)
    found: list[tuple[str, Pair | Skipped]] = []
    claimed = set()
    for name in names:
        stem, ending = cut(name)
        if ending not in VIDEOS | STILLS:
            continue
        place, whole, shared = Place(root, below, name), form(name), form(stem)
        claimed |= {whole, shared}
        if first[shared] != name and ending in STILLS and not any((whole, end) in texts for end in TEXTS):
            of = f"is taken for a thumbnail of {first[shared]}; a caption {name}.txt would make it a clip"
            found.append((name, place.skipped("thumbnail", of)))
        elif text := next((texts[key, end] for end in TEXTS for key in (whole, shared) if (key, end) in texts), None):
            found.append((name, Pair(place.id, place.path, root / below / text)))
        else:
            cause = "picture without a caption" if ending in STILLS else "unreadable caption"
            needed = f"has no caption; it needs {stem}.txt (or .caption, or .json) next to it"
            found.append((name, place.skipped(cause, needed)))
    alone = {key: name for (key, ending), name in texts.items() if key not in claimed and ending != ".json"}
    return found + _alone(root, below, names, alone, form)


def _texts(names: Sequence[str], form: Form) -> dict[tuple[str, str], str]:
    """The texts by their names before the ending, in one form, and the ending."""
    found: dict[tuple[str, str], str] = {}
    for name in names:
        stem, ending = cut(name)
        if ending in TEXTS:
            key = form(stem), ending
            if key not in found or name == stem + ending:  # of `a.TXT` and `a.txt` the latter
                found[key] = name
    return found


def _first_of_each_name(names: Sequence[str], form: Form) -> dict[str, str]:
    """By the name before the ending: the video, or else the first picture."""
    found: dict[str, str] = {}
    for kind in (VIDEOS, STILLS):
        for name in sorted(names):
            stem, ending = cut(name)
            if ending in kind:
                found.setdefault(form(stem), name)
    return found


def _alone(
    root: Path, below: str, names: Sequence[str], texts: dict[str, str], form: Form
) -> list[tuple[str, Skipped]]:
    """What is to be said of captions without a video: `texts` by the name that a video would have."""
    if not texts:
        return []
    others: dict[str, str] = {}
    for name in names:
        stem, ending = cut(name)
        if ending not in TEXTS:
            others.update({form(name): name, form(stem): name})
    found = []
    for key, text in texts.items():
        place = Place(root, below, others.get(key, text))
        if key not in others:
            if key.lower() not in ABOUT:
                found.append((text, place.skipped("caption without a video", "lies next to no clip of its name")))
        elif packed(place.name):
            found.append((place.name, Skipped(place.id, place.path, "packed archive", plain(f"{unpack(place.path)}."))))
        else:
            ending = cut(place.name)[1] or "a name without an ending"
            sentence = f"has a caption, {text}, but {ending} is not known for a video; a captions.jsonl may name it"
            found.append((place.name, place.skipped("unknown ending", sentence)))
    return found
