"""Bytes of tensors: counted on the meta device, where a network of any size runs without memory, and measured."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from dollar.models.outline import fused_attention

PROCESS = Path("/proc/self")  # what Linux reports of a process


@dataclass
class Workload:
    """A reward whose gradient is computed.

    networks: those that it goes through; inputs: what it reads, the first of which wants the gradient; reward: gives
    [B]. What is in `networks` and `inputs` is there before and after; all else is the reward's own cost.
    """

    networks: list[nn.Module]
    inputs: list[Tensor]
    reward: Callable[[], Tensor]

    def forward(self) -> None:
        """The reward alone."""
        with torch.no_grad():
            self.reward()

    def gradient(self) -> None:
        """The reward and its gradient, which is thrown away."""
        self.backward(self.reward())

    def backward(self, reward: Tensor) -> None:
        """The gradient of a reward that is there, thrown away."""
        try:
            reward.sum().backward()
        finally:
            for tensor in (*self.inputs, *(p for network in self.networks for p in network.parameters())):
                tensor.grad = None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for network in self.networks for p in network.parameters())

    @property
    def weights(self) -> list[Tensor]:
        """Parameters and buffers."""
        return [t for network in self.networks for t in (*network.parameters(), *network.buffers())]


class Count(NamedTuple):
    """Bytes that tensors take: weights (with buffers) and inputs; forward: at most, without a gradient; kept: between
    forward and backward, without weights and inputs; backward: at most, in forward and backward together. The last and
    `forward` hold weights and inputs too.
    """

    weights: int
    inputs: int
    forward: int
    kept: int
    backward: int

    @property
    def held(self) -> int:
        """What is there before anything is computed."""
        return self.weights + self.inputs


class Tally(TorchDispatchMode):
    """Counts the bytes of all living tensors, by storage, while operations run under it.

    live: now; peak: the most so far. What an operation needs within itself, such as a convolution's workspace, is no
    tensor and is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._living: dict[int, Any] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is freed; one that shares a storage that is counted adds nothing."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._living:
            return
        self._living[address] = weakref.ref(storage, lambda _: self._free(address, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, address: int, size: int) -> None:
        del self._living[address]
        self.live -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.hold, result)
        return result


def count(work: Workload, fused: bool = True) -> Count:
    """Run a workload under a tally, commonly on the meta device; fused: whether attention is (`fused_attention`)."""
    tally = Tally()
    for tensor in work.weights:
        tally.hold(tensor)
    weights = tally.live
    for tensor in work.inputs:
        tally.hold(tensor)
    held = tally.live
    with fused_attention() if fused else nullcontext(), tally:
        work.forward()
        forward, tally.peak = tally.peak, tally.live
        reward = work.reward()
        kept = tally.live - held
        work.backward(reward)
    return Count(weights, held - weights, forward, kept, tally.peak)


def operations(work: Workload) -> int:
    """Multiplications and additions of a reward with its gradient."""
    with fused_attention(), FlopCounterMode(display=False) as counter:
        work.gradient()
    return int(counter.get_total_flops())


@dataclass
class MemoryRise:
    """By how many bytes memory rose; nan where it can't be known."""

    bytes: float = field(default=float("nan"))


@contextmanager
def rise(device: torch.device) -> Iterator[MemoryRise]:
    """By how much memory rises, at most, above where it was at the beginning; known when the block has ended.

    Of a GPU, what torch's allocator gave out; of a CPU, what is resident of this process, on Linux alone. For that to
    follow tensors, freed memory must go back at once: start the process with FREED_AT_ONCE in its environment.
    """
    found = MemoryRise()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        (PROCESS / "clear_refs").write_text("5")  # the peak becomes what is resident now
        before = _resident("VmRSS")
    except OSError:
        yield found
        return
    yield found
    found.bytes = _resident("VmHWM") - before


# glibc then keeps nothing of what is freed; by itself it would, and the more the longer a process runs.
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _resident(name: str) -> int:
    line = next(line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def seconds(function: Callable[[], object], repeats: int, patience: float, device: torch.device) -> list[float]:
    """Seconds of each of at most `repeats` calls, at least one, none begun after `patience` seconds; synchronised.

    On a CPU they are the processor's, which other work on the machine changes less than those of a clock.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: list[float] = []
    begun = time.perf_counter()
    while not taken or (len(taken) < repeats and time.perf_counter() - begun < patience):
        _synchronise(device)
        start = clock()
        function()
        _synchronise(device)
        taken.append(clock() - start)
    return taken


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
