"""A reward of your own: any function `reward_fn(images, prompts, metadata) -> (rewards, metadata)`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dollar.lazy import dotted
from dollar.rewards.frames import FrameReward, Frames, check_frames, check_videos, pick


class Function(FrameReward):
    """A function of images by its dotted path, in the convention of TRL's trainers for DDPO and AlignProp.

    It is called as `reward_fn(images, prompts, metadata)` with the frames of all clips: images [N, 3, H, W], float32 in
    [0, 1]; prompts, a tuple of N texts, each clip's own repeated; metadata, a tuple of N dicts {"clip": i, "frame": t},
    counted from 0 in the videos of this call and in the frames looked at. It returns N rewards (a tensor, an array or
    a list) and metadata, which is not read. A clip's score is the mean over its frames.
    path: package.module.function; the folder from which the command is started is looked in too. frames: how many
    evenly spaced frames of a clip are looked at (and decoded); "all" or None is all. differentiable: whether gradients
    pass through the function; it must then return a tensor.
    ValueError where the path names nothing that can be called.
    """

    def __init__(self, path: str, frames: Frames = None, differentiable: bool = False) -> None:
        path = str(path)  # a name may look like a number
        self.path = self.name = path
        self.frames = check_frames(frames)
        self.differentiable = differentiable
        self.function = _function(path)

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, n], float32; videos [B, T, 3, H, W] in [0, 1]. A clip with pixels that are not finite gets nan.

        ValueError where the function returns anything else than N numbers and metadata, or gives no gradient although
        it was declared differentiable.
        """
        check_videos(videos, self.path)
        seen = pick(videos, self.frames).float()
        whole = seen.flatten(1).isfinite().all(1)  # the others are not shown to the function
        scores = torch.full(seen.shape[:2], float("nan"), device=videos.device)
        if not bool(whole.any()):
            return scores
        shown, frames = whole.nonzero().flatten().tolist(), seen.shape[1]
        each = tuple(prompts[i] for i in shown for _ in range(frames))
        metadata = tuple({"clip": i, "frame": t} for i in shown for t in range(frames))
        rewards = self._rewards(self.function(seen[whole].flatten(0, 1), each, metadata), len(each))
        if self.differentiable and videos.requires_grad and not rewards.requires_grad:
            raise ValueError(f"{self.path} was declared differentiable, but what it returned has no gradient")
        scores[whole] = rewards.to(videos.device).reshape(len(shown), frames)
        return scores

    def _rewards(self, returned: Any, count: int) -> Tensor:
        """The numbers [count], float32, in what the function returned."""
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise ValueError(f"{self.path} returned a {type(returned).__name__}; it must return (rewards, metadata)")
        try:
            rewards = torch.as_tensor(returned[0], dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the rewards that {self.path} returned are no numbers ({error})") from None
        if tuple(rewards.shape) not in ((count,), (count, 1)):
            raise ValueError(
                f"{self.path} returned rewards of shape {tuple(rewards.shape)} for {count} images; it must give one "
                "number an image"
            )
        return rewards.reshape(count)


def _function(path: str) -> Callable[..., Any]:
    """What a dotted path names; ValueError where there is no such function."""
    if (meant := dotted(path)) is not None:
        raise ValueError(f"reward.path is {path!r}; write it with dots, as {meant}, and start from its folder")
    if path.endswith(".py"):
        raise ValueError(f"reward.path is {path!r}; name a function in it, as {path.removesuffix('.py')}.my_reward")
    name, _, attribute = path.rpartition(".")
    if not name or not attribute:
        raise ValueError(f"reward.path is {path!r}; name a function with its module, as my_package.my_module.my_reward")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the module is the user's code, and may fail in any way
        raise ValueError(f"reward.path={path}: {name} can't be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, attribute):
        raise ValueError(f"reward.path={path}: {module.__name__} has no {attribute}")
    function = getattr(module, attribute)
    if not callable(function):
        raise ValueError(f"reward.path={path}: {attribute} is a {type(function).__name__}, and can't be called")
    return function
