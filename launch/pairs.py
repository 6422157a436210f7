"""Pairs of clips, a full model's preferred to a smaller one's: `torchrun launch/pairs.py checkpoint=FOLDER`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.pairs import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "pairs")
