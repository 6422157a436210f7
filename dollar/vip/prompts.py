"""Which prompts pairs are made of: those that can be used at all, and of these the ones that suit a target."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dollar.vip.words import ARTICLES, GLUE, MATERIAL, PLACES, SLIGHT, STILL, STRONG, TITLES, VISUAL

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
END = re.compile(r"[.!?]+[\"'”’)\]]*\s+(?=\S)|\n+")
DIMENSIONS = ("motion", "richness")
REASONS = {
    "short": "have too few words",
    "long": "have too many words",
    "sentences": "are more than one sentence",
    "places": "are mostly names of places",
    "unanswered": "got no score from 0 to 3 by the chat model",
    "motion": "have less motion than the target takes",
    "richness": "are visually poorer than the target takes",
}


class Judged(NamedTuple):
    """How much motion a prompt describes, and how rich it is to look at: 0 (unusable) to 3."""

    motion: int
    richness: int


# A prompt's scores; None where none could be had.
Scorer = Callable[[str], Judged | None]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt in small letters, without articles."""
    return [word for word in WORD.findall(prompt.lower()) if word not in ARTICLES]


def fault(prompt: str, fewest: int = 5, most: int = 25) -> str | None:
    """Why a prompt can't be used, by the name of its reason; None where it can."""
    words = words_of(prompt)
    if len(words) < fewest:
        return "short"
    if len(words) > most:
        return "long"
    if sentences(prompt) > 1:
        return "sentences"
    return "places" if place_share(prompt) >= 0.5 else None


def sentences(prompt: str) -> int:
    """How many sentences a prompt has; titles and initials end none."""
    count, start = 1, 0
    for end in END.finditer(prompt):
        before = WORD.findall(prompt[start : end.start()])
        rest = WORD.search(prompt, end.end())
        last = before[-1].lower() if before else ""
        if before and rest and ("\n" in end[0] or not (last in TITLES or len(last) == 1)):
            count, start = count + 1, end.end()
    return count


def place_share(prompt: str) -> float:
    """The share of names of places among the words that mean something by themselves."""
    text = " ".join(word for word in words_of(prompt) if word not in GLUE)
    total = len(text.split())
    named = 0
    for match in PLACES.finditer(text):
        named += len(match[0].split())
    return named / total if total else 0.0


def by_keywords(prompt: str) -> Judged:
    """Scores by words that describe motion or what is to be seen."""
    words = words_of(prompt)
    forms = [_forms(word) for word in words]
    motion = 1
    if any(form & STRONG for form in forms):
        motion = 3
    if any(form & SLIGHT for form in forms):
        motion = 2
    if any(form & STILL for form in forms):
        motion = 1
    seen = {min(form & VISUAL) for form in forms if form & VISUAL}
    held = {min(form & MATERIAL) for form in forms if form & MATERIAL}
    details = len(seen) + len(held)
    return Judged(motion, 3 if details >= 3 else 2 if details else 1)


def _forms(word: str) -> set[str]:
    """A word and what it may be a form of: plural, past or progressive."""
    found = {word}
    for ending in ("s", "es", "ed", "ing", "ly"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            found |= {stem, f"{stem}e"}
            if stem[-1] == stem[-2]:  # running
                found.add(stem[:-1])
    return found


@dataclass
class Filter:
    """Looks through prompts for those that suit a target, and counts why others are left out.

    words: the fewest and the most, without articles; scorer: called for the prompts of a target that doesn't take all.
    """

    words: tuple[int, int]
    scorer: Scorer

    def suited(
        self, prompts: Iterable[str], count: int, least: Sequence[int] = (0, 0)
    ) -> tuple[list[str], Counter[str]]:
        """The first `count` prompts that suit, and how many before the last of them don't by reason.

        least: of motion and of richness.
        """
        found: list[str] = []
        counts: Counter[str] = Counter()
        for prompt in prompts:
            if len(found) == count:
                break
            reason = fault(prompt, *self.words) or self._unsuited(prompt, least)
            if reason is None:
                found.append(prompt)
            else:
                counts[reason] += 1
        return found, counts

    def _unsuited(self, prompt: str, least: Sequence[int]) -> str | None:
        if not any(least):
            return None
        if (judged := self.scorer(prompt)) is None:
            return "unanswered"
        return next((name for name, score, low in zip(DIMENSIONS, judged, least, strict=True) if score < low), None)


def check_found(found: Sequence[str], counts: Mapping[str, int], use: str) -> None:
    """Raise ValueError, with the counts by reason, where no prompt passed."""
    if not found:
        raise ValueError(
            f"no prompt passes for {use}: {told(counts) or 'there are none'}. Give other prompts=FILE, or other words "
            "or suited"
        )


def told(counts: Mapping[str, int]) -> str:
    """Counts by reason in words."""
    return ", ".join(f"{counts[reason]} {why}" for reason, why in REASONS.items() if counts.get(reason))
