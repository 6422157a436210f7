"""A deeper embedded teacher, none of whose inner blocks is vital, from the predictions of the present one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dollar.data import shapes
from dollar.losses.score_matching import native
from dollar.models.cogvideox import CogVideoX
from dollar.models.roles import trainable
from dollar.models.teacher import Teacher
from dollar.models.units import Unit, without
from dollar.parallel.world import World
from dollar.pretraining.stages import START, Stage, optimizers_of, run_stage, take_weights
from dollar.pretraining.teacher import NoisedClips, new_transformer, weights_of
from dollar.training.average import Average


@dataclass(frozen=True)
class Deep:
    """The deeper transformer: blocks of 32 channels a head, and how often inner blocks are skipped in training.

    skipped: the probabilities that an update skips none, one, two, ... of them; first and last are always there.
    """

    blocks: int = 8
    heads: int = 6
    skipped: Sequence[float] = field(default=(0.4, 0.4, 0.2))

    def __post_init__(self) -> None:
        for name in ("blocks", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        most = max(self.blocks - 2, 0)
        if not 1 <= len(self.skipped) <= most + 1:
            raise ValueError(
                f"skipped is {list(self.skipped)}; of {self.blocks} blocks {most} are inner ones, so it has between 1 "
                f"and {most + 1} numbers"
            )
        if min(self.skipped) < 0 or abs(sum(self.skipped) - 1) > 1e-6:
            raise ValueError(f"skipped is {list(self.skipped)}; these are probabilities, which sum to 1")

    def skips(self, seed: int, step: int) -> list[Unit]:
        """The blocks that a step skips, in order."""
        rng = np.random.Generator(np.random.PCG64([seed, step]))
        count = int(rng.choice(len(self.skipped), p=np.array(self.skipped) / sum(self.skipped)))
        places = sorted(1 + int(i) for i in rng.choice(self.blocks - 2, count, replace=False)) if count else []
        return [Unit(CogVideoX.block_lists[0].name, place) for place in places]


def train_deep_teacher(
    folder: Path,
    teacher: Teacher,
    stage: Stage,
    deep: Deep,
    seed: int,
    clips: int,
    drop_caption: float,
    decay: float,
    world: World,
    precision: torch.dtype = torch.float32,
    init: Path | None = None,
    loss_form: str = "evened",
) -> nn.Module:
    """Train a deeper transformer on the predictions of the teacher's, each update without a few of its inner blocks.

    Returns it with averaged weights. init: a transformer's folder that is the start, instead of random weights; the
    rest as in `train_teacher`. A prediction is what v is expected to be, so it teaches more a clip than v itself.
    """
    torch.manual_seed(seed)
    network = new_transformer(teacher.text_length, deep.blocks, deep.heads).to(world.device)
    if init is not None:
        path = init / "diffusion_pytorch_model.safetensors"
        take_weights(network, load_file(path), path, START)
    optimizers = optimizers_of(network, stage.lr, stage.lr / 2, outer=("patch_embed", "proj_out"), precision=precision)
    average = Average(trainable(network), decay)
    schedule = teacher.denoiser.schedule
    noised = NoisedClips(teacher.codec.vae, schedule, clips, stage.batch, seed, drop_caption, world)
    # All captions at once, since the text encoder learns nothing here.
    prompts = ["", *shapes.captions("all")]
    place, embeddings = {prompt: i for i, prompt in enumerate(prompts)}, teacher.text(prompts).embeddings

    shown: Any = teacher.denoiser.network.transformer

    def loss(step: int) -> dict[str, Tensor]:
        x_t, _, _, t, captions = noised.batch(step)
        text = embeddings[[place[caption] for caption in captions]]
        given = (x_t.transpose(1, 2), text, t)
        with torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
            with torch.no_grad():
                wanted = shown(*given, return_dict=False)[0].float()
            with without(network, deep.skips(seed, step), CogVideoX.block_lists):
                v = network(*given, return_dict=False)[0].float()
        a, b = (c.float().to(world.device) for c in schedule.coefficients(t))
        error = native(v, wanted)
        return {"total": (weights_of(loss_form, a, b) * error).mean(), "v": error.mean()}

    run_stage(folder / "deep", stage, network, optimizers, loss, world, average)
    average.keep()
    return network


def save_transformer(folder: Path, network: Any, teacher: Teacher) -> None:
    """Write the transformer in half precision, the teacher's scheduler, and an index of its pipeline.

    Autoencoder, text encoder and tokenizer stay the teacher's (teacher.parts).
    """
    network.to(torch.float16).save_pretrained(folder / "transformer")
    shutil.copytree(teacher.pipeline.place("scheduler"), folder / "scheduler", dirs_exist_ok=True)
    shutil.copy(teacher.folder / "model_index.json", folder / "model_index.json")
