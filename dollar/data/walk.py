"""The order in which samples come from files: shuffled, and known for any sample without those before it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Walk:
    """The place of every sample: each epoch visits all rows once, files in a new order, rows shuffled within blocks.

    rows_per_file: how many rows each file has; they are numbered file by file. A block is as many files as have
    `block_rows` rows together. Where a sample is follows from its number and the seed alone.
    """

    def __init__(self, rows_per_file: np.ndarray, seed: int, block_rows: int) -> None:
        self.rows_per_file, self.seed, self.block_rows = rows_per_file, seed, block_rows
        self.first = np.concatenate([[0], np.cumsum(rows_per_file)])
        self._epoch, self._block = lru_cache(2)(self._new_epoch), lru_cache(4)(self._new_block)

    def __call__(self, sample: int) -> int:
        """The row of a global sample index."""
        epoch, place = divmod(sample, int(self.first[-1]))
        starts = self._epoch(epoch).starts
        block = int(np.searchsorted(starts, place, "right")) - 1
        return int(self._block(epoch, block)[place - starts[block]])

    def _new_epoch(self, epoch: int) -> _Epoch:
        files = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.rows_per_file))
        blocks: list[list[int]] = []
        room = 0
        for file in files.tolist():
            if room <= 0:
                blocks.append([])
                room = self.block_rows
            blocks[-1].append(file)
            room -= int(self.rows_per_file[file])
        counts = [int(self.rows_per_file[block].sum()) for block in blocks]
        return _Epoch(blocks, np.concatenate([[0], np.cumsum(counts[:-1], dtype=np.int64)]))

    def _new_block(self, epoch: int, block: int) -> np.ndarray:
        files = self._epoch(epoch).blocks[block]
        rows = np.concatenate([np.arange(self.first[file], self.first[file + 1]) for file in files])
        return np.random.Generator(np.random.PCG64([self.seed, epoch, block])).permutation(rows)


class _Epoch(NamedTuple):
    blocks: list[list[int]]  # files of each
    starts: np.ndarray  # the first place of each block
