"""A student as a plain diffusers folder, and whether diffusers makes the same clips from it."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dollar.diffusion.prediction import Prediction
from dollar.diffusion.timesteps import FewStep
from dollar.export.places import clean_configs
from dollar.models.adapter import with_factors
from dollar.models.denoiser import Denoiser
from dollar.models.pipeline import INDEX, Weights, diffusers_class
from dollar.models.pruned import Pruning
from dollar.models.teacher import Teacher
from dollar.sampling.samplers import decode, student_sampler

OURS = ("transformer", "scheduler")  # the student's; every other component is the teacher's
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")  # other forms of weights, which are left out
ALONG_VELOCITY = 1e-5  # Euler's step goes along the velocity and ours by x_0, which rounds otherwise
ELSEWHERE = 1e-2  # on a GPU sums are taken in another order; both are shares of the latents' size


# What there is to write


def served(teacher: Teacher, samplers: Mapping[int, FewStep], steps: int) -> dict[int, FewStep]:
    """Those of a student's samplers, by step count, that the scheduler saved for `steps` steps gives as well."""
    chosen = samplers[steps]
    scheduler = teacher.family.student_scheduler(chosen.configured, chosen.between)
    counts = [count for count in sorted(samplers, reverse=True) if steps % count == 0]
    return {n: samplers[n] for n in counts if n == steps or _gives(teacher, scheduler, samplers[n])}


def _gives(teacher: Teacher, scheduler: Any, sampler: FewStep) -> bool:
    own = teacher.family.student_scheduler(sampler.configured, sampler.between)
    if _settings(own) == _settings(scheduler):
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a division by zero, where it can't give a single step
            scheduler.set_timesteps(sampler.steps)
    except ValueError:  # it has fewer
        return False
    given = scheduler.sigmas[:-1] if hasattr(scheduler, "sigmas") else scheduler.timesteps
    return given.tolist() == sampler.times.tolist()


def _settings(scheduler: Any) -> dict[str, Any]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def components(teacher: Teacher) -> list[str]:
    """The components of the teacher's pipeline that the student shares."""
    index = teacher.pipeline.index
    return [n for n, kind in index.items() if isinstance(kind, list) and kind[0] is not None and n not in OURS]


def needed_bytes(teacher: Teacher, dtype: torch.dtype, link: bool, pruning: Pruning | None = None) -> int:
    """The bytes that `write_pipeline` takes on disk."""
    network: Any = teacher.empty_network(pruning)
    kept = stored_dtypes(network.transformer, dtype)
    own = sum(p.numel() * kept[n].itemsize for n, p in network.transformer.named_parameters())
    places = [teacher.pipeline.place(name) for name in components(teacher)]
    shared = sum(path.stat().st_size for place in places for path in files_of(place))
    return own + (0 if link else shared)


def stored_dtypes(transformer: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What each parameter is stored in: float32 for the modules that diffusers keeps in it, else `dtype`."""
    kept = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    return {n: torch.float32 if kept & set(n.split(".")) else dtype for n, _ in transformer.named_parameters()}


def files_of(place: Path) -> list[Path]:
    """The files of a component that are copied; ValueError where there is none."""
    if place.is_file():
        return [place]
    found = [p for p in sorted(place.rglob("*")) if p.is_file() and p.suffix not in PICKLED and p.name[0] != "."]
    if not found:
        raise ValueError(f"the teacher lacks {place.name}: there is nothing at {place}; copy it from where it was made")
    return found


def call_of(teacher: Teacher, steps: int, guided: bool = False) -> dict[str, Any]:
    """The exported pipeline's arguments other than the prompt; no sizes that are its own defaults.

    guided: sampled with guidance, as its teacher is.
    """
    frames, height, width = teacher.clip_shape
    sizes = {"num_frames": frames, "height": height, "width": width, "frame_rate": teacher.fps}
    sizes["max_sequence_length"] = teacher.text_length
    known = inspect.signature(diffusers_class(teacher.family.pipeline_class).__call__).parameters
    differing = {key: value for key, value in sizes.items() if key in known and known[key].default != value}
    scale = teacher.guidance_scale if guided or teacher.family.embeds_guidance else 1.0
    negative = {"negative_prompt": teacher.negative_prompt} if guided and teacher.negative_prompt else {}
    return {"num_inference_steps": steps, "guidance_scale": scale, **differing, **negative}


# Writing it


def merge_lora(
    teacher: Teacher, base: nn.Module, lora: Mapping[str, Tensor], pruning: Pruning | None = None
) -> nn.Module:
    """A network of the teacher's kind with the weights of `base` and these factors, by diffusers' names, merged.

    pruning: what of the teacher's blocks `base` has, None for all.
    """
    network = teacher.empty_network(pruning)
    network.load_state_dict(with_factors(dict(base.named_parameters()), lora), assign=True, strict=False)
    return network.eval().requires_grad_(False)


def read_network(teacher: Teacher, weights: Weights, prefix: str = "", pruning: Pruning | None = None) -> nn.Module:
    """A network of the teacher's kind with the weights that are called `prefix` + diffusers' name, float32.

    pruning: what of the teacher's blocks it has, None for all.
    """
    network = teacher.empty_network(pruning)
    read: dict[str, Tensor] = {}
    for name, empty in network.named_parameters():
        stored = prefix + name.removeprefix("transformer.")
        if stored not in weights.files:
            raise ValueError(f"the student lacks the tensor {stored}; it was not made from the teacher {teacher.name}")
        read[name] = weights.read(stored).float()
        if (found := tuple(read[name].shape)) != tuple(empty.shape):
            raise ValueError(
                f"the student's {stored} is {list(found)}, but the teacher at {teacher.folder} has "
                f"{list(empty.shape)}; give the teacher that it was trained from"
            )
    network.load_state_dict(read, strict=False, assign=True)
    return network.to(teacher.device).eval().requires_grad_(False)


def round_to(network: nn.Module, dtype: torch.dtype) -> None:
    """Give the network the values that it will have once it was stored in `dtype`; it stays in float32."""
    kept = stored_dtypes(network.transformer, dtype)  # type: ignore[arg-type]
    for name, parameter in network.transformer.named_parameters():  # type: ignore[union-attr]
        parameter.data = parameter.data.to(kept[name]).float()


def write_pipeline(
    folder: Path, teacher: Teacher, network: nn.Module, dtype: torch.dtype, max_shard_size: str, link: bool
) -> None:
    """Write all of the pipeline but its scheduler, which must be there; the network is left in `dtype`.

    link: the teacher's files become hard links. ValueError where its file system has none.
    """
    transformer: Any = network.transformer
    kept = stored_dtypes(transformer, dtype)
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(kept[name])
    transformer.save_pretrained(folder / "transformer", max_shard_size=max_shard_size)
    for name in components(teacher):
        place = teacher.pipeline.place(name)
        if place.is_file():  # as a folder, which a pipeline reads
            teacher.pipeline.read(name, teacher.family.classes[name]).save_pretrained(folder / name)
        else:
            _copy(place, folder / name, link)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    index = {key: value for key, value in teacher.pipeline.index.items() if key != "_name_or_path"}
    index |= {"scheduler": ["diffusers", scheduler["_class_name"]]}
    index |= {"_diffusers_version": scheduler["_diffusers_version"]}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    clean_configs(folder)


def _copy(place: Path, folder: Path, link: bool) -> None:
    for path in files_of(place):
        target = folder / path.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not link:
            shutil.copyfile(path, target)
            continue
        try:
            os.link(path.resolve(), target)
        except OSError as error:
            raise ValueError(f"link=true, but {path} can't be linked to ({error}); copy it with link=false") from None


# Whether diffusers makes the same clips


class Rendered(NamedTuple):
    """One clip: what the autoencoder was given [1, C, F, h, w] and the frames uint8 [1, T, C, H, W], on the CPU."""

    latents: Tensor
    video: Tensor


def settle(*modules: Any) -> None:
    """Move parameters into memory of torch's own: what is read from a file lies anywhere, and sums round by where."""
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()


@torch.no_grad()
def by_us(
    teacher: Teacher, student: Denoiser, few_step: FewStep, prompt: str, seed: int, guided: bool = False
) -> Rendered:
    """A clip by this package's sampler, with noise drawn where the pipeline draws it, on the teacher's device."""
    generator = torch.Generator(teacher.device).manual_seed(seed)
    sampler = student_sampler(teacher, student, few_step, guided=guided)
    latents = sampler.diffusion([generator], teacher.text([prompt]))
    return Rendered(teacher.codec.normalisation.denormalise(latents).cpu(), decode(teacher, latents, show=False))


def by_pipeline(pipe: Any, call: Mapping[str, Any], prompt: str, seed: int) -> Rendered:
    """The clip that a pipeline makes by itself, all of its noise from torch's global generators.

    FloatingPointError where it is not finite.
    """
    given: list[Tensor] = []
    own_decode = pipe.vae.decode

    def watched(z: Tensor, *arguments: Any, **named: Any) -> Any:
        given.append(z.float().cpu())
        return own_decode(z, *arguments, **named)

    pipe.vae.decode = watched
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            video = pipe(prompt, output_type="pt", **call).frames
    finally:
        pipe.vae.decode = own_decode
    if not (video.isfinite().all() and all(z.isfinite().all() for z in given)):
        kind = str(pipe.dtype).removeprefix("torch.")
        raise FloatingPointError(
            f"the exported pipeline's clip is not finite in {kind}; export with dtype=float32"
            + (" or bfloat16, which has its range" if kind == "float16" else "")
        )
    return Rendered(torch.cat(given), (video * 255).round().byte().cpu())


class Difference(NamedTuple):
    """Between two clips: the largest of a latent and of a pixel (of 255), and the latents' as a share of their size."""

    latent: float
    pixel: int
    share: float

    @staticmethod
    def between(ours: Rendered, theirs: Rendered) -> Difference:
        """ValueError where the clips have different sizes."""
        if ours.latents.shape != theirs.latents.shape or ours.video.shape != theirs.video.shape:
            raise ValueError(
                f"the exported pipeline makes clips of {list(theirs.video.shape)} where ours are "
                f"{list(ours.video.shape)}; the teacher's sizes are not those that its pipeline makes"
            )
        apart = ours.latents - theirs.latents
        pixels = (ours.video.int() - theirs.video.int()).abs().max()
        share = apart.square().mean().sqrt() / ours.latents.square().mean().sqrt()
        return Difference(float(apart.abs().max()), int(pixels), float(share))


def allowed(prediction: Prediction, between: str, device: torch.device) -> float:
    """The share by which the two clips may differ; 0 is equal to the bit, frames included."""
    if device.type != "cpu":
        return ELSEWHERE
    return ALONG_VELOCITY if prediction.name == "flow" and between == "ddim" else 0.0


class Expected(NamedTuple):
    """Our own clips by step count, and what is given to a pipeline that must make them from the prompt and the seed.

    calls: the pipeline's arguments for each step count; most: the share of their size by which latents may differ.
    """

    clips: Mapping[int, Rendered]
    calls: Mapping[int, Mapping[str, Any]]
    prompt: str
    seed: int
    most: float


def verify(
    folder: Path, expected: Expected, dtype: torch.dtype, device: torch.device, switches: Sequence[str] = ()
) -> Iterator[str]:
    """Load the folder as anyone does, compare its clips with ours by step count, and say in a line what was found.

    switches: methods of its autoencoder to call first. The comparison is in float32, for in half precision a pipeline
    draws other noise; a folder of half precision is then run in that, too. ValueError names a clip that differs.
    """
    clips, calls, prompt, seed, most = expected
    pipe = _load(folder, torch.float32, device, switches)
    settle(*(part for part in pipe.components.values() if isinstance(part, nn.Module)))
    for steps, ours in clips.items():
        found = Difference.between(ours, by_pipeline(pipe, calls[steps], prompt, seed))
        gap = f"latents differ by {found.latent:.2g} at most, {found.share:.2g} of their size, pixels by {found.pixel}"
        if not found.share <= most or (most == 0 and found.pixel > 0):
            wanted = "they should be equal" if most == 0 else f"{most:g} of their size is allowed"
            raise ValueError(
                f"the exported pipeline makes another clip in {steps} steps: {gap}, and {wanted}. Nothing was "
                "written; verify=false writes it all the same"
            )
        equal = found.latent == 0 and found.pixel == 0
        yield f"{steps} steps by diffusers alone: " + ("latents and frames are equal to the bit" if equal else gap)
    if dtype != torch.float32:
        del pipe
        steps = max(clips)
        by_pipeline(_load(folder, dtype, device, switches), calls[steps], prompt, seed)
        yield f"{steps} steps in {str(dtype).removeprefix('torch.')}: the clip is finite"


def _load(folder: Path, dtype: torch.dtype, device: torch.device, switches: Sequence[str]) -> Any:
    pipe = diffusers_class("DiffusionPipeline").from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for switch in switches:
        getattr(pipe.vae, switch)()
    return pipe.to(device)
