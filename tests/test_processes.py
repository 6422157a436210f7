"""dollar/cli/build/processes.py: where a dtype is slow, a command says so."""

from __future__ import annotations

import pytest
import torch
from conftest import compose

from dollar.cli.build.processes import join
from dollar.parallel.world import multiplies_bfloat16

NOTE = "note: {} bfloat16, for which this processor has no instructions"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train",), ""),
        (("train", "parallel.dtype=bfloat16"), "parallel.dtype is"),
        (
            ("train", "parallel.dtype=bfloat16", "parallel.teacher_dtype=bfloat16"),
            "parallel.dtype and parallel.teacher_dtype are",
        ),
        (("pretrain", "parallel.dtype=bfloat16"), "parallel.dtype is"),
        (("export", "dtype=bfloat16"), ""),  # in which weights are written
    ],
)
@pytest.mark.parametrize("slow", [True, False])
def test_bfloat16_without_instructions_is_told(
    words: tuple[str, ...], named: str, slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dollar.parallel.world.multiplies_bfloat16", lambda device: not slow)
    join(compose(words[0], *words[1:], "parallel.device=cpu"))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == int(slow and bool(named))
    assert all(text.startswith(NOTE.format(named)) for text in told)


def test_a_processor_is_asked_and_what_cannot_be_told_is_taken_to_be_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiplies_bfloat16(torch.device("cuda"))
    for there, has, expected in ((True, True, True), (True, False, False), (False, False, True)):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has, raising=False)
        assert multiplies_bfloat16(torch.device("cpu")) == expected
