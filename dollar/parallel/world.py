"""Who we are among the processes, and the few things that all of them must agree on."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size`; alone, every method is the identity."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def own(self, first: int, count: int) -> range:
        """This process's share of the global sample indices first .. first + count - 1.

        Strided, so that the first samples of a batch are the first samples of every process's share.
        """
        return range(first + self.rank, first + count, self.size)

    def gather(self, values: Tensor) -> Tensor:
        """[B, ...] of every process as one tensor [size * B, ...] in the order of the global samples."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)  # undo the stride of `own`

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its mean over the processes, in place (for networks that every process holds)."""
        present = [t for t in tensors if t is not None]
        if self.size > 1 and present:
            together = torch.cat([t.flatten() for t in present])  # one message instead of one for each
            dist.all_reduce(together)
            parts = together.div_(self.size).split([t.numel() for t in present])
            for tensor, part in zip(present, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def mean(self, scalars: dict[str, float]) -> dict[str, float]:
        """Each scalar's mean over the processes; all must have the same keys."""
        if self.size == 1 or not scalars:
            return scalars
        names = sorted(scalars)
        values = torch.tensor([scalars[n] for n in names], dtype=torch.float64, device=self.device)
        self.average([values])
        return dict(zip(names, values.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.size == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def first_here(self, make: Callable[[], T]) -> T:
        """What `make` gives, in the first process of each machine before the others, which find what it left on disk.

        However long that takes: no collective's time limit ends the waiting.
        """
        if self.size == 1:
            return make()
        waiting, trouble = dist.new_group(timeout=timedelta(days=7), backend="gloo"), None
        try:
            found = make() if self.local_rank == 0 else None
        except Exception as error:  # which the others will meet, too
            trouble = error
        dist.barrier(waiting)
        dist.destroy_process_group(waiting)
        if trouble is not None:
            raise trouble
        return make() if found is None else found


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use so far, in GiB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_memory(device: torch.device) -> int:
    """Bytes that a process may use: a GPU's, or its share of the main memory among the processes of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is worth it: not on a CPU for which oneDNN has no kernels; what can't be told counts as yes."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def start(device: str = "auto", timeout_minutes: float = 10.0) -> World:
    """Join the processes that torchrun started, or be alone; device `auto` takes a GPU where there is one."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("parallel.device is cuda, but torch sees no GPU here; use auto or cpu")
    if device in ("auto", "cuda"):
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"parallel.device is {device!r}; use auto, cpu or cuda") from None
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"parallel.device is {device}, but torch sees {torch.cuda.device_count()} GPUs here; use auto"
            )
        torch.cuda.set_device(chosen)
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(device=chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=timeout_minutes))
    size = dist.get_world_size()
    return World(dist.get_rank(), size, chosen, init_device_mesh(chosen.type, (size,)), local)


def finish(world: World) -> None:
    """Leave the processes."""
    if world.size > 1:
        dist.destroy_process_group()
