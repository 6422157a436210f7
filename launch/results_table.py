"""The table at the end of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class ResultsTable(Callback):
    """Collects each job's last validation scores, prints them side by side and keeps them in runs/<run>/sweep.json."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember one job."""
        if job_return.cfg is None or job_return.hydra_cfg is None:
            return
        name = job_return.hydra_cfg.hydra.job.override_dirname
        folder = Path(job_return.cfg.runs) / str(job_return.cfg.run) / (name.replace("/", "_") or "defaults")
        failed = job_return.status != JobStatus.COMPLETED
        self.rows.append({"run": name, **({"failed": True} if failed else last_scores(folder))})

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


def last_scores(folder: Path) -> dict[str, float]:
    """The last value of each validation score of a run."""
    from dollar.log import read_scalars

    if not (folder / "metrics.jsonl").is_file():
        return {}
    curves = read_scalars(folder)
    return {name: float(curve.values[-1]) for name, curve in curves.items() if name.startswith("validation/")}
