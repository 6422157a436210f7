"""A student as a plain diffusers folder: `python launch/export.py checkpoint=PATH out=FOLDER [key=value ...]`.

PATH is a student's folder, a run's, or one of its checkpoints.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.export import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "export")
