"""Train and measure students of 4, 2, 1, 8 and 16 steps: `python launch/few_step.py [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.few_step import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "few_step")
