"""Train the embedded networks from nothing: `torchrun launch/pretrain.py [key=value ...]`; resumes when stopped."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.pretrain import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "pretrain")
