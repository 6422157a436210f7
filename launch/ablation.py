"""Train, measure and compare the ablation's rows: `python launch/ablation.py [seeds=3] [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.ablation import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "ablation")
