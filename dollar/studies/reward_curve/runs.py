"""What a row of fits runs: launch/fit_reward.py alone, on clips that another row has scored."""

from __future__ import annotations

from pathlib import Path

from dollar.studies.rows import Row, replaced
from dollar.studies.runs import Runs

SCORING = 4.0  # how long the scoring of all clips takes, compared with a fit


class Fits(Runs):
    """Rows that fit a latent reward model each; one after another reads the clips that the other has scored."""

    def overrides(self, row: Row) -> list[str]:
        """Of launch/fit_reward.py, without seed and folders."""
        c = self.settings
        return replaced(replaced(c.train, c.groups[row.group].overrides), row.overrides)

    def left(self, row: Row) -> Path:
        """What a fit leaves."""
        return Path("lrm.json")

    def train(self, row: Row, seed: int) -> tuple[str, ...]:
        """The command that fits and measures."""
        known = [f"observations={self.folder(self._first(row).name, seed)}"] if row.after else []
        given = [f"out={self.folder(row.name, seed)}", f"seed={seed}", *known, *self.overrides(row)]
        return ("python", "launch/fit_reward.py", *given)

    def _first(self, row: Row) -> Row:
        """The row that a row's clips were first scored by; others add theirs to its file."""
        return self._first(self.rows[row.after]) if row.after else row

    def commands(self, row: Row, seed: int) -> tuple[tuple[str, ...], ...]:
        """A row's only command."""
        return (self.train(row, seed),)

    def evaluation(self, row: Row) -> list[str]:
        """Nothing besides: a fit measures itself."""
        return []

    def size(self, row: Row | None) -> float:
        """How long a row takes compared with others."""
        return 1.0 if row and row.after else SCORING
