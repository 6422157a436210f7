"""Networks by named values of their clips: `torchrun launch/score.py checkpoints=[A,B] out=FOLDER [key=value ...]`.

What is in the folder stays: each network is scored once, however often and with whatever others it is named.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dollar.cli.build.configs import configs_of_teacher
from dollar.cli.build.ranking import named_reward, prompts_of, requests_of
from dollar.cli.build.scoring import FULL, check_keys, first_of, networks_of, take_teacher_of
from dollar.cli.entry import check_folder_for

if TYPE_CHECKING:
    from dollar.cli.kept import Kept
    from dollar.parallel.lock import Lock

FILE = "scores.json"


def main(config: DictConfig) -> None:
    """Score what is missing, and print the table."""
    check_keys(config)
    out = Path(config.out)
    check_folder_for("out", out)
    from dollar.cli.build.teacher import quiet
    from dollar.cli.kept import kept_in
    from dollar.parallel.lock import Lock

    kept = kept_in("score", config, out, (out / FILE).is_file())
    take_teacher_of(config)
    quiet()
    with closing(Lock(out, int(os.environ.get("RANK", 0)), stays=False)) as lock:
        score(config, kept, lock)


def score(config: DictConfig, kept: Kept, lock: Lock) -> None:
    """This process's part; the first one writes."""
    from dollar.cli.build.processes import join
    from dollar.cli.build.teacher import build_teacher
    from dollar.log import progress
    from dollar.parallel.world import finish
    from dollar.vip.scoring import Scores, score_clips

    prompts = prompts_of(config, "held_out")
    wanted = requests_of(config, prompts)
    reward = named_reward(config.reward, prompts, "scoring")
    networks = networks_of(config, configs_of_teacher(config))
    path = kept.folder / FILE
    scores = Scores.read(path)
    world = join(config)
    lock.join()
    world.barrier()  # all have read the same file
    if world.is_main:
        kept.store()
    missing = [network for network in networks if not scores.has(network.label, network.weights)]
    if missing:
        teacher = build_teacher(config, world, weights=any(network.label == FULL for network in missing))
        for network in progress(missing, "scoring", active=world.is_main):
            scores.add(
                network.label, network.weights, score_clips(network.sampler(teacher), teacher, reward, wanted, world)
            )
            if world.is_main:
                scores.write(path)
    if world.is_main:
        print(f"{scores.table(first_of(config), prompts)}\n\nthe values are in {path}")
    finish(world)
