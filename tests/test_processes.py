"""dollar/cli/build/processes.py: where a dtype is slow, a command says so."""

from __future__ import annotations

import pytest
import torch
from conftest import compose

from dollar.cli.build.processes import join
from dollar.parallel.world import multiplies_bfloat16

NOTE = "note: bfloat16 ({}) has no instructions on this processor, and takes many times as long as float32 there"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train",), ""),
        (("train", "parallel.dtype=bfloat16"), "parallel.dtype"),
        (
            ("train", "parallel.dtype=bfloat16", "parallel.teacher_dtype=bfloat16"),
            "parallel.dtype and parallel.teacher_dtype",
        ),
        (("pretrain", "parallel.dtype=bfloat16"), "parallel.dtype"),
        (("export", "dtype=bfloat16"), ""),  # which is written, not computed in
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


def test_sampling_names_its_own_key(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("dollar.parallel.world.multiplies_bfloat16", lambda device: False)
    join(compose("sample", "dtype=bfloat16", "parallel.device=cpu"), "dtype")
    assert [record.getMessage().startswith(NOTE.format("dtype")) for record in caplog.records] == [True]


def test_a_processor_is_asked_and_a_gpu_is_taken_to_be_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiplies_bfloat16(torch.device("cuda"))
    for has in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert multiplies_bfloat16(torch.device("cpu")) == has
