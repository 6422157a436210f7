"""The embedded teacher's making: what the autoencoder is taught, stages that resume, a folder that diffusers reads."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dollar.data import shapes
from dollar.diffusion.prediction import V
from dollar.diffusion.schedule import VariancePreserving, diffuse
from dollar.losses.score_matching import score_matching
from dollar.parallel import checkpoint
from dollar.parallel.checkpoint import State
from dollar.parallel.world import World
from dollar.pretraining import autoencoder
from dollar.pretraining.autoencoder import (
    CHANNELS,
    CROP,
    EVENNESS,
    SHORT,
    STAGES,
    Cells,
    decoder_loss,
    edge_energy,
    encoder_loss,
    finishing_loss,
    joint_loss,
    new_autoencoder,
    sharpening_loss,
    train_autoencoder,
    whole_clips,
    windows,
)
from dollar.pretraining.critic import Critic, adversarial_losses, share_of
from dollar.pretraining.stages import Stage, optimizers_of, run_stage
from dollar.pretraining.teacher import (
    TextToLatents,
    encode_clips,
    evened,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_transformer,
    save_pipeline,
    train_teacher,
    weights_of,
)
from dollar.training.average import Average
from dollar.training.learner import Learner
from dollar.training.muon import Muon


@pytest.fixture(scope="module")
def cells() -> Cells:
    return Cells.fit(0, clips=60)


# What is learned from


def test_batches_are_functions_of_their_samples() -> None:
    whole = whole_clips([3, 4], seed=0)
    assert whole.shape == (2, 3, shapes.FRAMES, shapes.HEIGHT, shapes.WIDTH)
    assert whole.min() >= -1 and whole.max() <= 1 and whole.min() < -0.5
    assert torch.equal(whole[1:], whole_clips([4], seed=0))
    assert not torch.equal(whole[1:], whole_clips([4], seed=1))


def test_windows_look_at_the_object() -> None:
    found = windows(range(6), seed=0)
    assert found.shape == (12, 3, SHORT, CROP, CROP)
    assert torch.equal(found, windows(range(6), seed=0)) and not torch.equal(found, windows(range(6, 12), seed=0))
    assert all(window.flatten(1).std(1).max() > 0.1 for window in found)  # a background alone is nearly flat


def test_the_taught_latents_are_whitened_principal_components(cells: Cells) -> None:
    pixels = whole_clips(range(60), seed=0)
    latents = cells.encode(pixels)
    assert latents.shape == (60, CHANNELS, 5, 16, 16)
    flat = latents.transpose(0, 1).flatten(1).double()
    covariance = torch.cov(flat, correction=0)
    variances = covariance.diag()
    torch.testing.assert_close(flat.mean(1), torch.zeros(CHANNELS).double(), rtol=0, atol=1e-3)
    off = covariance - variances.diag()
    assert off.abs().max() < 1e-3 * variances.max()
    # What is left of a component's variance v is v^(1 - EVENNESS).
    raw = (cells.scale.double() ** (-1 / EVENNESS)) ** 2
    torch.testing.assert_close(variances, raw ** (1 - EVENNESS), rtol=1e-2, atol=1e-5)
    assert (variances.diff() <= 1e-6).all()


def test_the_taught_latents_keep_the_clips(cells: Cells) -> None:
    """Read back linearly, they explain nearly all of the pixels' variance."""
    pixels = whole_clips(range(100, 110), seed=0)
    cut = Cells._cut(pixels)
    components = cells.encode(pixels).permute(0, 2, 3, 4, 1) / cells.scale
    error = (components @ cells.basis + cells.mean - cut).square().mean()
    assert error < 0.05 * cut.var()
    # The first frame is a cell of its own, as if it had stood still.
    still = cells.encode(pixels[:, :, :1].expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(still[:, :, 0], cells.encode(pixels)[:, :, 0])
    torch.testing.assert_close(still[:, :, 0], still[:, :, 1])


def test_the_fit_is_the_same_every_time(cells: Cells) -> None:
    again = Cells.fit(0, clips=60)
    assert torch.equal(again.basis, cells.basis) and torch.equal(again.scale, cells.scale)
    assert (cells.basis.sum(1) >= -1e-5).all()
    torch.testing.assert_close(cells.basis @ cells.basis.T, torch.eye(CHANNELS), rtol=0, atol=1e-4)


def test_each_loss_teaches_its_own_part(cells: Cells) -> None:
    torch.manual_seed(0)
    vae, critic, pixels = new_autoencoder(), Critic(), windows([0], seed=0)
    for loss, parts, others in (
        (partial(decoder_loss, vae, cells), [vae.decoder], [vae.encoder, critic]),
        (partial(encoder_loss, vae, cells), [vae.encoder], [vae.decoder, critic]),
        (partial(joint_loss, vae, cells), [vae.encoder, vae.decoder], [critic]),
        (partial(finishing_loss, vae), [vae.decoder], [vae.encoder, critic]),
        (partial(sharpening_loss, vae, critic), [vae.decoder, critic], [vae.encoder]),
    ):
        vae.zero_grad(set_to_none=True)
        losses = loss(pixels)
        losses["total"].backward()
        assert all(v.ndim == 0 and v.isfinite() for v in losses.values())
        for part in parts:
            assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
        assert all(p.grad is None for other in others for p in other.parameters())


def test_leaving_the_taught_latents_has_a_price(cells: Cells) -> None:
    vae, pixels = new_autoencoder(), windows([0], seed=0)
    torch.manual_seed(0)
    free = joint_loss(vae, cells, pixels, anchor=0.0)
    torch.manual_seed(0)
    held = joint_loss(vae, cells, pixels, anchor=0.5)
    torch.testing.assert_close(held["total"] - free["total"], 0.5 * held["drift"])
    assert held["drift"] > 0


def test_the_energy_of_edges_tells_soft_from_displaced() -> None:
    pixels = windows([0, 1], seed=0)
    energy = edge_energy(pixels)
    assert energy.shape == pixels.shape
    square = torch.zeros(1, 3, 1, 32, 32)
    square[..., 10:20, 10:20] = 2.0
    # Forty edges a channel of a difference of 2: their squares are kept, whatever window they are averaged over.
    torch.testing.assert_close(edge_energy(square).sum(), torch.tensor(3 * 40 * 4.0), rtol=1e-5, atol=0)
    blurred = torch.nn.functional.avg_pool3d(pixels, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    moved = pixels.roll(1, dims=4)

    def gap(other: torch.Tensor) -> tuple[float, float]:
        here = (slice(None), slice(None), slice(None), slice(4, -4), slice(4, -4))  # away from what was rolled in
        return float((edge_energy(other) - energy)[here].abs().mean()), float((other - pixels)[here].abs().mean())

    (soft, soft_pixels), (displaced, displaced_pixels) = gap(blurred), gap(moved)
    assert soft_pixels < displaced_pixels and soft > 1.3 * displaced  # pixels alone prefer the soft edge


# The critic


def blurred_windows() -> tuple[torch.Tensor, torch.Tensor]:
    pixels = windows([0, 1], seed=0)
    return pixels, torch.nn.functional.avg_pool3d(pixels, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)


def test_critic_and_decoder_pull_against_each_other_and_at_their_own_weights_only() -> None:
    torch.manual_seed(0)
    critic = Critic()
    pixels, blurred = blurred_windows()
    assert critic(pixels).shape == (4 * 4, 1, 16, 16)  # frames 0-2, 2-4, 4-6, 6-8 of each window
    blurred.requires_grad_()
    for_decoder, for_critic = adversarial_losses(critic, blurred, pixels)
    margin = (critic(pixels) - critic(blurred)).detach()
    torch.testing.assert_close(for_decoder, torch.log1p(margin.exp()).mean())
    torch.testing.assert_close(for_critic, torch.log1p((-margin).exp()).mean())
    for_critic.backward(retain_graph=True)
    assert blurred.grad is None and all(p.grad is not None for p in critic.parameters())
    critic.zero_grad(set_to_none=True)
    for_decoder.backward()
    assert blurred.grad is not None and all(p.grad is None for p in critic.parameters())
    same = adversarial_losses(critic, pixels, pixels)
    assert [v.item() for v in same] == pytest.approx([np.log(2)] * 2)


def test_what_the_critic_asks_for_is_what_the_blur_took() -> None:
    torch.manual_seed(0)
    critic = Critic(width=16)
    pixels, blurred = blurred_windows()
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = adversarial_losses(critic, blurred, pixels)[1]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6  # below log 2: it tells them apart
    unseen = windows([7, 8], seed=3)
    soft = torch.nn.functional.avg_pool3d(unseen, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    with torch.no_grad():
        mended = [float(adversarial_losses(critic, soft.lerp(unseen, part), unseen)[0]) for part in (0.0, 0.5, 1.0)]
    assert mended[0] > mended[1] > mended[2] == pytest.approx(np.log(2))  # of clips that it never saw


def test_the_critics_share_of_the_gradient_is_as_asked() -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss, reference = 1e3 * x.sum(), x.square().sum()
    factor = share_of(loss, reference, x, 0.7)
    assert not factor.requires_grad
    mine, other = (torch.autograd.grad(value, x)[0].norm() for value in (factor * loss, reference))
    torch.testing.assert_close(mine, 0.7 * other)


# Stages


def stage_of(steps: int) -> Stage:
    return Stage(steps=steps, batch=1, lr=0.1, warmup=2, decay_from=0.5, save_every=2)


def test_the_rate_rises_holds_and_falls() -> None:
    stage = Stage(steps=100, batch=1, lr=2.0, warmup=10, decay_from=0.6)
    rates = [stage.pace(s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:60] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5) and rates[99] == pytest.approx(0.025)
    assert all(later <= earlier for earlier, later in pairwise(rates[60:])) and min(rates) > 0


def line(
    folder: Path, steps: int, until: int | None = None, stop: int | None = None, muon: bool = False
) -> tuple[torch.nn.Module, Average]:
    """A stage that fits a line; `until` ends it as a killed process ends, `stop` sends SIGTERM during that step."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(3, 2, 1)
    adam = torch.optim.AdamW(network.parameters(), lr=0.1)
    optimizers = optimizers_of(network, 0.1, 0.02, outer=()) if muon else [adam]
    average = Average(dict(network.named_parameters()), 0.9)

    def loss(step: int) -> dict[str, torch.Tensor]:
        if step == until:
            raise KeyboardInterrupt
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        torch.manual_seed(100 + step)
        x = torch.randn(8, 3, 1, 2, 2)
        return {"total": (network(x) - x[:, :2]).square().mean()}

    with contextlib.suppress(KeyboardInterrupt):
        run_stage(folder, stage_of(steps), network, optimizers, loss, World(), average)
    return network, average


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.newest(folder / "checkpoints")).tensors


def assert_alike(folders: Sequence[Path], lines: Sequence[tuple[torch.nn.Module, Average]]) -> None:
    """Two stages are at the same step with bitwise the same weights, averages and moments."""
    (network, average), (other, other_average) = lines
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(average.average[name], a) for name, a in other_average.average.items())
    assert average.updates == other_average.updates
    one, two = map(saved, folders)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("muon", [False, True])
def test_a_stage_resumes_exactly(tmp_path: Path, muon: bool) -> None:
    """Killed, it goes on from what it saved last; stopped by a signal, it saves where it is and exits with code 3."""
    whole = line(tmp_path / "whole", 9, muon=muon)
    assert whole[1].updates == 9
    kept = saved(tmp_path / "whole")
    moments = {"momentum_buffer"} if muon else {"exp_avg", "exp_avg_sq", "step"}
    assert moments == {name.rpartition("/")[2] for name in kept if name.startswith("whole/optim/weight/")}
    line(tmp_path / "a" / "whole", 9, until=5, muon=muon)  # saved after 4
    assert_alike([tmp_path / "whole", tmp_path / "a" / "whole"], [whole, line(tmp_path / "a" / "whole", 9, muon=muon)])
    with pytest.raises(SystemExit) as end:
        line(tmp_path / "b" / "whole", 9, stop=4, muon=muon)
    assert end.value.code == 3
    assert checkpoint.newest(tmp_path / "b" / "whole" / "checkpoints").name == "step-00000005"
    assert_alike([tmp_path / "whole", tmp_path / "b" / "whole"], [whole, line(tmp_path / "b" / "whole", 9, muon=muon)])
    unfinished = line(tmp_path / "short", 9, until=5, muon=muon)[0]
    assert not torch.equal(next(unfinished.parameters()), next(whole[0].parameters()))


def test_a_signal_in_the_last_step_begins_no_further_stage(tmp_path: Path) -> None:
    expected, _ = line(tmp_path / "whole", 4)
    with pytest.raises(SystemExit) as end:
        line(tmp_path / "asked", 4, stop=3)
    assert end.value.code == 3
    found, _ = line(tmp_path / "asked", 4, until=0)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_another_network_is_not_continued(tmp_path: Path) -> None:
    line(tmp_path, 2)
    with pytest.raises(ValueError, match=r"another network: its weight is \[2, 3, 1, 1, 1\] and \[3, 3, 1, 1, 1\]"):
        network = torch.nn.Conv3d(3, 3, 1)
        run_stage(tmp_path, stage_of(4), network, [torch.optim.AdamW(network.parameters())], lambda step: {}, World())


def test_a_stage_of_an_earlier_version_is_not_begun_anew_over_it(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").touch()
    with pytest.raises(ValueError, match=r"state of an earlier version's stage.*another folder with work=FOLDER"):
        line(tmp_path, 2)


def test_a_finished_stage_does_nothing(tmp_path: Path) -> None:
    first, _ = line(tmp_path, 4)
    again, _ = line(tmp_path, 4, until=0)  # any step would stop it
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_crash_while_saving_leaves_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = line(tmp_path / "whole", 6)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    line(tmp_path / "broken", 6, until=3)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "os", SimpleNamespace(**{**vars(os), "replace": die}))
        line(tmp_path / "broken", 6)
    assert (tmp_path / "broken" / "checkpoints" / "step-00000004.tmp").exists()
    assert checkpoint.newest(tmp_path / "broken" / "checkpoints").name == "step-00000002"
    found, _ = line(tmp_path / "broken", 6)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_not_stepped_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    loss = lambda step: {"total": network(torch.full((1, 2), float("nan"))).sum()}  # noqa: E731
    run_stage(tmp_path, stage_of(2), network, [optimizer], loss, World())
    assert torch.equal(network.weight, before)


# The whole


def test_every_caption_is_made_of_known_words() -> None:
    tokenizer = new_tokenizer()
    ids = tokenizer(shapes.captions("all")).input_ids
    assert {len(i) for i in ids} == {len(ids[0])} and len(ids[0]) <= 12
    assert not any(tokenizer.unk_token_id in i for i in ids)
    assert len({tuple(i) for i in ids}) == len(ids)
    assert tokenizer("a mauve circle").input_ids.count(tokenizer.unk_token_id) == 1


def test_the_networks_have_the_promised_size() -> None:
    count = sum(p.numel() for p in new_transformer(12).parameters())
    assert 1.5e6 < count < 3.5e6


def test_each_weight_has_one_optimizer() -> None:
    network = TextToLatents(new_text_encoder(20), new_transformer(12))
    muon, adam = optimizers_of(network, 1e-3, 5e-4, outer=("patch_embed",))
    assert isinstance(muon, Muon)
    matrices = muon.param_groups[0]["params"]
    inner, rest = {id(w) for w in matrices}, {id(p) for g in adam.param_groups for p in g["params"]}
    assert not inner & rest and inner | rest == {id(p) for p in network.parameters()}
    assert all(w.ndim >= 2 for w in matrices)
    assert id(network.transformer.patch_embed.proj.weight) in rest


def test_clips_are_encoded_in_their_order() -> None:
    vae = new_autoencoder()
    captions, latents = encode_clips(vae, 5, 0, World())
    source = shapes.ShapesClips("train", 5, 0)
    assert list(captions) == list(source.captions) and latents.shape == (5, CHANNELS, 5, 16, 16)
    pixels = torch.from_numpy(source.clip(4)[0]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor
    torch.testing.assert_close(latents[4], expected, rtol=1e-4, atol=1e-4)


def test_the_teacher_can_learn_the_conjugate_velocity() -> None:
    """L_CV (Eq. 4) is a weight on the error of v, which the embedded teacher predicts."""
    x_0, eps, output = torch.randn(3, 5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    schedule = VariancePreserving(new_scheduler().alphas_cumprod)
    t = schedule.uniform(torch.tensor([0.1, 0.3, 0.5, 0.8, 0.999]))
    a, b = (c.float() for c in schedule.coefficients(t))
    given = (output, x_0, eps, diffuse(x_0, eps, t, schedule), t, V, schedule)
    native = score_matching(*given, "native")
    torch.testing.assert_close(weights_of("cv", a, b) * native, score_matching(*given, "cv"), rtol=1e-4, atol=1e-4)
    assert torch.equal(weights_of("native", a, b), torch.ones(5))
    assert torch.equal(weights_of("evened", a, b), evened(a, b))


def test_parts_are_trained_resumed_and_written_as_a_pipeline(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With latents that fewer clips were fitted to, and a scale of fewer, too."""
    from diffusers import CogVideoXPipeline

    fits: list[int] = []
    settle = autoencoder._settle_scale
    monkeypatch.setattr(Cells, "fit", lambda seed: fits.append(seed) or cells)
    monkeypatch.setattr(autoencoder, "_settle_scale", lambda vae, pixels: settle(vae, pixels[:12]))
    step = {name: Stage(steps=1, batch=1, lr=1e-3) for name in STAGES}
    vae = train_autoencoder(tmp_path / "work", step, 0, World())
    again = train_autoencoder(tmp_path / "work", step, 0, World())
    assert fits == [0]  # what is finished needs none
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    latents = encode_clips(vae, 12, 1, World())[1]
    assert 0.7 < latents.std() < 1.4  # the scaling factor was fitted to other clips
    stage = Stage(steps=2, batch=2, lr=1e-3, warmup=1)
    network, tokenizer = train_teacher(tmp_path / "work", vae, stage, 0, clips=4, text_length=12, loss_form="cv")
    untrained = TextToLatents(new_text_encoder(len(tokenizer)), new_transformer(12))
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in untrained.parameters())
    save_pipeline(tmp_path / "teacher", vae, network, tokenizer)

    begun = TextToLatents(new_text_encoder(len(tokenizer)), new_transformer(12))
    begun.load_pretrained(tmp_path / "teacher")
    for there, here in zip(network.parameters(), begun.parameters(), strict=True):
        torch.testing.assert_close(here, there.half().float())  # pre-training can start from what was shipped
    nothing = {name: Stage(steps=0, batch=1, lr=1e-3) for name in STAGES}
    from_there = train_autoencoder(tmp_path / "other", nothing, 0, World(), init=tmp_path / "teacher")
    torch.testing.assert_close(from_there.decoder.conv_in.conv.weight, vae.decoder.conv_in.conv.weight.half().float())
    with pytest.raises(ValueError, match=r"is of another network: its \S+ is \[\d+.*init=null from random weights"):
        TextToLatents(new_text_encoder(len(tokenizer) + 1), new_transformer(12)).load_pretrained(tmp_path / "teacher")

    size = sum(p.stat().st_size for p in (tmp_path / "teacher").rglob("*"))
    assert size < 10e6  # what may be shipped
    pipeline = CogVideoXPipeline.from_pretrained(tmp_path / "teacher")  # all of one dtype, unasked
    pipeline.set_progress_bar_config(disable=True)
    expected = {k: v for k, v in new_scheduler().config.items() if not k.startswith("_")}
    assert expected.items() <= pipeline.scheduler.config.items()
    frames = pipeline(
        shapes.captions("train")[0],
        num_frames=9,
        height=32,
        width=32,
        num_inference_steps=1,
        max_sequence_length=12,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    assert frames.shape == (1, 9, 32, 32, 3) and np.isfinite(frames).all()


def test_a_convolutions_momentum_that_was_kept_as_a_matrix_is_read() -> None:
    network = torch.nn.Conv2d(4, 8, 3, bias=False)
    optimizer = Muon(network.parameters(), 0.1)
    learner = Learner("one", dict(network.named_parameters()), [optimizer], 1.0, lambda step, steps: 1.0)
    network.weight.grad = torch.randn(network.weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    kept = learner.state()
    moment = kept.tensors["optim/weight/momentum_buffer"].clone()
    older = State({**kept.tensors, "optim/weight/momentum_buffer": moment.flatten(1)}, kept.plain)
    optimizer.state.clear()
    learner.load(older)
    assert torch.equal(optimizer.state[network.weight]["momentum_buffer"], moment)
