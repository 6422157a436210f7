"""Fit a latent reward model to a pixel reward: `python launch/fit_reward.py reward=NAME out=FOLDER [key=value ...]`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.fit_reward import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "fit_reward")
