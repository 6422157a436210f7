"""Networks by named values of their clips: `torchrun launch/score.py checkpoints=[A,B] [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.score import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "score")
