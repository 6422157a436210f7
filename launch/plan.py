"""What a training would need: `python launch/plan.py processes=8 memory=80 [key=value of launch/train.py ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.plan import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "plan")
