"""How many scored clips a latent reward model needs, form by form: `python launch/reward_curve.py [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.reward_curve import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "reward_curve")
