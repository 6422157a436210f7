"""A teacher or a student made smaller stage by stage: `python launch/vip.py stages=[2,1] [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.vip import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "vip")
