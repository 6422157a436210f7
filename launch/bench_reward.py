"""What a reward's gradient costs, by the latent reward model and by others: `python launch/bench_reward.py`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's names would hide other packages

from dollar.cli.commands.bench_reward import main
from dollar.cli.entry import enter

if __name__ == "__main__":
    enter(main, "bench_reward")
