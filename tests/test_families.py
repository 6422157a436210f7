"""Every family's adapter against its plain diffusers pipeline: teacher, student, latents and prompts."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    EMBEDDED,
    LATENT,
    TINY_RUN,
    clear,
    compose,
    fingerprint,
    gradients,
    needs_embedded,
    network_of,
    new_network,
    tiny_run,
)
from families import FAMILIES, PROMPT, build
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from dollar.diffusion.prediction import SAMPLE
from dollar.export.student import few_steps, load_student, read_card, save_student
from dollar.models import flow
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.parallel.shard import parallelize
from dollar.parallel.world import World
from dollar.planning.memory import Setup, checkpoint_bytes, roles
from dollar.sampling.samplers import generators, make_latents, student_sampler, teacher_sampler
from dollar.training.loop import Loop

FLOW = [name for name in FAMILIES if not name.startswith("cogvideox")]
TIMES = {name: [1000, 750, 500, 250] if name in FLOW else [999, 749, 499, 249] for name in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(family, tmp_path_factory.mktemp(family) / "teacher")


@pytest.fixture(scope="module")
def teacher(family: str, folder: Path) -> Teacher:
    return FAMILIES[family].load(folder)


def diffusers_pipeline(folder: Path, **parts: Any) -> Any:
    from diffusers import DiffusionPipeline

    found = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **parts)
    found.set_progress_bar_config(disable=True)
    return found


def one_step_solver(folder: Path, shift: float) -> dict[str, Any]:
    """What replaces a published scheduler that takes several steps' outputs into account."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    multistep = scheduler["_class_name"] == "UniPCMultistepScheduler"
    return {"scheduler": FlowMatchEulerDiscreteScheduler(shift=shift)} if multistep else {}


def by_pipeline(pipe: Any, family: str, steps: int, guidance_scale: float, kind: str = "latent") -> Tensor:
    """Latents or videos of the pipeline, as it gives them; call torch.manual_seed first."""
    tiny = FAMILIES[family]
    size = {f"{'num_' if key == 'frames' else ''}{key}": value for key, value in tiny.clip.items()}
    return pipe(
        PROMPT,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        max_sequence_length=tiny.text_length,
        output_type=kind,
        **size,
        **tiny.call,
    ).frames


def as_ours(latents: Tensor, family: str, teacher: Teacher) -> Tensor:
    """A pipeline's latents as [B, C, F, h, w]."""
    if family.startswith("cogvideox"):
        return latents.transpose(1, 2)
    if family == "ltx":
        _, frames, height, _ = teacher.latent_shape
        return latents.transpose(1, 2).unflatten(2, (frames, height, -1))
    return latents


def test_ten_guided_steps_are_the_pipelines(family: str, folder: Path, teacher: Teacher) -> None:
    shift = getattr(teacher.denoiser.schedule, "shift", 1.0)
    pipe = diffusers_pipeline(folder, **one_step_solver(folder, shift))
    ours = make_latents(teacher_sampler(teacher, 10), teacher, [PROMPT], [3], show=False)
    torch.manual_seed(3)
    theirs = as_ours(by_pipeline(pipe, family, 10, teacher.guidance_scale), family, teacher)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    if not teacher.family.embeds_guidance:
        unguided = make_latents(teacher_sampler(teacher, 10, 1.0), teacher, [PROMPT], [3], show=False)
        torch.manual_seed(3)
        theirs = as_ours(by_pipeline(pipe, family, 10, 1.0), family, teacher)
        torch.testing.assert_close(unguided, theirs, rtol=0, atol=1e-4)
    torch.manual_seed(3)
    other = as_ours(by_pipeline(pipe, family, 10, teacher.guidance_scale + 3), family, teacher)
    assert (ours - other).abs().max() > 1e-4  # ... and at another guidance they would not be


def test_prompts_are_read_as_the_pipeline_reads_them(family: str, folder: Path, teacher: Teacher) -> None:
    condition = teacher.text([PROMPT, ""])
    with torch.no_grad():
        found = diffusers_pipeline(folder).encode_prompt(PROMPT, max_sequence_length=teacher.text_length)
    assert torch.equal(condition.embeddings[:1], found[0])
    assert not torch.equal(condition.embeddings[0], condition.embeddings[1])
    assert condition.mask[0].sum() > condition.mask[1].sum()
    if family == "hunyuanvideo":
        assert torch.equal(condition.pooled[:1], found[1]) and torch.equal(condition.mask[:1], found[2])


def test_decoded_clips_are_the_pipelines_to_the_bit(family: str, folder: Path, teacher: Teacher) -> None:
    pipe = diffusers_pipeline(folder, **one_step_solver(folder, getattr(teacher.denoiser.schedule, "shift", 1.0)))
    torch.manual_seed(3)
    latents = as_ours(by_pipeline(pipe, family, 2, teacher.guidance_scale), family, teacher)
    torch.manual_seed(3)
    theirs = by_pipeline(pipe, family, 2, teacher.guidance_scale, "pt")
    assert torch.equal(teacher.codec.decode(latents), theirs)


def test_latents_come_back(teacher: Teacher) -> None:
    """denormalise undoes normalise, and a coded clip has the teacher's latent shape."""
    frames, height, width = teacher.clip_shape
    clip = torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    z = teacher.codec.moments(clip)
    latents = teacher.codec.encode(clip)
    assert latents.shape[1:] == teacher.latent_shape
    torch.testing.assert_close(teacher.codec.normalisation.denormalise(latents), z, rtol=1e-5, atol=1e-5)
    assert teacher.codec.decode(latents).shape == clip.shape


def changed(teacher: Teacher) -> torch.nn.Module:
    """A student that differs from its teacher."""
    network = new_network(teacher)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return network


@pytest.mark.parametrize("between", ["renoise", "ddim"])
def test_a_saved_student_is_sampled_by_the_pipeline(
    family: str, folder: Path, teacher: Teacher, between: str, tmp_path: Path
) -> None:
    """Bit for bit; but Euler's step on a flow goes along the velocity and ours by x_0, which rounds otherwise."""
    pipe = diffusers_pipeline(folder)
    for steps in (4, 2, 1):
        times = TIMES[family][:: 4 // steps]
        save_student(tmp_path / str(steps), teacher, changed(teacher), few_steps(teacher, times, [steps], between), {})
        student = load_student(tmp_path / str(steps), teacher)
        ours = make_latents(student.sampler(teacher, steps), teacher, [PROMPT], [5], show=False)
        read = with_student(pipe, tmp_path / str(steps))
        torch.manual_seed(5)
        theirs = as_ours(by_pipeline(read, family, steps, student_guidance(teacher)), family, teacher)
        if between == "ddim" and family in FLOW:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        else:
            assert torch.equal(ours, theirs), steps
    untrained = student_sampler(teacher, teacher.denoiser, student.few_steps[1])
    assert not torch.equal(ours, make_latents(untrained, teacher, [PROMPT], [5], show=False))


@pytest.mark.parametrize("between", ["renoise", "ddim"])
def test_sixteen_steps_and_fewer_are_even_and_start_at_pure_noise(
    family: str, folder: Path, teacher: Teacher, between: str, tmp_path: Path
) -> None:
    """16 doesn't divide CogVideoX's 1000 timesteps, so that none of them is further off than one, and DDIM has 8."""
    whole = family not in FLOW
    longest = 8 if whole and between == "ddim" else 16
    samplers = few_steps(teacher, None, [n for n in (16, 8, 4, 2, 1) if n <= longest], between)
    for count, sampler in samplers.items():
        even = torch.arange(count, 0, -1, dtype=torch.float64) / count
        found = sampler.schedule.fraction(sampler.times)
        assert found[0] == 1 and torch.allclose(found, even, rtol=0, atol=1e-3 if whole else 1e-4)
    save_student(tmp_path, teacher, changed(teacher), samplers, {})
    student = load_student(tmp_path, teacher)
    assert student.few_steps[longest].times.tolist() == samplers[longest].times.tolist()
    ours = make_latents(student.sampler(teacher, longest), teacher, [PROMPT], [5], show=False)
    read = with_student(diffusers_pipeline(folder), tmp_path)
    torch.manual_seed(5)
    theirs = as_ours(by_pipeline(read, family, longest, student_guidance(teacher)), family, teacher)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 if between == "ddim" and family in FLOW else 0)


def student_guidance(teacher: Teacher) -> float:
    """What a pipeline is told for a student: nothing is guided, but a network that reads its scale is told the same."""
    return teacher.guidance_scale if teacher.family.embeds_guidance else 1.0


def with_student(pipe: Any, student: Path) -> Any:
    """The pipeline with a student's transformer and scheduler."""
    import diffusers

    scheduler = json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    pipe.transformer = type(pipe.transformer).from_pretrained(student / "transformer", torch_dtype=torch.float32)
    pipe.scheduler = getattr(diffusers, scheduler).from_pretrained(student / "scheduler")
    return pipe


def loss_of(teacher: Teacher, network: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, *teacher.latent_shape, generator=generator)
    t = teacher.denoiser.schedule.uniform(torch.tensor([0.97, 0.3]))
    return teacher.denoiser_of(network)(x, t, teacher.text([PROMPT, ""])).square().mean()


def test_gradients_reach_every_weight_and_checkpointing_leaves_them_equal(teacher: Teacher) -> None:
    network = parallelize(new_network(teacher), World())
    loss_of(teacher, network).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # The last double block's text leaves no trace where a family drops the text afterwards.
    assert not without, without
    frozen = [teacher.denoiser.network, teacher.codec.vae, *teacher.text.models]
    assert not any(p.requires_grad or p.grad is not None for part in frozen for p in part.parameters())
    plain = gradients(network).clone()
    clear(network)
    parallelize(network, World(), activation_checkpointing=True)
    calls: list[int] = []
    network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(teacher, network).backward()
    assert len(calls) == 2  # once forward and once more for the backward pass
    assert torch.equal(gradients(network), plain)


def test_in_bfloat16_the_network_says_nearly_the_same(teacher: Teacher) -> None:
    """Under autocast, as training runs it: the output stays float32, and every weight gets a finite gradient."""
    network = new_network(teacher)
    x = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(2))
    t = teacher.denoiser.schedule.uniform(torch.tensor([0.97, 0.3]))
    condition = teacher.text([PROMPT, ""])
    half = teacher.denoiser_of(network, torch.bfloat16)(x, t, condition)
    whole = teacher.denoiser_of(network)(x, t, condition)
    assert half.dtype == torch.float32 and 0 < (half - whole).norm() / whole.norm() < 0.02
    half.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_a_copy_to_be_trained_has_the_teachers_weights_and_buffers(teacher: Teacher) -> None:
    copy, held = new_network(teacher), dict(teacher.denoiser.network.named_parameters())
    for name, p in copy.named_parameters():
        assert torch.equal(p, held[name]) and p.data_ptr() != held[name].data_ptr() and p.requires_grad
    buffers = dict(teacher.denoiser.network.named_buffers())
    assert dict(copy.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(b, buffers[name]) for name, b in copy.named_buffers())


class NoiseClips:
    """Clips of noise of one size; `windowed` is off, since each is as long as it is asked for."""

    windowed = False

    def __init__(self, frames: int, height: int, width: int, size: int, split: str, seed: int) -> None:
        self.shape = (frames, height, width, 3)
        self.captions = [PROMPT if i % 2 else "a red circle" for i in range(size)]

    def __len__(self) -> int:
        return len(self.captions)

    def clip(self, index: int, u: float) -> tuple[np.ndarray, str]:
        drawn = np.random.default_rng(index).integers(0, 256, self.shape, dtype=np.uint8)
        return drawn, self.captions[index]


def test_a_cycle_of_algorithm_1_and_the_one_after_resuming(family: str, teacher: Teacher, tmp_path: Path) -> None:
    """All of its terms, on either kind of schedule: finite losses, every network moves, and resuming is exact."""
    size = [f"data.clips.{key}={value}" for key, value in FAMILIES[family].clip.items()]
    data = ("data.clips._target_=test_families.NoiseClips", "data.clips.size=8", *(f"+{s}" for s in size))
    unguided = ("vsd.guidance_scale=1", "cd.guidance_scale=1") if teacher.family.embeds_guidance else ()
    settings = (*unguided, "data.cache=8", "parallel.activation_checkpointing=true", "lrm.warmup=0", "save_every=1")

    def loop_of(name: str) -> Loop:
        return tiny_run(teacher, tmp_path / name, *settings, "cycles=2", data=data)

    loop = loop_of("whole")
    before = {name: fingerprint(network_of(loop, name)) for name in loop.learners}
    logged = loop.run_cycle(0)
    loop.cycle = 1
    loop.save()
    for name in ("loss/vsd", "loss/cd", "loss/fake", "loss/lrm"):
        # Unguided, the teacher and the fake score that starts from it say the same at first.
        alike = name == "loss/vsd" and teacher.family.embeds_guidance
        assert math.isfinite(logged[name]) and (logged[name] == 0) == alike, name
    for name in loop.learners:
        assert not torch.equal(before[name], fingerprint(network_of(loop, name))), name
    again = loop_of("again")
    again.load(checkpoint.load(checkpoint.newest(tmp_path / "whole" / "checkpoints")))
    one, other = loop.run_cycle(1), again.run_cycle(1)
    for name in ("loss/vsd", "loss/cd", "loss/ft"):  # the latter once rewards were seen that differ
        assert math.isfinite(one[name]) and one[name] == other[name], name
    for name in loop.learners:
        assert torch.equal(fingerprint(network_of(loop, name)), fingerprint(network_of(again, name))), name
    loop.log.close(), again.log.close()


def plan_of(family: str, folder: Path, settings: Sequence[str], data: Sequence[str]) -> Setup:
    """What launch/plan.py would count of a run."""
    from dollar.cli.build.planning import setup_of, student_work
    from dollar.models.outline import measure, outline

    tiny, config = FAMILIES[family], compose("plan", *TINY_RUN, *data, *settings)
    plain: Any = OmegaConf.to_container(config.teacher, resolve=True)
    found = outline(plain | tiny.settings(folder) | {"_target_": f"{tiny.module}.load", "states": {}})
    work = measure(found, torch.float32)
    return setup_of(config, found, work, student_work(config, found, work))


def test_a_student_that_is_a_lora(family: str, teacher: Teacher, folder: Path, tmp_path: Path) -> None:
    """It starts as the teacher, only its factors are trained and kept, and its file in diffusers gives its clips."""
    from dollar.cli.build.loop import Run
    from dollar.cli.build.student import write_student

    size = [f"data.clips.{key}={value}" for key, value in FAMILIES[family].clip.items()]
    data = ("data.clips._target_=test_families.NoiseClips", "data.clips.size=8", *(f"+{s}" for s in size))
    unguided = ("vsd.guidance_scale=1", "cd.guidance_scale=1") if teacher.family.embeds_guidance else ()
    settings = (*unguided, "data.cache=8", "student.lora=2", "beta_ft=0", "cycles=2", "optim.student.lr=0.01")

    def loop_of(name: str) -> Loop:
        return tiny_run(teacher, tmp_path / name, *settings, data=data)

    loop = loop_of("run")
    student, trained = network_of(loop, "student"), loop.learners["student"].parameters
    assert torch.equal(loss_of(teacher, student), loss_of(teacher, teacher.denoiser.network))
    frozen = {n: p.clone() for n, p in student.named_parameters() if not p.requires_grad}
    assert loop.train()
    assert all(torch.equal(student.get_parameter(name), value) for name, value in frozen.items())
    assert trained and all("lora" in name for name in trained)
    planned = plan_of(family, folder, settings, data)
    assert sum(p.numel() for p in trained.values()) == roles(planned)[0].parameters
    state = checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints")).tensors
    assert sum(t.nbytes for t in state.values()) == checkpoint_bytes(planned)
    assert {n for n in state if n.startswith(("student/", "ema/")) and "/optim/" not in n} == {
        f"{who}/{name}" for who in ("student", "ema") for name in trained
    }
    again = loop_of("again")
    again.load(checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints")))
    assert torch.equal(fingerprint(network_of(again, "student")), fingerprint(student))
    config = compose("train", *TINY_RUN, *data, f"teacher.folder={folder}", *settings)
    write_student(Run(loop, loop.method.run), teacher, config)
    with loop.average.swapped():
        expected = loss_of(teacher, student)
    made = load_student(tmp_path / "run" / "student", teacher)
    torch.testing.assert_close(loss_of(teacher, made.denoiser.network), expected, rtol=1e-4, atol=1e-6)
    pipe = diffusers_pipeline(folder)
    pipe.load_lora_weights(tmp_path / "run" / "student")
    pipe.transformer.fuse_lora()
    by_file = teacher.family.network(pipe.transformer)
    torch.testing.assert_close(loss_of(teacher, by_file), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected, loss_of(teacher, teacher.denoiser.network), rtol=1e-4)
    loop.log.close(), again.log.close()


def test_a_teacher_with_its_guidance_inside_is_not_guided_again(tmp_path: Path) -> None:
    folder = build("hunyuanvideo", tmp_path / "teacher")
    inside = FAMILIES["hunyuanvideo"].load(folder)
    with pytest.raises(
        ValueError, match=r"vsd.guidance_scale=1.25 and cd.guidance_scale=2.0, but tiny takes its guidance scale"
    ):
        tiny_run(inside, tmp_path / "run")


def with_lora(folder: Path, to: Path, alpha: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A LoRA of random weights in diffusers' form at `to`; returns module -> (A, B)."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    transformer = diffusers_pipeline(folder).transformer
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["to_q", "to_v"])
    transformer.add_adapter(config)
    generator = torch.Generator().manual_seed(4)
    state = get_peft_model_state_dict(transformer)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
    kind = type(diffusers_pipeline(folder))
    kind.save_lora_weights(to, transformer_lora_layers=state, transformer_lora_adapter_metadata=config.to_dict())
    modules = {name.removesuffix(".lora_A.weight") for name in state if name.endswith("lora_A.weight")}
    return {m: (state[f"{m}.lora_A.weight"], state[f"{m}.lora_B.weight"]) for m in modules}


def lora_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_a_lora_is_merged_into_the_teacher(family: str, folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    found = with_lora(folder, tmp_path / "lora", alpha=6)  # three times its rank: it counts threefold
    assert found
    merged = FAMILIES[family].load(folder, lora=str(tmp_path / "lora"), lora_scale=0.5)
    plain = dict(teacher.denoiser.network.named_parameters())
    changed = dict(merged.denoiser.network.named_parameters())
    assert plain.keys() == changed.keys()
    for name, value in changed.items():
        module = name.removeprefix("transformer.").removesuffix(".weight")
        a_and_b = found.get(module)
        wanted = plain[name] if a_and_b is None else plain[name] + 0.5 * 3 * a_and_b[1] @ a_and_b[0]
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    student = new_network(merged)  # starts from what was merged, though no file holds it
    assert torch.equal(fingerprint(student), fingerprint(merged.denoiser.network))
    with pytest.raises(ValueError, match="can't be merged into this teacher"):
        FAMILIES[family].load(folder, lora=str(folder / "transformer"))
    deeper = {n.replace("blocks.1.", "blocks.7."): t for n, t in load_file(lora_file(tmp_path / "lora")).items()}
    save_file(deeper, tmp_path / "deeper.safetensors")
    if deeper.keys() != load_file(lora_file(tmp_path / "lora")).keys():
        with pytest.raises(ValueError, match=r"it changes .*blocks.7.*, which the transformer doesn't have"):
            FAMILIES[family].load(folder, lora=str(tmp_path / "deeper.safetensors"))
    wider = {n: torch.cat([t, t], 1) if ".lora_A." in n else t for n, t in deeper.items() if "blocks.7" not in n}
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(ValueError, match=r"its .*lora_A.* is .*, but .*weight is"):
        FAMILIES[family].load(folder, lora=str(tmp_path / "wider.safetensors"))


def test_a_component_may_be_a_single_file(family: str, folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    single = tmp_path / "all.safetensors"
    shutil.copy(folder / "transformer" / "diffusion_pytorch_model.safetensors", single)
    found = FAMILIES[family].load(folder, parts={"transformer": str(single)})
    assert torch.equal(fingerprint(found.denoiser.network), fingerprint(teacher.denoiser.network))
    with pytest.raises(ValueError, match="hold the tensors of this .*Transformer3DModel"):
        FAMILIES[family].load(
            folder, parts={"transformer": str(folder / "vae" / "diffusion_pytorch_model.safetensors")}
        )
    with pytest.raises(ValueError, match=r"no teacher.parts.vae at .*nowhere"):
        FAMILIES[family].load(folder, parts={"vae": str(tmp_path / "nowhere")})


def test_a_single_file_by_its_authors_names_is_read(tmp_path: Path) -> None:
    """Wan's own names, which are not diffusers'."""
    folder = build("wan_2_1", tmp_path / "teacher")
    teacher = FAMILIES["wan_2_1"].load(folder)
    names = {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "attn1": "self_attn",
        "attn2": "cross_attn",
        ".to_out.0.": ".o.",
        ".to_q.": ".q.",
        ".to_k.": ".k.",
        ".to_v.": ".v.",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "norm2": "norm3",
        "proj_out": "head.head",
    }
    theirs = {}
    for name, value in load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors").items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        theirs[name] = value
    save_file(theirs, tmp_path / "wan.safetensors")
    found = FAMILIES["wan_2_1"].load(folder, parts={"transformer": str(tmp_path / "wan.safetensors")}, weights=False)
    assert torch.equal(fingerprint(found.denoiser.network), fingerprint(teacher.denoiser.network))


# The autoencoder


def test_only_the_latent_frames_that_a_frame_needs_are_decoded(family: str, teacher: Teacher) -> None:
    codec, ratio = teacher.codec, teacher.codec.ratio
    latents = long_latents(teacher, 7)
    whole = codec.decode(latents)
    seen: list[int] = []
    decode = codec._decode
    codec._decode = lambda z: seen.append(z.shape[2]) or decode(z)
    try:
        wanted = [0, 1, ratio + 1, 2 * ratio]
        some = codec.decode(latents, wanted)
        # What goes through time by itself is exact, for it stops where nothing more is needed.
        assert some.shape[1] == 4 and (seen == [3] if codec.streams else sum(seen) <= 7)
        if codec.streams:
            assert torch.equal(some, whole[:, wanted])
        with pytest.raises(ValueError, match="give rising ones, from 0 to"):
            codec.decode(latents, [3, 1])
    finally:
        codec._decode = decode


def test_frames_of_a_tiled_decoder_are_those_of_the_whole(tmp_path: Path) -> None:
    """HunyuanVideo's decoder goes through time in tiles on a grid of its own."""
    teacher = FAMILIES["hunyuanvideo"].load(build("hunyuanvideo", tmp_path / "teacher"))
    latents = long_latents(teacher, 33)[..., :2, :2]
    whole = teacher.codec.decode(latents)
    for wanted in ([0], [40], [52], [64, 77], [100], [128], [3, 60, 127]):
        torch.testing.assert_close(teacher.codec.decode(latents, wanted), whole[:, wanted], rtol=0, atol=1e-6)
    seen: list[int] = []
    decode = teacher.codec._decode
    teacher.codec._decode = lambda z: seen.append(z.shape[2]) or decode(z)
    teacher.codec.decode(latents, [64])
    assert sum(seen) < 20


def long_latents(teacher: Teacher, frames: int) -> Tensor:
    """Latents of a longer clip than the teacher's; the padding of a family that has some comes on top."""
    channels, _, height, width = teacher.latent_shape
    drawn = torch.randn(1, channels, frames, height, width, generator=torch.Generator().manual_seed(6))
    return drawn


def test_the_beginning_of_a_clip_is_coded_without_its_end(family: str, teacher: Teacher) -> None:
    """Chunked equals whole: exactly where the autoencoder keeps what it needs of the past, which LTX-Video's encoder
    does not; there, and in its decoder, a chunk must see enough of its surroundings."""
    codec, cell = teacher.codec, teacher.family.states()["cell"]
    frames = 24 * codec.ratio + 1
    clip = torch.rand(1, frames, 3, cell, cell, generator=torch.Generator().manual_seed(7))
    whole = codec.moments(clip)
    if codec.streams:
        begun = codec.moments(clip[:, : 8 * codec.ratio + 1])
        torch.testing.assert_close(begun, whole[:, :, :9], rtol=0, atol=1e-5)
    if family != "ltx":
        return
    latents = codec.normalise(whole)
    decoded = codec.decode(latents)
    sd, size = decoded.std(), []
    decode = codec._decode
    codec._decode = lambda z: size.append(z.shape[2]) or decode(z)
    try:
        codec.chunk_frames, codec.context = 2, 12
        torch.testing.assert_close(codec.decode(latents), decoded, rtol=0, atol=1e-5)
        codec.context = 8
        assert (codec.decode(latents) - decoded).square().mean().sqrt() < 0.01 * sd
        size.clear()
        codec.context = 1
        codec.decode(latents)
        assert max(size) == 4  # memory is bounded
        codec.context = 23
        torch.testing.assert_close(codec.moments(clip), whole, rtol=0, atol=1e-5)
    finally:
        codec.chunk_frames, codec.context, codec._decode = None, 8, decode


def test_chunks_are_refused_where_they_would_do_nothing(family: str, folder: Path, teacher: Teacher) -> None:
    if teacher.codec.streams:
        with pytest.raises(ValueError, match="chunk_frames is 4, but .* goes through time by itself"):
            FAMILIES[family].load(folder, chunk_frames=4)
    else:
        assert FAMILIES[family].load(folder, chunk_frames=4).codec is not None


def test_gradients_pass_through_the_decoder_only_when_asked(teacher: Teacher) -> None:
    latents = torch.randn(1, *teacher.latent_shape, requires_grad=True)
    assert not teacher.codec.decode(latents).requires_grad
    teacher.codec.decode(latents, gradient=True).mean().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.codec.vae.parameters())


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 17.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_a_pipeline_that_gives_only_a_number_of_steps_gets_the_students_times(shift: float, steps: int) -> None:
    scheduler = flow.student_scheduler("renoise", **flow.stretched(steps, shift))
    scheduler.set_timesteps(steps)
    u = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    wanted = shift * u / (1 + (shift - 1) * u)
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), wanted, rtol=0, atol=2e-6)


def test_another_shift_moves_teacher_and_student_alike(family: str, folder: Path) -> None:
    if family not in FLOW:
        with pytest.raises(ValueError, match="teacher.shift is 5.0, but"):
            FAMILIES[family].load(folder, shift=5.0)
        return
    shifted = FAMILIES[family].load(folder, shift=5.0, states=FAMILIES[family].load(folder).family.states())
    wanted = torch.tensor([1.0, 15 / 16, 5 / 6, 5 / 8])
    torch.testing.assert_close(shifted.few_step([1000, 750, 500, 250], "renoise").times, wanted, rtol=0, atol=1e-5)
    assert shifted.denoiser.schedule.shift == 5.0
    middle = shifted.grid(20)[10]
    assert middle > FAMILIES[family].load(folder, shift=1.5).grid(20)[10] + 0.1


def test_uneven_times_are_refused_with_those_that_can_be_given(family: str, teacher: Teacher) -> None:
    even = str([1000.0, 500.0]) if family in FLOW else str([999, 499])
    with pytest.raises(ValueError, match="can't be given") as told:
        teacher.few_step([900, 100], "renoise")
    assert even in str(told.value)


def test_a_part_of_another_family_is_told(tmp_path: Path) -> None:
    wan, other = (build(name, tmp_path / name) for name in ("wan_2_1", "cogvideox_2b"))
    hunyuan = build("hunyuanvideo", tmp_path / "hunyuanvideo")
    for part, place, message in (
        ("vae", other, "is a AutoencoderKLCogVideoX; this teacher's is a AutoencoderKLWan"),
        ("transformer", other, "is a CogVideoXTransformer3DModel; this teacher's is a WanTransformer3DModel"),
        ("text_encoder", hunyuan, "gives 16 numbers in a token's embedding, and the transformer takes 32"),
        ("vae", build("wan_2_1", tmp_path / "narrow"), "gives 8 latent channels, and the transformer takes 16"),
    ):
        if place.name == "narrow":
            config = place / "vae" / "config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "z_dim": 8}))
        with pytest.raises(ValueError, match=message):
            FAMILIES["wan_2_1"].load(wan, parts={part: str(place / part)})
    (wan / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="lacks tokenizer's vocabulary"):
        FAMILIES["wan_2_1"].load(wan)
    FAMILIES["wan_2_1"].load(wan, text="stored", parts={"text_encoder": "elsewhere"})  # is not read, so not missed
    with pytest.raises(ValueError, match="only transformer and vae may be single files"):
        FAMILIES["wan_2_1"].load(other, parts={"text_encoder": str(wan / "vae" / "config.json")})


def test_a_student_keeps_its_times_at_another_size(tmp_path: Path) -> None:
    """LTX-Video's shift grows with the clip; a student's times are those that it was trained for."""
    folder = build("ltx", tmp_path / "teacher")
    teacher = FAMILIES["ltx"].load(folder)
    save_student(tmp_path / "student", teacher, new_network(teacher), few_steps(teacher, None, [4], "renoise"), {})
    shift = read_card(tmp_path / "student")["shift"]
    larger = FAMILIES["ltx"].load(folder, frames=33, height=128, width=128, shift=shift)
    moved = FAMILIES["ltx"].load(folder, frames=33, height=128, width=128)
    kept = teacher.few_step([1000, 750, 500, 250], "renoise").times
    assert torch.equal(larger.few_step([1000, 750, 500, 250], "renoise").times, kept)
    assert not torch.allclose(moved.few_step([1000, 750, 500, 250], "renoise").times, kept, atol=1e-3)


def test_a_network_that_is_told_its_guidance_is_not_guided_in_sampling(tmp_path: Path) -> None:
    teacher = FAMILIES["hunyuanvideo"].load(build("hunyuanvideo", tmp_path / "teacher"))
    with pytest.raises(ValueError, match=r"give teacher.guidance_scale=3"):
        teacher_sampler(teacher, 4, 3.0)


@pytest.mark.parametrize("part", ["transformer", "vae", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(folder: Path, family: str, part: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t")
    shutil.rmtree(tmp_path / "t" / part)
    with pytest.raises(ValueError, match=f"lacks {part}"):
        FAMILIES[family].load(tmp_path / "t")
    found = FAMILIES[family].load(tmp_path / "t", parts={part: str(folder / part)})  # ... and may lie elsewhere
    assert found.latent_shape


def test_sizes_that_do_not_fit_name_the_nearest(family: str, folder: Path, teacher: Teacher) -> None:
    states = teacher.family.states()
    step, cell = int(states["frames"].split("k")[0]), states["cell"]
    for change in ({"frames": step}, {"height": cell + 1}, {"width": cell // 2}):
        with pytest.raises(ValueError, match="don't fit this VAE.*for example"):
            FAMILIES[family].load(folder, **change)


def test_what_a_yaml_states_is_checked_against_the_folder(family: str, folder: Path, teacher: Teacher) -> None:
    states = teacher.family.states()
    FAMILIES[family].load(folder, states=states)
    with pytest.raises(ValueError, match="prediction is .* there and epsilon in .*; transformer.num_layers is"):
        FAMILIES[family].load(folder, states={"prediction": "epsilon", "transformer": {"num_layers": 77}})


# CogVideoX alone: its schedule's grid of whole timesteps, its sizes, and folders that are not whole


WHOLE = TIMES["cogvideox_2b"]


@pytest.fixture(scope="module")
def cog_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("cogvideox_2b", tmp_path_factory.mktemp("cog") / "teacher")


@pytest.fixture(scope="module")
def cog(cog_folder: Path) -> Teacher:
    return FAMILIES["cogvideox_2b"].load(cog_folder)


@needs_embedded
def test_the_embedded_teacher_samples_as_its_pipeline() -> None:
    from diffusers import CogVideoXPipeline
    from hydra.utils import instantiate

    embedded = instantiate(compose("train").teacher, device="cpu")
    plain = CogVideoXPipeline.from_pretrained(EMBEDDED)  # as README.md has it
    plain.set_progress_bar_config(disable=True)
    ours = make_latents(teacher_sampler(embedded, 4), embedded, [PROMPT], [3], show=False)
    torch.manual_seed(3)
    size = {"num_frames": 17, "height": 64, "width": 64, "guidance_scale": embedded.guidance_scale}
    theirs = plain(
        PROMPT, num_inference_steps=4, output_type="latent", max_sequence_length=12, **size
    ).frames.transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("between", ["renoise", "ddim"])
def test_a_student_that_gives_x_0_is_exported_as_one(
    cog: Teacher, cog_folder: Path, between: str, tmp_path: Path
) -> None:
    card = {"parameterization": "heterogeneous"}
    save_student(tmp_path, cog, changed(cog), few_steps(cog, WHOLE, [4, 2], between), card)
    theirs = with_student(diffusers_pipeline(cog_folder), tmp_path)
    assert type(theirs.scheduler).__name__ == ("LCMScheduler" if between == "renoise" else "CogVideoXDDIMScheduler")
    assert theirs.scheduler.config.prediction_type == "sample"
    student = load_student(tmp_path, cog)
    assert student.denoiser.prediction is SAMPLE
    ours = make_latents(student.sampler(cog, 4), cog, [PROMPT], [5], show=False)
    torch.manual_seed(5)
    assert torch.equal(ours, as_ours(by_pipeline(theirs, "cogvideox_2b", 4, 1.0), "cogvideox_2b", cog))


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
def test_a_grid_that_no_scheduler_gives_is_refused(cog: Teacher, times: list, between: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cog.few_step(times, between)


def test_step_counts_are_evenly_spaced_members_of_the_grid(cog: Teacher) -> None:
    found = {count: f.times.tolist() for count, f in few_steps(cog, WHOLE, [4, 2, 1], "renoise").items()}
    assert found == {4: WHOLE, 2: [999, 499], 1: [999]}
    with pytest.raises(ValueError, match=r"student.steps has 3.*4 of student.timesteps; use some of \[4, 2, 1\]"):
        few_steps(cog, WHOLE, [4, 3], "renoise")


def test_ddim_steps_that_diffusers_would_take_otherwise_are_refused(cog: Teacher) -> None:
    """Its DDIM steps back by whole thousandths of the count, wherever the grid's next time is."""
    with pytest.raises(ValueError, match=r"as 3 steps with student.between=ddim; the evenly spaced \[999, 499\] can"):
        cog.few_step([999, 666, 332], "ddim")
    assert cog.few_step([998, 665, 332], "renoise").steps == 3


def test_times_are_spaced_from_the_last_whatever_the_folder_says(cog_folder: Path, tmp_path: Path) -> None:
    def spaced(folder: Path) -> None:
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "linspace"}))

    teacher = FAMILIES["cogvideox_2b"].load(broken(cog_folder, tmp_path / "teacher", spaced))
    assert teacher.grid(4).tolist() == [*WHOLE, -1]
    assert teacher.few_step(WHOLE, "ddim").times.tolist() == WHOLE


def test_the_exported_numbers_are_those_trained_with(cog: Teacher) -> None:
    """LCMScheduler's alpha_bar is rounded, and the student trains with the rounded one."""
    ours, theirs = cog.few_step(WHOLE, "renoise").schedule, cog.denoiser.schedule
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
    cog_folder: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILIES["cogvideox_2b"].load(broken(cog_folder, tmp_path / "teacher", change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 16}, r"16 frames.*8k \+ 1, for example 17"),
        ({"frames": 13}, r"13 frames.*8k \+ 1, for example 9"),
        ({"frames": 0}, "0 frames.*for example 1"),
        ({"height": 37}, "37x32 pixels.*multiples of 8, for example 40x32"),
        ({"width": 7}, "32x7 pixels.*for example 32x8"),
    ],
)
def test_sizes_that_do_not_fit_cogvideox_name_the_nearest(cog_folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILIES["cogvideox_2b"].load(cog_folder, **changes)


def test_the_teacher_knows_its_shapes(cog: Teacher) -> None:
    assert cog.latent_shape == LATENT and cog.clip_shape == (9, 32, 32)
    noise = cog.noise(generators([0, 1, 0]))
    assert noise.shape == (3, *LATENT) and torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])


def test_a_prompt_too_long_is_cut_with_its_count(cog: Teacher) -> None:
    with pytest.warns(UserWarning, match=r"has 19 tokens and was cut to the 12"):
        condition = cog.text(["a small red circle " + "moving left " * 7])
    assert condition.embeddings.shape == (1, 12, 32) and condition.mask.sum() == 12
    short = cog.text(["red circle", ""])
    assert short.mask.sum(1).tolist() == [3, 1]


def test_reading_timesteps_in_half_precision_changes_nothing(cog: Teacher) -> None:
    """999 would become 1000 in bfloat16; the network must still be told 999."""
    seen = []
    handle = cog.denoiser.network.transformer.time_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    half = cog.denoiser_of(cog.denoiser.network, torch.bfloat16)
    out = half(torch.randn(1, *LATENT), torch.tensor([999]), cog.text([PROMPT]))
    handle.remove()
    assert seen[0].item() == 999 and out.dtype == torch.float32
