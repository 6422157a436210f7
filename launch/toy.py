"""What SFT, DPO and both do to a small diffusion model in the plane: `python launch/toy.py [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.toy import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "toy")
