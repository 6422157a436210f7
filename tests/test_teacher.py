"""The CogVideoX adapter against the plain diffusers pipeline, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EMBEDDED, LATENT, PROMPT, TINY, clear, gradients, load_tiny_teacher, needs_embedded, new_network
from torch import Tensor

from dollar.diffusion.prediction import SAMPLE
from dollar.export.student import few_steps, load_student, save_student
from dollar.models.teacher import Teacher
from dollar.parallel.shard import parallelize
from dollar.parallel.world import World
from dollar.sampling.samplers import decode, generators, make_latents, student_sampler, teacher_sampler

TIMES = [999, 749, 499, 249]


@pytest.fixture(scope="module")
def pipeline(tiny_teacher_folder: Path) -> Any:
    from diffusers import CogVideoXPipeline

    found = CogVideoXPipeline.from_pretrained(tiny_teacher_folder, torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


def by_pipeline(
    pipeline: Any, steps: int, guidance_scale: float, seed: int, kind: str = "latent", **size: int
) -> Tensor:
    size = {"num_frames": TINY["frames"], "height": TINY["height"], "width": TINY["width"], **size}
    return pipeline(
        PROMPT,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        max_sequence_length=TINY["text_length"],
        generator=torch.Generator().manual_seed(seed),
        output_type=kind,
        **size,
    ).frames


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_ten_guided_steps_are_the_pipelines(teacher: Teacher, pipeline: Any, guidance_scale: float) -> None:
    sampler = teacher_sampler(teacher, 10, guidance_scale)
    ours = make_latents(sampler, teacher, [PROMPT], [3], show=False)
    theirs = by_pipeline(pipeline, 10, guidance_scale, seed=3).transpose(1, 2)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    # ... and of another seed or guidance they would not be.
    assert (ours - by_pipeline(pipeline, 10, guidance_scale + 1, seed=3).transpose(1, 2)).abs().max() > 1e-3
    assert (ours - by_pipeline(pipeline, 10, guidance_scale, seed=4).transpose(1, 2)).abs().max() > 1e-2


def test_decoded_clips_are_the_pipelines(teacher: Teacher, pipeline: Any) -> None:
    sampler = teacher_sampler(teacher, 2)
    ours = decode(teacher, make_latents(sampler, teacher, [PROMPT], [3], show=False))
    theirs = by_pipeline(pipeline, 2, teacher.guidance_scale, seed=3, kind="pt")
    assert ours.shape == (1, 9, 3, 32, 32)
    assert (ours.float() - (theirs * 255).round()).abs().max() <= 1


@needs_embedded
def test_the_embedded_teacher_samples_as_its_pipeline() -> None:
    from conftest import compose
    from diffusers import CogVideoXPipeline
    from hydra.utils import instantiate

    embedded = instantiate(compose("train").teacher, device="cpu")
    plain = CogVideoXPipeline.from_pretrained(EMBEDDED)  # as README.md has it
    plain.set_progress_bar_config(disable=True)
    ours = make_latents(teacher_sampler(embedded, 4), embedded, [PROMPT], [3], show=False)
    theirs = by_pipeline(plain, 4, embedded.guidance_scale, 3, num_frames=17, height=64, width=64).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def trained(teacher: Teacher) -> torch.nn.Module:
    """A student network that differs from its teacher."""
    network = new_network(teacher)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return network


@pytest.mark.parametrize("between", ["renoise", "ddim"])
def test_a_saved_student_samples_as_the_pipeline_bit_for_bit(
    teacher: Teacher, pipeline: Any, between: str, tmp_path: Path
) -> None:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel, LCMScheduler

    save_student(tmp_path, teacher, trained(teacher), few_steps(teacher, TIMES, [4, 2, 1], between), {})
    kind = LCMScheduler if between == "renoise" else CogVideoXDDIMScheduler
    theirs = CogVideoXPipeline(
        pipeline.tokenizer,
        pipeline.text_encoder,
        pipeline.vae,
        CogVideoXTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer"),
        kind.from_pretrained(tmp_path, subfolder="scheduler"),
    )
    theirs.set_progress_bar_config(disable=True)
    student = load_student(tmp_path, teacher)
    for steps in (4, 2, 1):
        ours = make_latents(student.sampler(teacher, steps), teacher, [PROMPT], [5], show=False)
        assert torch.equal(ours, by_pipeline(theirs, steps, 1.0, seed=5).transpose(1, 2)), steps
    untrained = student_sampler(teacher, teacher.denoiser, student.few_steps[1])
    assert not torch.equal(ours, make_latents(untrained, teacher, [PROMPT], [5], show=False))


@pytest.mark.parametrize("between", ["renoise", "ddim"])
def test_a_student_that_gives_x_0_is_exported_as_one(
    teacher: Teacher, pipeline: Any, between: str, tmp_path: Path
) -> None:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel, LCMScheduler

    card = {"parameterization": "heterogeneous"}
    save_student(tmp_path, teacher, trained(teacher), few_steps(teacher, TIMES, [4, 2], between), card)
    kind = LCMScheduler if between == "renoise" else CogVideoXDDIMScheduler
    scheduler = kind.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.config.prediction_type == "sample"
    transformer = CogVideoXTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer")
    theirs = CogVideoXPipeline(pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, transformer, scheduler)
    theirs.set_progress_bar_config(disable=True)
    student = load_student(tmp_path, teacher)
    assert student.denoiser.prediction is SAMPLE
    ours = make_latents(student.sampler(teacher, 4), teacher, [PROMPT], [5], show=False)
    assert torch.equal(ours, by_pipeline(theirs, 4, 1.0, seed=5).transpose(1, 2))


@pytest.mark.parametrize(
    ("times", "between", "message"),
    [
        ([999, 700], "renoise", r"\[999, 700\] can't be given.*2 steps.*renoise.*\[999, 499\] can"),
        ([999, 759, 499, 259], "ddim", r"can't be given.*between=ddim.*\[999, 749, 499, 249\] can"),
        ([999, 666, 332], "renoise", r"3 steps.*\[998, 665, 332\] can"),  # 1000 is no multiple of 3
        ([1000, 500], "renoise", "starts at 1000; this teacher's noisiest timestep is 999"),
        ([499, 999], "renoise", r"use \[999, 499\]"),
        ([999, 0], "renoise", "positive times"),
        ([], "renoise", "positive times"),
    ],
)
def test_a_grid_that_no_scheduler_gives_is_refused(teacher: Teacher, times: list, between: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teacher.few_step(times, between)


def test_step_counts_are_evenly_spaced_members_of_the_grid(teacher: Teacher) -> None:
    found = {count: f.times.tolist() for count, f in few_steps(teacher, TIMES, [4, 2, 1], "renoise").items()}
    assert found == {4: TIMES, 2: [999, 499], 1: [999]}
    with pytest.raises(ValueError, match=r"student.steps has 3.*4 of student.timesteps; use of \[4, 2, 1\]"):
        few_steps(teacher, TIMES, [4, 3], "renoise")


def test_ddim_steps_that_diffusers_would_take_otherwise_are_refused(teacher: Teacher) -> None:
    """Its DDIM steps back by whole thousandths of the count, wherever the grid's next time is."""
    with pytest.raises(ValueError, match=r"as 3 steps with student.between=ddim; the evenly spaced \[999, 499\] can"):
        teacher.few_step([999, 666, 332], "ddim")
    assert teacher.few_step([998, 665, 332], "renoise").steps == 3


def test_times_are_spaced_from_the_last_whatever_the_folder_says(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    def spaced(folder: Path) -> None:
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "linspace"}))

    teacher = load_tiny_teacher(broken(tiny_teacher_folder, tmp_path / "teacher", spaced))
    assert teacher.grid(4).tolist() == [*TIMES, -1]
    assert teacher.few_step(TIMES, "ddim").times.tolist() == TIMES


def test_the_exported_numbers_are_those_trained_with(teacher: Teacher) -> None:
    """LCMScheduler's alpha_bar is rounded, and the student trains with the rounded one."""
    ours, theirs = teacher.few_step(TIMES, "renoise").schedule, teacher.denoiser.schedule
    assert not torch.equal(ours.alphas_cumprod.double(), theirs.alphas_cumprod.double())
    torch.testing.assert_close(ours.alphas_cumprod.double(), theirs.alphas_cumprod.double(), rtol=0, atol=1e-5)


def broken(folder: Path, to: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, to)
    change(to)
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "the folder doesn't exist.*teacher=shapes"),
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
        (lambda f: shutil.rmtree(f / "vae"), "lacks vae"),
        (lambda f: [shutil.rmtree(f / n) for n in ("scheduler", "tokenizer")], "lacks scheduler, tokenizer"),
        (lambda f: (f / "transformer" / "config.json").unlink(), "lacks transformer/config.json"),
        (lambda f: [p.unlink() for p in (f / "vae").glob("*.safetensors")], "lacks vae.*weights"),
        (
            lambda f: (f / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"})),
            "holds a WanPipeline",
        ),
    ],
)
def test_a_missing_or_partial_folder_is_a_sentence(
    tiny_teacher_folder: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_tiny_teacher(broken(tiny_teacher_folder, tmp_path / "teacher", change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 16}, r"16 frames.*8k \+ 1, for example 9"),
        ({"frames": 13}, r"13 frames.*8k \+ 1, for example 9"),
        ({"frames": 0}, "0 frames.*for example 1"),
        ({"height": 40}, "40x32 pixels.*multiples of 16, for example 32x32"),
        ({"width": 7}, "32x7 pixels.*for example 32x16"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(tiny_teacher_folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tiny_teacher(tiny_teacher_folder, **changes)


def test_the_teacher_knows_its_shapes(teacher: Teacher) -> None:
    assert teacher.latent_shape == LATENT and teacher.clip_shape == (9, 32, 32)
    noise = teacher.noise(generators([0, 1, 0]))
    assert noise.shape == (3, *LATENT) and torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])


def loss_of(teacher: Teacher, network: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, *LATENT, generator=generator)
    condition = teacher.text([PROMPT, ""])
    return teacher.denoiser_of(network)(x, torch.tensor([999, 249]), condition).square().mean()


def test_gradients_reach_every_weight_of_the_student_and_none_of_the_teacher(teacher: Teacher) -> None:
    network = new_network(teacher)
    loss_of(teacher, network).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
    frozen = [teacher.denoiser.network, teacher.codec.vae, *teacher.text.models]
    assert not any(p.requires_grad or p.grad is not None for part in frozen for p in part.parameters())


def test_activation_checkpointing_leaves_the_gradients_equal(teacher: Teacher) -> None:
    network = parallelize(new_network(teacher), World())
    loss_of(teacher, network).backward()
    plain = gradients(network).clone()
    clear(network)
    parallelize(network, World(), activation_checkpointing=True)
    calls = []
    network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(teacher, network).backward()
    assert len(calls) == 2  # once forward and once more for the backward pass
    assert torch.equal(gradients(network), plain)


def test_a_prompt_too_long_is_cut_with_its_count(teacher: Teacher) -> None:
    with pytest.warns(UserWarning, match=r"has 19 tokens and was cut to the 12"):
        condition = teacher.text(["a small red circle " + "moving left " * 7])
    assert condition.embeddings.shape == (1, 12, 64) and condition.mask.sum() == 12
    short = teacher.text(["red circle", ""])
    assert short.mask.sum(1).tolist() == [3, 1]


def test_reading_timesteps_in_half_precision_changes_nothing(teacher: Teacher) -> None:
    """999 would become 1000 in bfloat16; the network must still be told 999."""
    seen = []
    handle = teacher.denoiser.network.transformer.time_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    half = teacher.denoiser_of(teacher.denoiser.network, torch.bfloat16)
    out = half(torch.randn(1, *LATENT), torch.tensor([999]), teacher.text([PROMPT]))
    handle.remove()
    assert seen[0].item() == 999 and out.dtype == torch.float32
