"""What a reward's gradient costs, by the latent reward model and by others: `python launch/bench_reward.py`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Count, run, print and write."""
    from dollar.cli.build.benchmarks import conditions_of

    conditions = conditions_of(config)
    from dollar.benchmarks.reward_runs import name_of, tables
    from dollar.benchmarks.reward_tables import put_section
    from dollar.cli.build.teacher import quiet

    quiet()
    found, device = tables(conditions), name_of(conditions.device)
    for title, text in found.items():
        print(f"\n{title}\n\n{text}", flush=True)
    command = f"```sh\n{command_line()}\n```"
    parts = [f"### {title}\n\n{command}\n\n{text}" for title, text in found.items()]
    body = "\n\n".join([f"## Rewards' gradients: {device}", *parts])
    put_section(Path(config.out), f"rewards on {device}", body)
    print(f"\nwritten to {config.out}, section {device}")


def command_line() -> str:
    """The command that this run is."""
    from hydra.core.hydra_config import HydraConfig

    return " ".join(["python launch/bench_reward.py", *HydraConfig.get().overrides.task])
