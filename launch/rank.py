"""What each unit of a network is worth: `torchrun launch/rank.py reward=NAME k=2 out=FOLDER [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.rank import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "rank")
