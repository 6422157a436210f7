"""What each part of V.I.P. does on the shapes world: `python launch/vip_ablation.py [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.vip_ablation import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "vip_ablation")
