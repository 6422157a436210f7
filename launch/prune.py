"""Take blocks out of a teacher or a student: `python launch/prune.py remove=[transformer_blocks.3] out=FOLDER`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.prune import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "prune")
