"""Image rewards' own numbers for each frame, and latent reward models that are fitted frame by frame to them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from omegaconf import OmegaConf
from test_latent_reward import no_text
from torch import Tensor

from dollar.cli.build.rewards import by_frames, note_motion
from dollar.diffusion.draws import Draws
from dollar.models.codec import Codec, Normalisation
from dollar.models.denoiser import Condition
from dollar.models.latent_reward_model import LatentRewardModel
from dollar.models.pixel_reward_model import PixelRewardModel
from dollar.models.small_decoder import SmallDecoder
from dollar.rewards.colourfulness import Colourfulness
from dollar.rewards.flicker import Flicker
from dollar.rewards.frames import FrameReward, Frames, check_frames, pick
from dollar.rewards.jpeg import JpegSize
from dollar.rewards.mixture import Mixture
from dollar.surrogate.latent_reward import LatentReward
from dollar.surrogate.pixel_reward import PixelReward

RATIO = 2  # five pixel frames of three latent ones, which hold 1, 2 and 2


class Repeats(torch.nn.Module):
    """A decoder that shows each latent frame as often as it holds pixel frames."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(torch.tensor([1, *[RATIO] * (z.shape[2] - 1)]), 2)


class First(FrameReward):
    """Each frame's first number, times 3; it counts how many frames it was shown."""

    def __init__(self, frames: Frames = None) -> None:
        self.frames, self.shown = check_frames(frames), 0

    def score_frames(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = pick(videos, self.frames)
        self.shown += seen.shape[0] * seen.shape[1]
        return 3 * seen[:, :, 0].mean((2, 3))


class FramePlane(torch.nn.Module):
    """A linear model of a frame's two numbers."""

    twice_differentiable = True

    def __init__(self) -> None:
        super().__init__()
        self.card = {"temporal": "frames"}
        self.out = torch.nn.Linear(2, 1)
        self.out.weight.data.copy_(torch.tensor([[0.0, 0.7]]))
        torch.nn.init.zeros_(self.out.bias)

    def by_frame(self, x: Tensor, condition: Condition | None = None, held: Sequence[int] | None = None) -> Tensor:
        return self.out(x[:, :, list(held or range(x.shape[2])), 0, 0].transpose(1, 2))[:, :, 0]


def new_codec() -> Codec:
    vae = Repeats()
    scaling = Normalisation(lambda z: z / 0.1, lambda x: 0.1 * x)  # so that no pixel is clipped
    return Codec(vae, scaling, RATIO, decode=vae.decode, chunk_frames=None)


@pytest.mark.parametrize(("frames", "held"), [(None, [0, 1, 1, 2, 2]), (2, [0, 2])])
def test_a_fit_of_frames_on_a_line_has_each_frames_slope_and_the_clips_own_mean(frames: Frames, held: list) -> None:
    """Slopes 1 / (1 + p) of the least-squares one along the line and 0 across it; a clip is the mean of its pixels'."""
    places = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    seen = places[:, held]
    places = (places - seen.mean()) / seen.std(correction=0)
    x = torch.stack([places, torch.zeros_like(places)], 1)[..., None, None]  # [48, 2, 3, 1, 1]
    slopes = {}
    for p in (0.0, 0.5):
        reward = First(frames)
        surrogate = LatentReward(FramePlane(), PixelReward(reward, new_codec()), no_text, smooth=p, by_frames=True)
        observed = surrogate.observe(0, x, ["any"] * 48)
        expected = 3 * (0.5 + 0.05 * places[:, held])  # as decoded to [0, 1]
        torch.testing.assert_close(observed.frames, expected)
        torch.testing.assert_close(observed.reward, expected.mean(1))
        assert reward.shown == 48 * len(held), "no frame is scored twice"
        surrogate.remember(observed)
        optimizer = torch.optim.SGD(surrogate.model.parameters(), lr=0.2)
        for turn in range(300):
            surrogate.loss(Draws(0, turn, range(48)), "fit").mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        slopes[p] = (surrogate.model.out.weight[0] * surrogate.statistics.sd).tolist()
        if p == 0:
            torch.testing.assert_close(surrogate.predict(x, no_text(["any"] * 48)), observed.reward, atol=1e-4, rtol=0)
    sd = surrogate.statistics.sd
    assert slopes[0.0] == pytest.approx([0.15, 0.7 * sd], abs=1e-4)
    assert slopes[0.5] == pytest.approx([0.15 / 1.5, 0.0], abs=1e-4)


def test_a_model_of_frames_gives_each_what_it_gives_it_alone() -> None:
    torch.manual_seed(0)
    said = no_text(["a"] * 2)._replace(embeddings=torch.randn(2, 5, 6), mask=torch.ones(2, 5))
    models = (
        LatentRewardModel(4, text_dim=6, width=16, temporal="frames"),
        PixelRewardModel(SmallDecoder(4, 2), 6, 16, "frames", 8),
    )
    x = torch.randn(2, 4, 3, 8, 8)
    for model in models:
        torch.testing.assert_close(model.by_frame(x, said).mean(1), model(x, said))
        torch.testing.assert_close(model.by_frame(x, said, [0, 2]), model.by_frame(x, said)[:, [0, 2]])
    alone = [models[0](x[:, :, [i]], said) for i in range(3)]
    torch.testing.assert_close(models[0].by_frame(x, said), torch.stack(alone, 1))


def test_a_clips_reward_is_the_mean_of_its_frames() -> None:
    videos = torch.rand(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    videos[1, 2, 0, 0, 0] = float("nan")
    mixed = Mixture({"a": Colourfulness(), "b": JpegSize(-1)}, {"a": 1.0, "b": 0.5})
    assert mixed.by_frames
    assert not Mixture({"a": Colourfulness(2), "b": JpegSize(-1)}, {"a": 1.0, "b": 0.5}).by_frames
    for reward in (Colourfulness(), JpegSize(-1), JpegSize(frames=2), mixed):
        pixel = PixelReward(reward, None)  # type: ignore[arg-type]
        rows = pixel.rows(videos, ["any"] * 3, by_frames=True)
        assert rows.shape == (3, 2 if reward.frames == 2 else 4) and rows[1].isnan().all()
        torch.testing.assert_close(rows.mean(1), pixel.score_videos(videos, ["any"] * 3), equal_nan=True)
        assert rows[0].std() > 0


def test_frames_are_the_targets_where_model_fit_and_reward_have_them() -> None:
    """A class of one's own with another `score` is no reward of frames."""

    class Turned(First):
        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            return -super().score(videos, prompts)

    class Clips:
        def score(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
            return videos.mean((1, 2, 3, 4))

    good = {"backbone": "cnn", "temporal": "frames", "fit": "mse", "targets": "auto"}
    of_frames, turned, clips = (PixelReward(reward, new_codec()) for reward in (First(), Turned(), Clips()))
    assert by_frames(OmegaConf.create(good), of_frames)
    assert by_frames(OmegaConf.create(good | {"backbone": "pixels", "targets": "frames"}), of_frames)
    assert not by_frames(OmegaConf.create(good | {"targets": "clip"}), of_frames)
    for change, pixel, said in (
        ({"temporal": "conv3d"}, of_frames, "set lrm.temporal=frames"),
        ({"fit": "pairwise"}, of_frames, "lrm.fit=pairwise compares clips"),
        ({}, turned, "Turned gives a clip one number"),
        ({}, clips, "Clips gives a clip one number"),
    ):
        assert not by_frames(OmegaConf.create(good | change), pixel)
        with pytest.raises(ValueError, match=said):
            by_frames(OmegaConf.create(good | change | {"targets": "frames"}), pixel)


def test_a_model_that_averages_over_frames_is_said_to_miss_motion(capsys: pytest.CaptureFixture) -> None:
    moving = PixelReward(Flicker(), new_codec())
    for lrm, said in (
        ({"backbone": "pixels", "temporal": "frames"}, True),
        ({"backbone": "cnn", "temporal": "frames"}, True),
        ({"backbone": "pixels", "temporal": "conv3d"}, False),
        ({"backbone": "teacher", "temporal": "frames"}, False),
    ):
        note_motion(OmegaConf.create(lrm), moving)
        assert ("sees motion, which lrm.temporal=frames can't" in capsys.readouterr().out) == said, lrm
    note_motion(OmegaConf.create({"backbone": "cnn", "temporal": "frames"}), PixelReward(Colourfulness(), new_codec()))
    assert "note" not in capsys.readouterr().out
