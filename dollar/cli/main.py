"""The console script: `dollar train key=value` does what `python launch/train.py key=value` does."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"


def main() -> None:
    """Run the verb that the first word names; exit code 2 and a sentence for a word that is none."""
    verbs = {path.stem: path for path in sorted(COMMANDS.glob("*.py")) if path.stem != "__init__"}
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("--help", "-h"):
        print(overview(verbs))
    elif verb not in verbs:
        near = difflib.get_close_matches(verb, verbs, 1, 0.5)
        hint = f"the nearest is {near[0]!r}" if near else "--help lists all"
        print(f"dollar: there is no {verb!r}; {hint} ({', '.join(verbs)})", file=sys.stderr)
        sys.exit(2)
    else:
        from dollar.cli.entry import enter

        sys.argv = [f"dollar {verb}", *rest]
        enter(importlib.import_module(f"dollar.cli.commands.{verb}").main, verb)


def overview(verbs: Iterable[str]) -> str:
    """All verbs, each with a line."""
    from dollar.cli.help import description

    lines = [f"  {verb:14}{description(verb)}" for verb in verbs]
    return "\n".join(
        [
            "Usage: dollar VERB [key=value ...]\n",
            *lines,
            "\ndollar VERB --help shows all keys of a verb with their meanings and defaults, and its choices.",
        ]
    )


if __name__ == "__main__":
    main()
