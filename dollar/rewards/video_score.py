"""VideoScore: a video language model that was fitted to people's marks for generated videos, aspect by aspect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dollar.models.pipeline import Weights, lack
from dollar.rewards.frames import Frames, check_frames, check_videos, pick
from dollar.rewards.weights import check_names, described, locate, read_json, transformers_class

ASPECTS = (
    "visual_quality",
    "temporal_consistency",
    "dynamic_degree",
    "text_to_video_alignment",
    "factual_consistency",
)
PROMPT = "{text_prompt}"  # where the caption goes in the instructions
INSTRUCTIONS = """
You see the frames of a video that a computer made from a text, in their order.
Mark it from 1.0 (bad) to 4.0 (as good as a real video) in each of five aspects:
visual quality: is it sharp, bright enough and well coloured;
temporal consistency: do objects and people stay the same, and is the motion smooth;
dynamic degree: how much moves or changes;
text-to-video alignment: does it show what the text says;
factual consistency: does it agree with common sense and with what is known of the world.

The text is "{text_prompt}", and these are the frames:
"""
FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


class VideoScore:
    """The marks, about 1 to 4, that people would give a clip, averaged over the chosen aspects.

    From He et al., VideoScore: building automatic metrics to simulate fine-grained human feedback for video generation,
    2024: Idefics2 reads the instructions, the caption and then the frames, and a linear head reads five marks from the
    last token.
    path: a folder or hub id in the published form (config.json, *.safetensors, processor and tokenizer), of the
    Idefics2 kind: TIGER-Lab/VideoScore, VideoScore-v1.1. aspects: "all", names out of `ASPECTS`, or name -> weight.
    instructions: a text file with {text_prompt} where the caption goes; None for our own wording. The model was
    fitted with the publishers' wording, so give that for scores to be compared with published ones. frames: how many
    evenly spaced frames of a clip are looked at (and decoded); "all" or None is all.
    Its eight thousand million parameters are read at the first call: 17 GB in bfloat16 on a GPU, twice that on a CPU.
    ValueError where weights are missing or of something else.
    """

    sees_motion = True
    consistency = "temporal_consistency"  # of its values, the one that ranking looks at beside their mean

    def __init__(
        self,
        path: str | Path = "TIGER-Lab/VideoScore",
        aspects: str | Sequence[str] | Mapping[str, float] = "all",
        instructions: str | Path | None = None,
        frames: Frames = 16,
    ) -> None:
        self.weights = _weights(aspects)
        self.frames = check_frames(frames)
        self.instructions = INSTRUCTIONS if instructions is None else _read(Path(instructions))
        folder = locate(path, "reward.path", FILES, "a folder with config.json, *.safetensors and a processor")
        self._model = Scorer(folder)
        self.processor = _processor(folder)

    def scores(self, videos: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """[B], float32, of each aspect by its name, whatever `aspects` says; videos as in `score`."""
        check_videos(videos, "VideoScore")
        seen = pick(videos.detach(), self.frames).float()
        marks = [self._marks(clip, prompt) for clip, prompt in zip(seen, prompts, strict=True)]
        return dict(zip(ASPECTS, torch.stack(marks, 1).to(videos.device), strict=True))

    def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], float32; videos [B, T, 3, H, W] in [0, 1]. A clip with pixels that are not finite gets nan."""
        scores = self.scores(videos, prompts)
        total = sum(self.weights.values())
        return torch.stack([scores[name] * weight / total for name, weight in self.weights.items()]).sum(0)

    @torch.no_grad()
    def _marks(self, clip: Tensor, prompt: str) -> Tensor:
        """The marks [5] of one clip [T, 3, H, W], float32 on the CPU; alone, since then nothing is padded."""
        from PIL import Image

        if not bool(clip.isfinite().all()):
            return torch.full((len(ASPECTS),), float("nan"))
        levels = (255 * clip.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        pictures = [Image.fromarray(level) for level in levels]
        caption = prompt.replace("<image>", "image")  # the mark itself would stand for a picture
        text = self.instructions.replace(PROMPT, caption) + "<image> " * len(pictures)
        return self._model(self.processor(text=text, images=pictures, return_tensors="pt"), clip.device)


class Scorer(nn.Module):
    """Idefics2 with five numbers read from its last token, on the meta device until its first call.

    folder: config.json and *.safetensors. ValueError unless the tensors have the names and shapes of such a model.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from accelerate import init_empty_weights

        if missing := lack(folder, "VideoScore"):
            raise ValueError(f"{folder} lacks {missing}; copy what is missing from where it was made")
        config = read_json(folder / "config.json")
        if config.get("model_type") != "idefics2":
            raise ValueError(
                f"{folder} holds a model of type {config.get('model_type')}; VideoScore is read in its Idefics2 form, "
                "as TIGER-Lab/VideoScore or TIGER-Lab/VideoScore-v1.1"
            )
        with described(folder / "config.json", "Idefics2"), init_empty_weights(include_buffers=False):
            sizes = transformers_class("Idefics2Config").from_dict(config)
            self.model: Any = transformers_class("Idefics2Model")(sizes)
            self.score = nn.Linear(sizes.text_config.hidden_size, len(ASPECTS))
        self.files = Weights.of(sorted(folder.glob("*.safetensors")))
        self._check(folder)
        self.eval().requires_grad_(False)

    def forward(self, inputs: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """The marks [5] of one clip, float32 on the CPU; inputs: what the processor makes of it."""
        self._move(device)
        moved = {name: value.to(device) for name, value in inputs.items()}
        states = self.model(**moved, use_cache=False).last_hidden_state  # [1, tokens, width]
        last = int(moved["attention_mask"][0].nonzero().max())
        return self.score(states[0, last]).float().cpu()

    def _check(self, folder: Path) -> None:
        """Compare names and shapes with the files' headers, which takes no time."""
        wanted, given = self.state_dict(), {}
        for name in wanted.keys() & self.files.files.keys():
            with safe_open(self.files.files[name], "pt") as opened:
                given[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
        check_names(wanted, given, folder, "VideoScore")

    def _move(self, device: torch.device) -> None:
        """Read the weights at the first call, straight to where they are used; later calls may be elsewhere."""
        if self.score.weight.is_meta:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            names = self.state_dict()
            self.load_state_dict({n: self.files.read(n).to(device, dtype) for n in names}, assign=True)
            self.requires_grad_(False)
        self.to(device)  # buffers too, which keep their dtype


def _weights(aspects: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """name -> weight of the aspects that count; ValueError for others."""
    if isinstance(aspects, str):
        given = dict.fromkeys(ASPECTS if aspects == "all" else (aspects,), 1.0)
    elif isinstance(aspects, Mapping):
        given = {str(name): float(weight) for name, weight in aspects.items()}
    else:
        given = dict.fromkeys(map(str, aspects), 1.0)
    if unknown := [name for name in given if name not in ASPECTS]:
        raise ValueError(f"reward.aspects has no {unknown[0]!r}; give all, or some of {', '.join(ASPECTS)}")
    if not given or min(given.values()) < 0 or sum(given.values()) == 0:
        raise ValueError(f"reward.aspects gives the weights {given}; give at least one, and none below 0")
    return given


def _read(path: Path) -> str:
    """The instructions in a file."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"reward.instructions={path} can't be read as text ({error})") from None
    if PROMPT not in text:
        raise ValueError(f"reward.instructions={path} has no {PROMPT}, which stands where the caption goes")
    return text


def _processor(folder: Path) -> Any:
    """What makes tokens and pixels of text and pictures."""
    try:
        return transformers_class("Idefics2Processor").from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each of its files fails in its own way
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{folder} has no processor that can be read ({reason}); copy preprocessor_config.json, "
            "processor_config.json and the tokenizer from where the weights are from"
        ) from None
