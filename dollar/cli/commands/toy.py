"""What SFT, DPO and both do to a small diffusion model in the plane: `python launch/toy.py [key=value ...]`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dollar.cli.entry import check_alone, check_folder_for


def main(config: DictConfig) -> None:
    """Make the seeds that are missing, then write the page."""
    check_alone("the toy")
    check_folder_for("out", Path(config.out))
    from dollar.cli.build.toy import setting_of
    from dollar.studies.rows import seeds_of
    from dollar.studies.toy.study import carry_out

    page = carry_out(setting_of(config), seeds_of(config.seeds), Path(config.out))
    print(f"the page is {page}, its figures are in {page.with_suffix('') / 'results.json'}")
