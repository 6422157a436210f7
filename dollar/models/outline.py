"""A teacher in outline: its networks without a weight, from its folder's configs or what its yaml states."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dollar.models.adapter import add_lora, is_lora
from dollar.models.assemble import check_states
from dollar.models.denoiser import Condition
from dollar.models.lora import largest_rank
from dollar.models.pipeline import CONFIGS, HUB_ID, INDEX, Pipeline, diffusers_class, empty
from dollar.models.pruned import Pruning
from dollar.models.teacher import Family, VideoSpec
from dollar.models.units import take_out

_T5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
_LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# The text models that the published teachers of each family come with.
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "transformers.T5EncoderModel": {**_T5, "vocab_size": 32128},
    "transformers.UMT5EncoderModel": {**_T5, "vocab_size": 256384},
    "transformers.LlamaModel": {**_LLAMA, "num_key_value_heads": 8, "vocab_size": 128320},
    "transformers.CLIPTextModel": _CLIP,
}
# Published autoencoders that are not what their class makes by default, by the channels of their latents.
AUTOENCODERS: dict[tuple[str, int], dict[str, Any]] = {
    ("AutoencoderKLWan", 48): {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
    }
}
WIDTHS = ("text_embed_dim", "text_dim", "caption_channels")  # what transformers call the width of prompts' embeddings


@dataclass
class Outline:
    """A teacher's numbers and its network, all of it on the meta device.

    latent_shape: (C, F, h, w) of one clip; text_width: of a prompt's embeddings; frozen: parameters of the autoencoder
    and of each text model whose architecture is known, by component; source: where the transformer's came from.
    """

    name: str
    family: Family
    network: nn.Module
    latent_shape: tuple[int, int, int, int]
    guidance_scale: float
    text_length: int
    text_width: int
    frozen: dict[str, int]
    source: str

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the network's parameters."""
        return [tuple(p.shape) for p in self.network.parameters()]

    @property
    def block_shapes(self) -> list[list[tuple[int, ...]]]:
        """The shapes of the parameters of each of its repeated blocks."""
        return [[tuple(p.shape) for p in block.parameters()] for block in self.network.blocks]  # type: ignore[union-attr]

    def left(self, pruning: Pruning) -> Outline:
        """The outline of what is left of this teacher's network."""
        network = copy.deepcopy(self.network)
        take_out(network.transformer, pruning.gone, self.family.block_lists)
        return replace(self, network=network)

    def with_lora(self, rank: int) -> nn.Module:
        """The network with a LoRA, which alone is trained; a copy."""
        network = add_lora(copy.deepcopy(self.network), rank)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(is_lora(name))
        return network

    @property
    def largest_rank(self) -> int:
        """The largest rank that a LoRA of this network can use."""
        return largest_rank(self.network.transformer, self.network.blocks)  # type: ignore[arg-type]

    def lora_shapes(self, rank: int) -> list[tuple[int, ...]]:
        """The shapes of the factors of a LoRA of this rank."""
        return [tuple(p.shape) for p in self.with_lora(rank).parameters() if p.requires_grad]

    def batch(self, clips: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Condition]:
        """What the network reads for so many clips, on the meta device."""
        x = torch.empty(clips, *self.latent_shape, dtype=dtype, device="meta")
        embeddings = torch.empty(clips, self.text_length, self.text_width, dtype=dtype, device="meta")
        mask = torch.ones(clips, self.text_length, device="meta")
        width = self.network.transformer.config.get("pooled_projection_dim")  # type: ignore[union-attr, operator]
        pooled = None if width is None else torch.empty(clips, width, dtype=dtype, device="meta")
        return x, torch.zeros(clips, device="meta"), Condition(embeddings, mask, pooled)


class ForwardCost(NamedTuple):
    """What one clip's forward costs.

    flops: multiplications and additions; backward: those of the backward pass, which has two products for each of the
    forward's, but one where a weight is frozen; tokens: of the clip, without its prompt's. Bytes kept for the backward:
    outside: of the blocks; inputs: of all blocks; inside: of all blocks together; largest: inside one block.
    """

    flops: int
    backward: int
    tokens: int
    outside: int
    inputs: int
    inside: int
    largest: int


def outline(settings: Mapping[str, Any]) -> Outline:
    """The outline of the teacher that a yaml of conf/teacher describes; nothing is fetched and no weight is read.

    A component's config is read where its folder is here, or was fetched from the hub before. Otherwise the
    transformer's is teacher.states.transformer. ValueError says what can't be known, or disagrees.
    """
    family = family_of(settings["_target_"])
    configs = {n: _read(settings, n) for n in (*family.classes, INDEX)}
    states, here = dict(settings.get("states") or {}), all(configs[n] for n in ("transformer", "vae", "scheduler"))
    stated = configs["transformer"] or states.get("transformer")
    if not stated:
        raise ValueError(
            f"the teacher at {settings['folder']} is not here, and teacher.states has no transformer to plan with; "
            "name its folder with teacher.folder=FOLDER, or state the transformer's config"
        )
    bare = empty(family.classes["transformer"], stated)
    transformer = dict(bare.config)  # type: ignore[arg-type]  # with what its class takes by default
    autoencoder = configs["vae"] or _published(family, transformer)
    index = configs[INDEX] or {
        "_class_name": family.pipeline_class,
        "expand_timesteps": states.get("time_of_each_token", False),  # Wan's, which stands in no component's config
    }
    scheduler = configs["scheduler"] or dict(diffusers_class(family.classes["scheduler"])().config)
    spec = VideoSpec(*(settings[key] for key in VideoSpec._fields))
    with _described({"transformer": transformer, "vae": autoencoder, "scheduler": scheduler}, index) as pipeline:
        adapter = family(pipeline, spec)
    found = adapter.states()
    wanted = states if here else {key: states[key] for key in ("frames", "cell") if key in states}
    check_states(wanted, found, Path(settings["folder"]))
    return Outline(
        name=settings["name"],
        family=adapter,
        network=adapter.network(bare).train().to("meta"),
        latent_shape=adapter.latent_shape(spec.frames, spec.height, spec.width),
        guidance_scale=spec.guidance_scale,
        text_length=settings["text_length"],
        text_width=next(transformer[n] for n in WIDTHS if n in transformer),
        frozen={"vae": _count(empty(family.classes["vae"], autoencoder))} | _text_models(family, configs, settings),
        source=str(settings["folder"]) if configs["transformer"] else "teacher.states, as its folder is not here",
    )


def family_of(target: str) -> type[Family]:
    """The adapter in the module of a yaml's _target_; ValueError where there is none."""
    module = importlib.import_module(target.rpartition(".")[0])
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and hasattr(kind, "pipeline_class")]
    own = [kind for kind in kinds if kind.__module__ == module.__name__]
    if len(own) != 1:
        raise ValueError(f"{module.__name__} has {len(own)} adapters of a family; name a loader in a module of one")
    return own[0]


def measure(outline: Outline, dtype: torch.dtype, lora: int | None = None) -> ForwardCost:
    """Count what a forward of one clip computes and keeps, with the network in a dtype; nothing is computed.

    lora: the rank of one that is trained in place of the network's own weights.
    """
    network = (outline.network if lora is None else outline.with_lora(lora)).to(dtype)
    blocks = list(network.blocks)  # type: ignore[arg-type]
    seen = {t.untyped_storage()._cdata: t for t in (*network.parameters(), *network.buffers())}
    kept: dict[str, list[int]] = {"outside": [0], "inputs": [0], "inside": []}
    place, tokens = "outside", 0

    def take(tensor: Tensor, into: str) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = tensor  # held, so that its address is no other's
            kept[into][-1] += storage.nbytes()
        return tensor

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal place, tokens
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        tokens = tokens or tensors[0].shape[1]
        for tensor in tensors:
            take(tensor, "inputs")
        kept["inside"].append(0)
        place = "inside"

    def leave(*_: Any) -> None:
        nonlocal place
        place = "outside"

    handles = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in blocks]
    handles += [b.register_forward_hook(leave) for b in blocks]
    counter = FlopCounterMode(display=False)
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: take(t, place), lambda t: t),
            counter,
            fused_attention(),
        ):
            network(*outline.batch(1, dtype))
    finally:
        for handle in handles:
            handle.remove()
        network.float()
    inside = kept["inside"]
    flops, each = counter.get_total_flops(), counter.get_flop_counts()
    aten = torch.ops.aten
    products = sum(each["Global"].get(op, 0) for op in (aten.mm, aten.addmm, aten.convolution))  # with weights
    trained = sum(sum(each[name].values()) for name in each if is_lora(f"{name}."))
    frozen = 0 if lora is None else products - trained
    return ForwardCost(
        flops, 2 * flops - frozen, tokens, kept["outside"][0], kept["inputs"][0], sum(inside), max(inside)
    )


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as a GPU computes it, which keeps no table of all pairs; the meta device's own would.

    That of tensors without a dimension of heads has no such kernel on a GPU either, and stays as it is.
    """
    own = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.ndim != 4:
            return own(query, key, value, *args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    # Replaced by name: a torch function mode would end within backward, where checkpointed blocks are computed again.
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


class _Described(Pipeline):
    """A pipeline of configs alone."""

    def __init__(self, folder: Path) -> None:
        self.names, self.folder, self.parts = (), folder, {}


@contextmanager
def _described(configs: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[Pipeline]:
    """The configs as a folder, for adapters read them from one."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / INDEX).write_text(json.dumps(dict(index)), encoding="utf-8")
        for name, config in configs.items():
            (folder / name).mkdir()
            (folder / name / CONFIGS.get(name, "config.json")).write_text(json.dumps(dict(config)), encoding="utf-8")
        yield _Described(folder)


def _read(settings: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The config of a component (or the index) where it is on this machine."""
    file = name if name == INDEX else CONFIGS.get(name.removesuffix("_2"), "config.json")
    part = (settings.get("parts") or {}).get(name)
    inner = "" if name == INDEX else name
    places = [(settings["folder"], inner)] if part is None else [(part, inner), (part, ""), (settings["folder"], inner)]
    for place, sub in places:
        path = _held(str(place), f"{sub}/{file}" if sub else file)
        if path is not None:
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return None


def _held(place: str, file: str) -> Path | None:
    """A file of a local folder, or of a hub id that was fetched before."""
    path = Path(place).expanduser() / file
    if path.is_file():
        return path
    if not HUB_ID.fullmatch(place):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place, file)
    return Path(found) if isinstance(found, str) else None


def _published(family: type[Family], transformer: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a published autoencoder that is not here."""
    cls = family.classes["vae"]
    known = AUTOENCODERS.get((cls, transformer["in_channels"]), {})
    return dict(empty(cls, known).config)  # type: ignore[arg-type]


def _text_models(family: type[Family], configs: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of the text models, where captions are encoded while training."""
    if settings.get("text", "online") != "online":
        return {}
    found = {}
    for name, cls in family.classes.items():
        config = configs[name] or TEXT_MODELS.get(cls) if name.startswith("text_encoder") else None
        if config:
            kind = diffusers_class(cls)
            with torch.device("meta"):
                found[name] = _count(kind(kind.config_class.from_dict(dict(config))))
    return found


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
