"""The table at the end of a sweep."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

LONGEST = 200  # bytes of a folder's name
FAILED = "failed"  # what a job of a sweep returns when it ended with an error


class ResultsTable(Callback):
    """Collects each job's last validation scores, prints them side by side and keeps them in runs/<run>/sweep.json."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember one job."""
        if job_return.cfg is None or job_return.hydra_cfg is None:
            return
        hydra = job_return.hydra_cfg.hydra
        if hydra.mode != RunMode.MULTIRUN:
            return
        folder = job_folder(job_return.cfg, hydra.job.override_dirname)
        failed = job_return.status != JobStatus.COMPLETED or job_return.return_value == FAILED
        self.rows.append({"run": folder.name, **({"failed": True} if failed else last_scores(folder))})

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table."""
        columns = sorted({key for row in self.rows for key in row} - {"run"})
        width = max([len(row["run"]) for row in self.rows] + [3])
        print("\n" + "run".ljust(width) + "".join(c.removeprefix("validation/").rjust(14) for c in columns))
        for row in self.rows:
            cells = (f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "—")) for c in columns)
            print(row["run"].ljust(width) + "".join(cell.rjust(14) for cell in cells))
        folder = Path(config.runs) / str(config.run)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.json").write_text(json.dumps(self.rows, indent=1))


def job_folder(config: DictConfig, overrides: str) -> Path:
    """runs/<run>/<overrides> of one job of a sweep; many overrides are cut to a name that file systems take."""
    name = overrides.replace("/", "_") or "defaults"
    if len(name.encode()) > LONGEST:
        name = f"{name[: LONGEST - 20]}...{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return Path(config.runs) / str(config.run) / name


def last_scores(folder: Path) -> dict[str, float]:
    """The last value of each validation score of a run."""
    from dollar.training.log import read_scalars

    if not (folder / "metrics.jsonl").is_file():
        return {}
    curves = read_scalars(folder)
    return {name: float(curve.values[-1]) for name, curve in curves.items() if name.startswith("validation/")}
