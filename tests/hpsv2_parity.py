"""Our HPSv2 and PickScore against their publishers' programs on the same random weights: `make test-hpsv2`.

Runs where the hpsv2 package is installed. `--full` takes the published size, ViT-H/14 (11 GiB of memory, minutes).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 96, "head_width": 32, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
PROMPTS = (
    "a small red circle moving left on a black background",
    "It&#39;s  a caf\u00e9 \u2014 the DOG\u2019s 2nd birthday, 100% fun!! \U0001f600",
    "schÃ¶n & tidy\n\t<b>bold</b> \u4e2d\u6587",
    "one very long prompt " * 40,
    "",
)
SIZES = ((128, 192), (320, 192), (224, 224), (301, 500), (97, 64))  # height, width
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # what it defines is gone with it
PACKAGES = ("hpsv2", "open_clip")
NEAR = 2e-6  # a cosine's rounding in float32


def usable_torchvision() -> None:
    """Let torchvision be imported beside a torch of another build: two operators are missing that nobody calls."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


def complete_package() -> None:
    """Give the hpsv2 package the vocabulary that its wheel forgot, and a drawing module that it imports for nothing."""
    own, other = (Path(str(getattr(importlib.util.find_spec(name), "origin", ""))).parent for name in PACKAGES)
    vocabulary = own / "src" / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
    if not vocabulary.is_file():
        shutil.copy(other / vocabulary.name, vocabulary)
    if importlib.util.find_spec("tkinter") is None or importlib.util.find_spec("_tkinter") is None:
        sys.modules["turtle"] = types.SimpleNamespace(forward=None)  # type: ignore[assignment]


def their_hpsv2(folder: Path, full: bool) -> Any:
    """The package's img_score with a random model, whose checkpoint is written into the folder in HPSv2's form."""
    complete_package()
    factory = importlib.import_module("hpsv2.src.open_clip.factory")
    img_score: Any = importlib.import_module("hpsv2.img_score")
    (folder / "small.json").write_text(json.dumps(SMALL))
    factory.add_model_config(folder / "small.json")
    torch.manual_seed(0)
    model, _, preprocess = factory.create_model_and_transforms(
        "ViT-H-14" if full else "small", precision="fp32", light_augmentation=True, output_dict=True
    )
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn, all texts are nearly alike
            parameter.mul_(1.5) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    # The published checkpoints hold half precision; whoever reads them reads the same numbers.
    halved = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"state_dict": halved}, folder / "HPS_v2.1_compressed.pt")
    if not full:
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    img_score.model_dict |= {"model": model, "preprocess_val": preprocess}
    return img_score


def pictures() -> list[np.ndarray]:
    """uint8 [H, W, 3]: noise over slow waves, so that every way of scaling gives other numbers."""
    rng, made = np.random.default_rng(0), []
    for height, width in SIZES:
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / 9), np.cos(y / 13), np.sin((x + y) / 31)], -1)
        made.append(np.clip(127 + 60 * waves + 60 * rng.standard_normal(waves.shape), 0, 255).astype(np.uint8))
    return made


def as_video(picture: np.ndarray) -> torch.Tensor:
    """[1, 1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None, None].float() / 255


def compare(name: str, ours: list[float], theirs: list[float], near: float) -> None:
    apart = float(np.abs(np.subtract(ours, theirs)).max())
    spread = float(np.std(theirs))
    print(f"{name}: {len(ours)} scores, sd {spread:.4f}, at most {apart:.1e} apart")
    if not apart <= near:
        sys.exit(f"{name}: more than {near:.1e} apart\nours   {ours}\ntheirs {theirs}")
    if spread < 100 * near:
        sys.exit(f"{name}: the scores hardly differ among themselves, so this says nothing")


def check_hpsv2(folder: Path, full: bool) -> None:
    from dollar.rewards.hpsv2 import HPSv2

    package = their_hpsv2(folder, full)
    reward = HPSv2(str(folder), frames=None)
    ours, theirs = [], []
    for picture in pictures():
        for prompt in PROMPTS:
            ours.append(reward.score(as_video(picture), [prompt]).item())
            file = str(folder / "HPS_v2.1_compressed.pt")
            theirs.append(float(package.score(Image.fromarray(picture), prompt, cp=file)[0]))
        if full:
            break
    compare("HPSv2", ours, theirs, NEAR)


@torch.no_grad()
def check_pickscore(folder: Path, source: Path) -> None:
    """The recipe of PickScore's model card; its processor is CLIP's with PIL, as it was when that was written."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from dollar.rewards.open_clip import from_open_clip, geometry
    from dollar.rewards.pickscore import PickScore
    from dollar.rewards.tokens import LAION, load_tokenizer

    state = torch.load(source / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    model = CLIPModel(CLIPConfig.from_dict(geometry(state, SMALL))).eval()
    model.load_state_dict({name: value.float() for name, value in from_open_clip(state).items()})
    model.save_pretrained(folder)
    tokenizer, processor = load_tokenizer(folder, LAION, local=True), CLIPImageProcessorPil()
    reward = PickScore(str(folder), frames=None, unit="scaled")
    ours, theirs = [], []
    for picture in pictures():
        shown = processor(images=Image.fromarray(picture), return_tensors="pt")
        image = model.get_image_features(**shown).pooler_output
        for prompt in PROMPTS:
            words = tokenizer([prompt], padding=True, truncation=True, max_length=77, return_tensors="pt")
            text = model.get_text_features(**words).pooler_output
            image, text = (f / torch.norm(f, dim=-1, keepdim=True) for f in (image, text))
            theirs.append((model.logit_scale.exp() * (text @ image.T)[0]).item())
            ours.append(reward.score(as_video(picture), [prompt]).item())
    compare("PickScore", ours, theirs, 20 * NEAR)  # scaled, by e^2.66 here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="ViT-H/14, as published, for HPSv2")
    full = parser.parse_args().full
    warnings.simplefilter("ignore")
    usable_torchvision()
    with tempfile.TemporaryDirectory() as made:
        small, large, pick = (Path(made) / name for name in ("small", "large", "pick"))
        for folder in (small, large, pick):
            folder.mkdir()
        check_hpsv2(small, full=False)
        check_pickscore(pick, small)
        if full:
            check_hpsv2(large, full=True)


if __name__ == "__main__":
    main()
