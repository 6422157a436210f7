"""A CLIP in open_clip's form and in transformers': the same tensors by other names, and the same sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WHOLE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}  # transposed
TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
HEAD_WIDTHS = {"vision": 80, "text": 64}  # of ViT-H-14, which is HPSv2's and PickScore's
USUAL = {"head_width": 64, "heads": 8}  # open_clip's own defaults


def is_open_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether these are open_clip's names."""
    return "visual.conv1.weight" in state


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIPModel tensors of an open_clip ViT's; inverse of to_open_clip. ValueError for unknown names."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in WHOLE:
            renamed[WHOLE[name]] = value
        elif name in TURNED:
            renamed[TURNED[name]] = value.T.contiguous()
        else:
            renamed |= _block_from(name, value)
    return renamed


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors of a transformers CLIPModel's; position numbers, which are no weights, are left out."""
    whole = {theirs: ours for ours, theirs in WHOLE.items()}
    turned = {theirs: ours for ours, theirs in TURNED.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in whole:
            renamed[whole[name]] = value
        elif name in turned:
            renamed[turned[name]] = value.T.contiguous()
        elif not name.endswith("position_ids"):
            renamed |= _block_to(name, state)
    return renamed


def geometry(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' CLIPConfig, from an open_clip ViT's tensors.

    config: open_clip_config.json, {} where there is none; it says what shapes don't, the number of heads and the
    activation, which are ViT-H-14's otherwise. ValueError where tensors are missing or heads don't fit.
    """
    lacking = [name for name in (*WHOLE, *TURNED) if name not in state]
    if lacking:
        raise ValueError(f"{', '.join(lacking[:3])} missing among the tensors of an open_clip ViT")
    settings = dict(config.get("model_cfg", config))
    patch = state["visual.conv1.weight"].shape[-1]
    side = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    vision = _tower(state, "visual.transformer.resblocks.", state["visual.conv1.weight"].shape[0])
    text = _tower(state, "transformer.resblocks.", state["token_embedding.weight"].shape[1])
    act = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    width, heads = HEAD_WIDTHS["vision"], text["hidden_size"] // HEAD_WIDTHS["text"]
    if settings:
        width = int(dict(settings.get("vision_cfg") or {}).get("head_width", USUAL["head_width"]))
        heads = int(dict(settings.get("text_cfg") or {}).get("heads", USUAL["heads"]))
    if width < 1 or heads < 1 or vision["hidden_size"] % width or text["hidden_size"] % heads:
        raise ValueError(
            f"heads of width {width} and {heads} heads don't fit towers of {vision['hidden_size']} and "
            f"{text['hidden_size']} channels; put the open_clip_config.json of this model into the folder of the file"
        )
    vision |= {"num_attention_heads": vision["hidden_size"] // width, "image_size": side * patch, "patch_size": patch}
    positions, vocabulary = len(state["positional_embedding"]), len(state["token_embedding.weight"])
    text |= {"num_attention_heads": heads, "max_position_embeddings": positions, "vocab_size": vocabulary}
    # Texts are pooled where the tokenizer's end is, so these three are only kept within the vocabulary.
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    common = {"projection_dim": state["text_projection"].shape[1]}
    return {
        "vision_config": vision | common | {"hidden_act": act},
        "text_config": text | common | {"hidden_act": act},
        **common,
    }


def _tower(state: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, int]:
    layers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    inner = state.get(f"{prefix}0.mlp.c_fc.weight")
    if inner is None:
        raise ValueError(f"{prefix}0.mlp.c_fc.weight missing among the tensors of an open_clip ViT")
    return {"hidden_size": width, "intermediate_size": len(inner), "num_hidden_layers": len(layers)}


def _block_from(name: str, value: Tensor) -> dict[str, Tensor]:
    for ours, theirs in TOWERS.items():
        if name.startswith(ours):
            layer, _, part = name.removeprefix(ours).partition(".")
            module, _, kind = part.rpartition(".")
            if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = part.removeprefix("attn.in_proj_")
                thirds = zip("qkv", value.chunk(3), strict=True)
                return {f"{theirs}{layer}.self_attn.{which}_proj.{kind}": third.clone() for which, third in thirds}
            if module in BLOCK:
                return {f"{theirs}{layer}.{BLOCK[module]}.{kind}": value}
    raise ValueError(f"{name} is no tensor of an open_clip ViT")


def _block_to(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    modules = {theirs: ours for ours, theirs in BLOCK.items()}
    for ours, theirs in TOWERS.items():
        if name.startswith(theirs):
            layer, _, part = name.removeprefix(theirs).partition(".")
            module, _, kind = part.rpartition(".")
            if module in modules:
                return {f"{ours}{layer}.{modules[module]}.{kind}": state[name]}
            if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                thirds = [state[f"{theirs}{layer}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
                return {f"{ours}{layer}.attn.in_proj_{kind}": torch.cat(thirds)}
    raise ValueError(f"{name} is no tensor of a transformers CLIPModel")
