"""HPSv2: how people would rate a picture for its caption; a CLIP ViT-H/14 tuned on their choices."""

from __future__ import annotations

from pathlib import Path

from dollar.rewards.clip import CLIP, CaptionReward
from dollar.rewards.frames import Frames
from dollar.rewards.tokens import LAION

FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(CaptionReward):
    """Human Preference Score v2 (Wu et al., 2023), with the numbers of the authors' package.

    path: a hub id, a folder with the version's file, or the file; version: v2.0 or v2.1. A file that has the other's
    name, or not open_clip's tensors, is refused; open_clip_config.json in its folder describes a model of another size
    than ViT-H/14.
    The longer side becomes the CLIP's size and the rest is black: nothing is cut off, unlike with other CLIP rewards.
    Numbers are those that the package gives with torchvision 0.17 or later; earlier ones shrank without smoothing.
    frames, unit: as CaptionReward; the package's unit is cosine. tokenizer, batch: as CLIP.
    """

    def __init__(
        self,
        path: str | Path = "xswu/HPSv2",
        version: str = "v2.1",
        frames: Frames = 8,
        unit: str = "cosine",
        batch: int = 16,
        tokenizer: str | Path = LAION,
    ) -> None:
        if version not in FILES:
            raise ValueError(f"reward.version is {version}; HPSv2 has {' and '.join(FILES)}")
        if other := [v for v, file in FILES.items() if v != version and Path(path).name == file]:
            raise ValueError(
                f"reward.path is {path}, the file of {other[0]}, and reward.version is {version}; set "
                f"reward.version={other[0]}, or give {FILES[version]}"
            )
        clip = CLIP(path, FILES[version], tokenizer, padded=True, clean=True, batch=batch)
        super().__init__(clip, frames, unit)
