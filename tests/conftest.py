"""A teacher small enough for tests: a real diffusers folder of random weights, and runs of a few cycles around it."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import gc
import importlib
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composing import compose_once
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # for the processes that tests start
    sys.path.insert(0, str(ROOT))

from dollar.data import shapes  # noqa: E402
from dollar.log import speak  # noqa: E402
from dollar.models.teacher import Teacher  # noqa: E402
from dollar.parallel.shard import trainable_copy  # noqa: E402
from dollar.parallel.world import World  # noqa: E402
from dollar.training.loop import Loop  # noqa: E402

# A bar's own lock is shared with the processes that tests fork: one that is killed while it holds it stops all others.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # nor may a thread hold it while a process is forked

torch.set_num_threads(1)
speak()
gc.set_threshold(5_000, 20, 20)  # its default, 700 objects, walks a young heap all the time
EMBEDDED = ROOT / "dollar" / "assets" / "shapes"
SIZE = {"frames": 9, "height": 32, "width": 32}
TINY = {**SIZE, "fps": 8, "guidance_scale": 3.0, "text_length": 12}
LATENT = (8, 3, 8, 8)
PROMPT = "a small red circle moving left on a black background"

needs_embedded = pytest.mark.skipif(
    not (EMBEDDED / "model_index.json").is_file(), reason="the embedded teacher is not in this copy"
)


class TinyClips:
    """Clips of the shapes world at half their frames and half their size."""

    windowed = False

    def __init__(self, split: str = "train", size: int = 12, seed: int = 0) -> None:
        self.full = shapes.ShapesClips(split, size, seed)
        self.captions = self.full.captions

    def __len__(self) -> int:
        return len(self.full)

    def clip(self, index: int, u: float) -> tuple[np.ndarray, str]:
        clip, caption = self.full.clip(index)
        return np.ascontiguousarray(clip[::2, ::2, ::2]), caption


class Redness:
    """A pixel reward for clips of any size: how much more red there is than blue where the caption says red."""

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        red = (videos[:, :, 0] - videos[:, :, 2]).mean((1, 2, 3))
        return red * torch.tensor([1.0 if "red" in p else -1.0 for p in prompts])


def build_tiny_teacher(folder: Path, seed: int = 0, channels: int = 2) -> None:
    """A diffusers CogVideoX folder of random weights: 2 blocks of 32 channels, 12 tokens for a tiny clip."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

    from dollar.pretraining.teacher import new_scheduler, new_text_encoder, new_tokenizer

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(channels,) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
        temporal_compression_ratio=4,
        scaling_factor=0.8,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        time_embed_dim=16,
        text_embed_dim=64,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=4,
        temporal_compression_ratio=4,
        max_text_seq_length=12,
    )
    text_encoder = new_text_encoder(len(tokenizer))
    CogVideoXPipeline(tokenizer, text_encoder, vae, transformer, new_scheduler()).save_pretrained(folder)
    torch.random.set_rng_state(state)


def load_tiny_teacher(folder: Path, **changes: Any) -> Teacher:
    from dollar.models.cogvideox import load

    return load(**{"name": "tiny", "folder": folder, **TINY, **changes})


def new_network(teacher: Teacher) -> nn.Module:
    """A network with the teacher's weights, to be trained."""
    return trainable_copy(teacher, World())


def compose(config_name: str = "train", *overrides: str) -> Any:
    """conf/<config_name>.yaml with overrides, as a command composes it."""
    return pickle.loads(_composed(config_name, *overrides))


@cache
def _composed(config_name: str, *overrides: str) -> bytes:
    import hydra

    from dollar.cli import entry as door

    with hydra.initialize_config_dir(str(door.CONF), version_base="1.3"):
        return pickle.dumps(hydra.compose(config_name, overrides=list(overrides)))


TINY_RUN = (
    "teacher.name=tiny",
    *(f"teacher.{key}={value}" for key, value in TINY.items()),
    "reward._target_=conftest.Redness",
    "batch=4",
    "cycles=3",
    "save_every=100",
    "fake_updates=2",
    "lrm.clips=2",
    "lrm.width=16",
    "decay_from=1",
    "vsd.guidance_scale=1.25",
    "cd.guidance_scale=2.0",
    "beta_ft=1.0",
    "ft.unit=reward",
    "lrm.backbone=cnn",
    "lrm.smooth=0",
    "lrm.groups=4",
    "lrm.memory=3",
    "lrm.updates=2",
    "lrm.warmup=2",
    "cd.m=2",
    "cd.grid=10",
    "ema=0.9",
    "validation.every=0",
    "validation.prompts=2",
    "validation.clips=1",
    "validation.guidance_steps=2",
    "log.gradients_every=2",
    "parallel.device=cpu",
)
"""Overrides that make launch/train.py's own configuration a run of a second."""
TINY_DATA = ("data.clips._target_=conftest.TinyClips", "data.clips.size=12")


def tiny_run(
    teacher: Teacher, folder: Path, *overrides: str, data: Sequence[str] = TINY_DATA, world: World | None = None
) -> Loop:
    """The loop that launch/train.py would build."""
    from dollar.cli.build.loop import build_run

    config = compose("train", *TINY_RUN, *data, f"teacher.folder={teacher.folder}", *overrides)
    return build_run(config, world or World(), teacher, folder, 0).loop


def network_of(loop: Loop, name: str) -> nn.Module:
    """The network that a learner of a run trains."""
    run = loop.method.run
    return run.surrogate.model if name == "lrm" else run.roles[name].denoiser.network


def gradients(network: nn.Module) -> Tensor:
    """All gradients of a network in one row."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def clear(network: nn.Module) -> None:
    for p in network.parameters():
        p.grad = None


def fingerprint(network: nn.Module) -> Tensor:
    """All weights of a network in one row, copied."""
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


compose_once()


SETTLED: set[str] = set()
"""Libraries whose objects the garbage collector no longer walks."""


def pytest_collection_finish() -> None:
    settle("torch")


def pytest_runtest_teardown() -> None:
    if "diffusers.pipelines.pipeline_utils" in sys.modules:
        settle("diffusers")


def settle(library: str) -> None:
    """Take what lives on from the collector: a walk over all that these libraries made took a fifth of short tests."""
    if library not in SETTLED:
        SETTLED.add(library)
        gc.collect()
        gc.freeze()


class Said(NamedTuple):
    """What a command ended with: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def fork(folder: Path, name: str, *arguments: str, rank: int = 0, size: int = 1, port: int = 0) -> Any:
    """Start launch/<name>.py in a process of its own without importing anew; returns a multiprocessing.Process.

    What it prints is in folder/<rank>.out. With `size` above 1 it joins the others through a port, as torchrun has it.
    For what needs processes (signals, a share for each), not for what trains: autograd may not be forked beside a GPU.
    """
    import multiprocessing

    from dollar.cli import entry

    def work() -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        sys.argv = [f"launch/{name}.py", *arguments]
        with open(folder / f"{rank}.out", "w") as sys.stdout:
            entry.enter(importlib.import_module(f"dollar.cli.commands.{name}").main, name)

    started = multiprocessing.get_context("fork").Process(target=work)
    started.start()
    return started


def start_process(work: Callable[..., None], *arguments: Any) -> Any:
    """Start a function of a module in a process of its own, which imports anew only where a GPU forbids to fork."""
    import multiprocessing

    how = "spawn" if torch.cuda.is_available() else "fork"
    started = multiprocessing.get_context(how).Process(target=work, args=arguments)
    started.start()
    return started


def free_port() -> int:
    """A port that nobody listens at."""
    import socket

    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Said]:
    """command("train", "key=value", ...) runs launch/train.py as its command line would, in this process."""
    import logging

    from dollar.cli import entry as door

    def run(name: str, *arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", [f"launch/{name}.py", *arguments])
        main = importlib.import_module(f"dollar.cli.commands.{name}").main
        root = logging.getLogger()
        handlers, level, code = root.handlers[:], root.level, 0
        capsys.readouterr()
        try:
            door.enter(main, name)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)  # as the interpreter does
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    build_tiny_teacher(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(tiny_teacher_folder: Path) -> Teacher:
    return load_tiny_teacher(tiny_teacher_folder)


@pytest.fixture
def build(teacher: Teacher, tmp_path: Path) -> Callable[..., Loop]:
    """build("key=value", ...) -> a loop of its own folder."""
    made: list[Loop] = []

    def make(*overrides: str, **how: Any) -> Loop:
        made.append(tiny_run(teacher, tmp_path / f"run{len(made)}", *overrides, **how))
        return made[-1]

    yield make
    for trainer in made:
        trainer.log.close()
