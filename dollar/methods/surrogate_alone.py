"""The latent reward model's fit to scored clips, apart from a student: a method of one turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dollar.diffusion.draws import Draws
from dollar.methods.surrogate_fit import fit_losses
from dollar.parallel.checkpoint import State
from dollar.parallel.world import World
from dollar.surrogate.latent_reward import LatentReward
from dollar.training.turn import Moment, Pullback, Scalars, Turn


class SurrogateAlone:
    """An update of `batch` remembered clips a cycle. The memory follows from the scored clips and is not kept."""

    def __init__(
        self, surrogate: LatentReward, seed: int, batch: int, world: World, micro_batch: int | None = None
    ) -> None:
        self.surrogate, self.seed, self.batch, self.world = surrogate, seed, batch, world
        self.micro_batch, self.logged = micro_batch, Scalars()
        self._turn = Turn("lrm", "lrm", self._losses)

    def begin(self, cycle: int, progress: float) -> None:
        self.logged.clear()

    def turns(self, cycle: int) -> Sequence[Turn]:
        return [self._turn]

    def _losses(self, when: Moment) -> Iterator[Pullback]:
        draws = Draws(self.seed, when.cycle, range(self.batch), self.world.device)
        return fit_losses(self.surrogate, draws, "lrm", self.micro_batch, self.logged)

    def samples(self, cycle: int) -> list[int]:
        return []

    def state(self) -> State:
        return State({}, {})

    def load(self, state: State) -> None:
        """The surrogate's memory was filled before."""
