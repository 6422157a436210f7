"""The small decoder's turn: it is fitted to the autoencoder on clips of the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from dollar.methods.ingredients import Ingredients
from dollar.methods.student import StudentUpdate
from dollar.methods.surrogate_fit import fit_losses
from dollar.parallel.checkpoint import State
from dollar.surrogate.fitted_decoder import FittedDecoder
from dollar.training.turn import Moment, NoUpdate, Pullback, Scalars


class DecoderFit:
    """Fits the small decoder to what it remembers of decoded clips.

    turn: the number of a cycle's turn; clips: over all processes, that are shown to it in a cycle; updates: a cycle;
    decodes: whether it decodes them itself, for where no latent reward model is fitted nobody else does.
    """

    def __init__(
        self,
        run: Ingredients,
        student: StudentUpdate,
        scalars: Scalars,
        turn: Callable[[int], int],
        clips: int,
        updates: int,
        decodes: bool,
    ) -> None:
        self.run, self.student, self.scalars, self.turn = run, student, scalars, turn
        self.clips, self.updates, self.decodes = clips, updates, decodes

    @property
    def decoder(self) -> FittedDecoder:
        assert self.run.decoder is not None
        return self.run.decoder

    def begin(self, cycle: int) -> NoUpdate | None:
        """Decode a few frames of the student's samples where that is to be done here."""
        decoder = self.decoder
        if self.decodes and self.student.drawn:
            count = len(self.run.draws(self.turn(cycle), self.clips).indices)
            latents = torch.cat([d.sample.x_hat for d in self.student.drawn])[:count]
            held = decoder.wanted(latents)
            decoder.remember(latents, decoder.codec.decode(latents, decoder.codec.ends(latents, held)), held)
        return None if decoder.past else NoUpdate()

    def losses(self, when: Moment) -> Iterator[Pullback]:
        """The branches of one update."""
        draws, purpose = self.run.draws(self.turn(when.cycle), self.clips), f"decoder {when.update}"
        return fit_losses(self.decoder, draws, purpose, self.run.micro_batch, self.scalars, "decoder")

    def stepped(self) -> None:
        """Count an update."""
        self.decoder.updates += 1

    def state(self) -> State:
        return self.decoder.state()

    def load(self, state: State) -> None:
        world = self.run.world
        rows = {len(t) for name, t in state.tensors.items() if name.endswith("/latents")}
        if rows - {self.clips}:
            raise ValueError(
                f"the small decoder remembers {max(rows)} clips a cycle, and on {world.size} process"
                f"{'es' if world.size > 1 else ''} it would be shown {self.clips}; go on with "
                "as many processes as before"
            )
        self.decoder.load(state, slice(world.rank, None, world.size))
