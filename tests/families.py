"""A tiny diffusers folder of random weights for every family of teachers, and how its yaml would describe it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PROMPT = "a small red circle moving left on a black background"
TEXT_LENGTH = 12


@dataclass(frozen=True)
class Tiny:
    """One family's tiny folder.

    build: writes it; module: its adapter; clip: the size of its clips; guidance_scale: its own, as the pipeline takes
    it; call: what its pipeline is told beside the prompt, steps, guidance and size.
    """

    build: Callable[[Path], None]
    module: str
    clip: dict[str, Any]
    guidance_scale: float = 3.0
    call: dict[str, Any] = field(default_factory=dict)
    text_length: int = TEXT_LENGTH

    def settings(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """What conf/teacher/*.yaml would hold of it."""
        given = {"guidance_scale": self.guidance_scale, "text_length": self.text_length, "fps": 8}
        return {"name": "tiny", "folder": str(folder), **given, **self.clip, **changes}

    def load(self, folder: Path, **changes: Any) -> Any:
        import importlib

        return importlib.import_module(self.module).load(**self.settings(folder, **changes))


def tokenizer() -> Any:
    from dollar.pretraining.teacher import new_tokenizer

    return new_tokenizer()


def word_tokenizer() -> Any:
    """A tokenizer of single words, for text models that are told how to read a prompt in a long template before it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from dollar.data import shapes

    words = sorted({word for caption in shapes.captions("all") for word in caption.split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *words, "</s>"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def t5(kind: str = "T5EncoderModel", width: int = 32) -> Any:
    """A text encoder of one layer for the shapes world's tokens."""
    import transformers

    config = getattr(transformers, kind.replace("EncoderModel", "Config"))(
        vocab_size=len(tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return getattr(transformers, kind)(config)


def _cogvideox(folder: Path, shift: float, **transformer: Any) -> None:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(2, 2, 2),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
        scaling_factor=0.7,
    )
    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        time_embed_dim=16,
        text_embed_dim=32,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=TEXT_LENGTH,
        **transformer,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        snr_shift_scale=shift,
    )
    CogVideoXPipeline(tokenizer(), t5(), vae, network, scheduler).save_pretrained(folder)


def cogvideox_2b(folder: Path) -> None:
    _cogvideox(folder, 3.0)


def cogvideox_5b(folder: Path) -> None:
    _cogvideox(folder, 1.0, use_rotary_positional_embeddings=True)


def cogvideox_1_5_5b(folder: Path) -> None:
    _cogvideox(folder, 1.0, use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False)


def _wan(folder: Path, shift: float, channels: int, expand_timesteps: bool = False, **vae: Any) -> None:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    generator = torch.Generator().manual_seed(1)
    autoencoder = AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=torch.randn(channels, generator=generator).tolist(),
        latents_std=(1 + torch.rand(channels, generator=generator)).tolist(),
        **vae,
    )
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    # As published: a multistep solver, whose shift has a name of its own.
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    WanPipeline(
        tokenizer(), t5("UMT5EncoderModel"), autoencoder, scheduler, network, expand_timesteps=expand_timesteps
    ).save_pretrained(folder)


def wan_2_1(folder: Path) -> None:
    _wan(folder, 3.0, 16)


def wan_2_2_ti2v(folder: Path) -> None:
    _wan(
        folder, 5.0, 16, True, is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16
    )


def ltx(folder: Path) -> None:
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        patch_size=2,
    )
    generator = torch.Generator().manual_seed(1)
    vae.latents_mean.copy_(torch.randn(8, generator=generator))
    vae.latents_std.copy_(1 + torch.rand(8, generator=generator))
    network = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    LTXPipeline(scheduler, vae, t5(), tokenizer(), network).save_pretrained(folder)


def hunyuanvideo(folder: Path) -> None:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    words = len(word_tokenizer())
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
    )
    network = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=16,
            num_attention_heads=4,
            num_hidden_layers=4,
            num_key_value_heads=4,
            pad_token_id=0,
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            max_position_embeddings=77,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=words - 1,
        )
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    HunyuanVideoPipeline(llama, word_tokenizer(), network, vae, scheduler, clip, word_tokenizer()).save_pretrained(
        folder
    )


FAMILIES = {
    "cogvideox_2b": Tiny(cogvideox_2b, "dollar.models.cogvideox", {"frames": 9, "height": 32, "width": 32}),
    "cogvideox_5b": Tiny(cogvideox_5b, "dollar.models.cogvideox", {"frames": 9, "height": 32, "width": 48}),
    "cogvideox_1_5_5b": Tiny(cogvideox_1_5_5b, "dollar.models.cogvideox", {"frames": 9, "height": 32, "width": 48}),
    "wan_2_1": Tiny(wan_2_1, "dollar.models.wan", {"frames": 9, "height": 32, "width": 48}),
    "wan_2_2_ti2v": Tiny(wan_2_2_ti2v, "dollar.models.wan", {"frames": 9, "height": 64, "width": 32}),
    "ltx": Tiny(ltx, "dollar.models.ltx", {"frames": 9, "height": 32, "width": 64}, call={"frame_rate": 8}),
    "hunyuanvideo": Tiny(
        hunyuanvideo, "dollar.models.hunyuanvideo", {"frames": 9, "height": 32, "width": 48}, 6.0, {}, 20
    ),
}


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a family's tiny folder; the same seed writes the same weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    FAMILIES[name].build(folder)
    torch.random.set_rng_state(state)
    return folder
