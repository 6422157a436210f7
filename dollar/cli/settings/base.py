"""Common parts of the declarations of settings: places, objects that name their own class, keys that may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NewType, TypeVar

Place = NewType("Place", str)
"""A folder, a file or a hub id: taken as it stands, whatever it looks like, but for a home folder's ~.

Arguments of a `_target_` that are places are annotated by `Path`, alone or in a union.
"""

Prompt = NewType("Prompt", str)
"""A caption: text whose commas never separate the values of a sweep."""

FREE = "free"
T = TypeVar("T")
Free = Annotated[T, FREE]
"""A setting that may change when a run goes on: how long and how often, not what is learned."""


@dataclass
class Target:
    """A node whose `_target_` names a class or function; what that takes is what the node's keys may be."""
