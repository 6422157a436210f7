"""The jobs of a sweep: a folder for each, named by what varies, and the table at the end."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dollar.cli.options import settings_in, several_in
from dollar.cli.written import expanded, quoted

LONGEST = 200  # bytes of a folder's name
FAILED = "failed"  # what a job of a sweep returns when it ended with an error


class ResultsTable(Callback):
    """Collects each job's last validation scores, prints them side by side and keeps them in runs/<run>/sweep.json."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the command where its folder can't be one; hydra would answer by a traceback, and make it."""
        from dollar.cli.entry import check_folder_for, refuse
        from dollar.cli.run_folders import check_name
        from dollar.storage import make_folder

        try:
            folder = Path(expanded(config.runs))  # first, so that it is named where it can't be read
            check_name(config)
            check_folder_for("runs", folder)
            make_folder(sweep_folder(config))
        except (ValueError, OSError, OmegaConfBaseException) as error:
            refuse(error)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember one job."""
        if job_return.cfg is None or job_return.hydra_cfg is None:
            return
        hydra = job_return.hydra_cfg.hydra
        if hydra.mode != RunMode.MULTIRUN:
            return
        folder = job_folder(job_return.cfg, hydra)
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
        (sweep_folder(config) / "sweep.json").write_text(json.dumps(self.rows, indent=1))


def sweep_folder(config: DictConfig) -> Path:
    """Where hydra's and our account of a whole sweep is written: runs/<run>, or runs where run varies."""
    return Path(config.hydra.sweep.dir)


def job_folder(config: DictConfig, hydra: Any) -> Path:
    """runs/<run>/<name> of one job of a sweep, where the name is what varies beside run; hydra: its own settings."""
    name = job_name(list(hydra.overrides.task), list(hydra.job.config.override_dirname.exclude_keys))
    return Path(expanded(config.runs)) / str(config.run) / name


def job_name(words: Sequence[str], excluded: Sequence[str]) -> str:
    """The overrides as a folder's name, without those of the excluded keys; other overrides have another name."""
    given = dict(map(_given, words))  # of a key that is given twice, the last counts
    parts = [f"{key.replace('/', '.')}={_short(given[key])}" for key in sorted(given) if key not in excluded]
    name = ",".join(parts)
    if len(name.encode()) > LONGEST:
        name = f"{name[: LONGEST - 20]}...{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def named_by(arguments: Sequence[str]) -> list[str]:
    """The settings of hydra's that leave what doesn't vary out of the names of a sweep's folders.

    Where nothing varies, all that is given names the one job. ValueError for a value that is given twice, and for
    several folders of runs.
    """
    words = [word for word in settings_in(arguments) if not word.startswith(("hydra", "~"))]
    parsed = [OverridesParser.create().parse_override(word) for word in words] if several_in(arguments) else []
    for word, override in zip(words, parsed, strict=False):
        if override.is_choice_sweep():
            values = list(override.sweep_string_iterator())
            if len({*values}) < len(values):
                raise ValueError(f"{word} gives a value twice, whose jobs would be one run; give each once")
    last = {_key(override): override for override in parsed}
    varying = [key for key, override in last.items() if override.is_sweep_override()]
    if "runs" in varying:
        raise ValueError("runs has several values; the jobs of a sweep lie in one folder, so give one")
    if not varying:
        return []
    excluded = dict.fromkeys(["run", "runs", *(key for key in last if key not in varying)])
    whole = ['hydra.sweep.dir="${home:${runs}}"'] if "run" in varying else []
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, excluded))}]", *whole]


def _key(override: Override) -> str:
    return (override.input_line or "").lstrip("+").partition("=")[0]


def _given(word: str) -> tuple[str, Any]:
    override = OverridesParser.create().parse_override(word)
    return _key(override), override.value()


def _short(value: Any) -> str:
    """A value as a part of a file's name; a hash keeps those apart that read alike."""
    if isinstance(value, list) and value and not any(isinstance(item, (list, dict)) for item in value):
        value = "_".join(_short(item) for item in value) if not any("_" in str(item) for item in value) else str(value)
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else None
    text = str(value) if text is None else text
    if re.fullmatch(r"[\w.+-]{1,60}", text, re.ASCII):
        return text
    plain = re.sub(r"[^\w.+-]+", "-", Path(text).name, flags=re.ASCII).strip("-.")[:24]
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def last_scores(folder: Path) -> dict[str, float]:
    """The last value of each validation score of a run."""
    from dollar.training.log import read_scalars

    if not (folder / "metrics.jsonl").is_file():
        return {}
    curves = read_scalars(folder)
    return {name: float(curve.values[-1]) for name, curve in curves.items() if name.startswith("validation/")}
