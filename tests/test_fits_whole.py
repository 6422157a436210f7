"""Which networks a process holds whole."""

from __future__ import annotations

import pytest

from dollar.parallel.shard import MOST, TRAINED_BYTES, fits_whole


@pytest.mark.parametrize(
    ("fake", "lora", "bytes_a_number"),
    [
        (True, False, 2 * TRAINED_BYTES + 4),  # student and fake score are trained, the teacher is not
        (False, False, TRAINED_BYTES + 4),
        (True, True, TRAINED_BYTES + 8),  # the student's base is frozen, as the teacher
        (False, True, 8),
    ],
)
def test_what_is_trained_and_frozen_must_fit_a_share_of_the_memory(fake: bool, lora: bool, bytes_a_number: int) -> None:
    size = 1_000_000
    needed = int(size * bytes_a_number / MOST)
    assert fits_whole(size, needed, fake, lora)
    assert not fits_whole(size, needed - 1, fake, lora)
