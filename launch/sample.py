"""Make clips: `python launch/sample.py checkpoint=runs/mine/student steps=4 prompt="..." [key=value ...]`.

With `torchrun --nproc-per-node N` the clips are shared out among N GPUs.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.sample import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "sample")
