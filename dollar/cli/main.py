"""`dollar VERB [key=value ...]`: the commands of launch/ under one name."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the command that the first word names."""
    from dollar.cli.entry import enter

    verbs = sorted(p.stem for p in (Path(__file__).parent / "commands").glob("*.py") if p.stem != "__init__")
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(f"dollar: name a command: {', '.join(verbs)}")
    verb = sys.argv.pop(1)
    enter(import_module(f"dollar.cli.commands.{verb}").main, verb)
