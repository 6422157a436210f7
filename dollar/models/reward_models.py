"""Networks of the latent reward model from plain keys, and as a folder: model.safetensors and lrm.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dollar.media import atomically
from dollar.models.denoiser import Condition
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.pixel_reward_model import PixelRewardModel
from dollar.models.small_decoder import FrozenDecoder, SmallDecoder
from dollar.models.teacher import Teacher
from dollar.models.teacher_reward_model import TeacherRewardModel, weights_hash
from dollar.models.tiny_decoder import TinyDecoder
from dollar.storage import explained

CARD, WEIGHTS, DECODER = "lrm.json", "model.safetensors", "decoder.safetensors"
BACKBONES = ("cnn", "teacher", "pixels")
CNN_KEYS = ("channels", "text_dim", "width", "temporal", "groups")
KEYS = ("model", "statistics", "teacher", "fingerprint")  # what every card has


class RewardModel(Protocol):
    """What a network of the latent reward model offers, and that it is called as model(x, condition, t) -> [B].

    t: the times of noised latents, which a model may ignore; one that averages over frames takes further the latent
    frames that count; out: the layer that gives the standardised reward; card:
    the arguments that build another like it; twice_differentiable: whether a gradient at x has one of its own; one that
    hasn't may say in which `precision` it computes, float32 otherwise.
    """

    card: dict[str, Any]
    twice_differentiable: bool

    @property
    def out(self) -> nn.Linear: ...

    def __call__(self, x: Tensor, condition: Condition | None = None, t: Tensor | None = None) -> Tensor: ...


class StoredModel(NamedTuple):
    """A network that was read from its folder, and what lrm.json says of it."""

    model: nn.Module
    card: dict[str, Any]


def make_reward_model(
    teacher: Teacher,
    backbone: str = "cnn",
    text: bool = True,
    width: int = 128,
    temporal: str = "frames",
    groups: int = 8,
    blocks: int = 8,
    prompt: str = "",
    decoder: FrozenDecoder | None = None,
) -> nn.Module:
    """A new network on the teacher's device, drawn from torch's own generator, which the caller seeds.

    The keys are those of `lrm` in the configuration. prompt: any that the teacher can encode, for the width of its
    embeddings; decoder: that of a model that looks at pixels, a new one where there is none. ValueError names a key at
    fault.
    """
    if backbone == "teacher":
        if not text:
            raise ValueError(
                "lrm.text is false, but lrm.backbone=teacher looks through the teacher's blocks, which read the "
                "caption; set lrm.text=true, or lrm.backbone=cnn"
            )
        return TeacherRewardModel(teacher.denoiser, blocks, width).to(teacher.device)
    if backbone not in BACKBONES:
        raise ValueError(f"lrm.backbone is {backbone!r}; use {' or '.join(BACKBONES)}")
    text_dim = teacher.text([prompt]).embeddings.shape[-1] if text else None
    if backbone == "pixels":
        decoder = decoder or new_decoder(teacher)
        return PixelRewardModel(decoder, text_dim, width, temporal, groups).to(teacher.device)
    return LatentRewardModel(teacher.latent_shape[0], text_dim, width, temporal, groups).to(teacher.device)


def new_decoder(teacher: Teacher, tiny: bool = False) -> FrozenDecoder:
    """A small decoder of this teacher's latents, drawn from torch's own generator, which the caller seeds.

    tiny: one in the form of the published ones. ValueError where there is none for such latents.
    """
    channels, _, height, _ = teacher.latent_shape
    scale, ratio = teacher.clip_shape[1] // height, teacher.codec.ratio
    if not tiny:
        return SmallDecoder(channels, scale).to(teacher.device)
    if scale % 8 or ratio not in (4, 8):
        raise ValueError(
            f"decoder.path names a published small decoder, but these latents stand for {scale}x{scale} pixels and "
            f"{ratio} frames, and published ones are for 8x8 or a multiple, and 4 or 8 frames; set decoder.path=null"
        )
    return TinyDecoder(channels, scale, ratio).to(teacher.device)


def _decoder_of(card: Mapping[str, Any]) -> FrozenDecoder:
    """An empty decoder of the kind that a card describes."""
    return TinyDecoder(**card) if "ratio" in card else SmallDecoder(**card)


def save_reward_model(folder: Path, model: nn.Module, teacher: Teacher, card: Mapping[str, Any]) -> None:
    """Write what is trained of a network and lrm.json, each in one atomic step.

    card: what else the file is to say, plain values; `statistics` must be among them.
    """
    with explained("the latent reward model", folder):
        for name, network in {WEIGHTS: model, DECODER: getattr(model, "decoder", None)}.items():
            if network is not None:
                with atomically(folder / name) as temporary:
                    save_file({n: p.detach().cpu().contiguous() for n, p in network.state_dict().items()}, temporary)
    full = {
        **card,
        "model": model.card,
        "teacher": teacher.name,
        "latent_shape": list(teacher.latent_shape),
        "fingerprint": _fingerprint(model, teacher),
    }
    with atomically(folder / CARD) as temporary:
        temporary.write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")


def load_reward_model(folder: str | Path, teacher: Teacher, expected: Mapping[str, Any] | None = None) -> StoredModel:
    """The network that `save_reward_model` wrote, for a teacher with the same latents.

    expected: keys of `lrm` that the network must have been built with, where the configuration states them. ValueError
    where the folder lacks something or holds another network.
    """
    folder = Path(folder)
    card = read_reward_card(folder)
    stored = card["model"]
    differing = [f"{k} is {stored[k]} there and {v} here" for k, v in (expected or {}).items() if stored.get(k, v) != v]
    if differing:
        raise ValueError(f"the latent reward model in {folder} is another: {'; '.join(differing)}. Set lrm as there")
    state = torch.random.get_rng_state()
    model = _empty(stored, teacher, folder)
    torch.random.set_rng_state(state)  # its first weights are of no account, and draw nothing from anyone
    _check_fits(folder, card, _fingerprint(model, teacher), teacher.name)
    for name, network in {WEIGHTS: model, DECODER: getattr(model, "decoder", None)}.items():
        if network is None:
            continue
        try:
            network.load_state_dict(load_file(folder / name))
        except Exception as error:  # a file cut short, or tensors of another model
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{folder / name} can't be read ({reason}); fit the model again to write it") from None
        if broken := [n for n, t in network.state_dict().items() if not t.isfinite().all()]:
            raise ValueError(f"{folder / name}: {broken[0]} is not finite; fit the model again")
    return StoredModel(model, card)


def read_reward_card(folder: str | Path) -> dict[str, Any]:
    """What lrm.json says; ValueError where there is no latent reward model."""
    folder = Path(folder)
    if missing := [name for name in (CARD, WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(
            f"no latent reward model in {folder}: it has no {' and no '.join(missing)}; launch/fit_reward.py writes "
            "one to out=FOLDER, and a finished run has one in runs/<run>/lrm"
        )
    try:
        card = dict(json.loads((folder / CARD).read_text(encoding="utf-8")))
        if lacking := [key for key in KEYS if key not in card]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        for key in ("count", "mean", "variance"):
            float(card["statistics"][key])
        wanted = ("width", "blocks") if card["model"].get("backbone") == "teacher" else CNN_KEYS
        if lacking := [key for key in wanted if key not in card["model"]]:
            raise ValueError(f"its model lacks {', '.join(lacking)}")
        if card.get("noise") is not None:
            _, _ = map(float, card["noise"])  # two numbers
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / CARD} can't be read ({error}); fit the model again to write it") from None
    return card


def _empty(stored: Mapping[str, Any], teacher: Teacher, folder: Path) -> nn.Module:
    """A network like the stored one, whose weights are yet to be read."""
    if stored.get("backbone") == "teacher":
        return make_reward_model(teacher, "teacher", width=stored["width"], blocks=stored["blocks"])
    channels = stored["decoder"]["channels"] if stored.get("backbone") == "pixels" else stored["channels"]
    if channels != teacher.latent_shape[0]:
        raise ValueError(
            f"the latent reward model in {folder} reads latents of {channels} channels, and those of "
            f"{teacher.name} have {teacher.latent_shape[0]}; fit one on this teacher's latents by launch/fit_reward.py"
        )
    keys = {key: stored[key] for key in CNN_KEYS}
    if stored.get("backbone") == "pixels":
        del keys["channels"]
        return PixelRewardModel(_decoder_of(stored["decoder"]), **keys).to(teacher.device)
    return LatentRewardModel(**keys).to(teacher.device)


def _fingerprint(model: nn.Module, teacher: Teacher) -> dict[str, Any]:
    """What the network's numbers depend on: the autoencoder, the text models if it reads captions, and its trunk."""
    reads = model.card.get("text", True)  # type: ignore[union-attr, operator]
    text = ("text", "tokenizer")
    found = {key: value for key, value in teacher.fingerprint().items() if reads or not key.startswith(text)}
    found = json.loads(json.dumps(found))  # tuples are lists there
    return found | ({"blocks": weights_hash(model.trunk.network)} if isinstance(model, TeacherRewardModel) else {})


def _check_fits(folder: Path, card: Mapping[str, Any], mine: Mapping[str, Any], name: str) -> None:
    """Raise ValueError where the teacher's own parts are others than those that the network was fitted with."""
    stored = card["fingerprint"]
    differing = [key for key in mine if stored.get(key, mine[key]) != mine[key]]
    if differing:
        raise ValueError(
            f"the latent reward model in {folder} was fitted with another {', '.join(differing)} (of the teacher "
            f"{card['teacher']}) than {name} has; use the teacher that it was fitted with, or fit one for this teacher "
            "by launch/fit_reward.py"
        )
