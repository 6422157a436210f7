"""The cost of a cycle: seconds of each phase, the processor's, the most memory, and where memory ran out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dollar.parallel.world import peak_memory


@dataclass
class Watch:
    """Measures phases; `phase` says in which one memory ran out, and what helps. device: that of the run."""

    device: torch.device
    remedies: str = (
        "Set parallel.micro_batch=1, parallel.activation_checkpointing=true or parallel.shard=true; launch/plan.py "
        "says what each saves"
    )
    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = 0.0
    _busy: float = 0.0

    def begin(self) -> None:
        """A cycle begins."""
        self.seconds = {}
        self._started, self._busy = time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside belongs to this phase; torch.OutOfMemoryError gets its name and what helps."""
        started = time.perf_counter()
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"memory ran out in the phase {name!r}. {self.remedies} ({error})") from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def scalars(self) -> dict[str, float]:
        """Seconds of the phases and of the cycle so far; on a CPU the processor's too; the most memory in GiB."""
        found = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        found["time/cycle"] = time.perf_counter() - self._started
        if self.device.type == "cpu":  # of all threads; unlike the clock's, the same while other programs run
            found["time/processor"] = time.process_time() - self._busy
        return found | {"memory/peak_gib": peak_memory(self.device)}
