"""Prompts judged by a chat model: of transformers, or at an address that speaks as OpenAI's does."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from typing import Any, Protocol
from urllib.parse import urldefrag

from dollar.log import logger
from dollar.vip.prompts import Judged

ATTEMPTS = 3
SECONDS = 120.0  # that an answer may take
MARK = re.compile(r"(?<![\d.])(?<!(?<!\d)-)([0-3])(?![\d.]*\d)")  # not of 10, 2.5 or -1; both of 2-3
TASK = """Below is a prompt for a video generator. Give it a mark from 0 to 3 for {what}.
0: the prompt can't be used, since it is broken, makes no sense, or mostly lists countries or other places.
{marks}
Answer with the mark alone, a single digit.

Prompt: {prompt}"""
MOTION = (
    "how much moves in the video",
    "1: nothing moves, such as a landscape without wind or an object on a table.\n"
    "2: a little moves, or something small repeats, such as leaves in a breeze or a hand that turns a page.\n"
    "3: much moves, or the camera does, such as a race, a dance, breaking waves or a drive through a street.",
)
RICHNESS = (
    "how richly it describes what is to be seen",
    "1: it names things without saying how they look.\n"
    "2: it says a little of colours, light, materials or mood.\n"
    "3: it describes colours, light, materials, detail or mood closely.",
)


class Chat(Protocol):
    """Answers a message; attempt: 0 for the first time that it is asked, then 1 and 2."""

    def answer(self, message: str, attempt: int = 0) -> str:
        """What it says; OSError or ValueError where it can't be reached, or says nothing that can be read."""
        ...


class AtAddress:
    """A chat model at an address that speaks as OpenAI's does, such as http://localhost:8000/v1#name.

    What follows # is the model's name; without it, the first one that the server lists. The environment's
    OPENAI_API_KEY, where there is one, is sent along.
    """

    def __init__(self, address: str) -> None:
        url, self.name = urldefrag(address)
        self.url = url.rstrip("/")

    def answer(self, message: str, attempt: int = 0) -> str:
        """What it says."""
        if not self.name:
            self.name = str(self._ask("models")["data"][0]["id"])
        said = self._ask(
            "chat/completions",
            {
                "model": self.name,
                "messages": [{"role": "user", "content": message}],
                "temperature": 0.0 if attempt == 0 else 0.7,
                "seed": attempt,
            },
        )
        return str(said["choices"][0]["message"]["content"])

    def check(self) -> None:
        """Raise ValueError where nobody answers at the address."""
        try:
            self._ask("models")
        except urllib.error.HTTPError:
            pass  # somebody does, and not every server lists its models
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the chat model at {self.url} can't be reached ({error}); start its server, correct the address, or "
                "give chat=null, which judges prompts by keywords"
            ) from None

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{what}", data, headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.loads(answer.read())


class ByChat:
    """Scores prompts by a chat model, asked again twice where it can't be reached or doesn't answer 0 to 3."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._noted = False

    def __call__(self, prompt: str) -> Judged | None:
        """Its marks; None where it gave none, which is told the first time."""
        marks = []
        for what, scale in (MOTION, RICHNESS):
            if (mark := self._mark(TASK.format(what=what, marks=scale, prompt=prompt))) is None:
                return None
            marks.append(mark)
        return Judged(*marks)

    def _mark(self, message: str) -> int | None:
        trouble = ""
        for attempt in range(ATTEMPTS):
            try:
                said = self.chat.answer(message, attempt)
            except (OSError, ValueError, LookupError, TypeError) as error:
                trouble = f"the chat model can't be asked ({error})"
                continue
            if (mark := mark_in(said)) is not None:
                return mark
            trouble = f"the chat model answered {said[:60]!r}, which is no mark from 0 to 3"
        if not self._noted:
            self._noted = True
            logger.warning(f"note: {trouble}; a prompt is left out after {ATTEMPTS} attempts")
        return None


def mark_in(said: str) -> int | None:
    """The one mark from 0 to 3 in an answer; None where there is none, or several that differ."""
    found = {int(mark) for mark in MARK.findall(said)}
    return found.pop() if len(found) == 1 else None
