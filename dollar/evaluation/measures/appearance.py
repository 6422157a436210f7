"""Colour and motion of clips, which features of random networks hardly see: burnt colours and lost motion show here."""

from __future__ import annotations

import torch
from torch import Tensor

from dollar.evaluation.measures.colour import contrast, saturation
from dollar.evaluation.measures.flow import flow

MEASURES = {"saturation": saturation, "contrast": contrast, "flow": flow}


def appearance(videos: Tensor) -> dict[str, float]:
    """Mean saturation, contrast and flow, by name, of videos uint8 [N, T, 3, H, W].

    They are to be compared with those of other clips of the same prompts, since they depend on what is shown.
    """
    each = []
    for video in videos:  # one at a time, since clips may be large
        clip = video[None].float() / 255
        each.append([float(measure(clip)) for measure in MEASURES.values()])
    return dict(zip(MEASURES, torch.tensor(each).double().mean(0).tolist(), strict=True))
