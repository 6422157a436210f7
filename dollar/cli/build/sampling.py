"""From conf/sample.yaml to prompts and a sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, ListConfig, open_dict

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.parallel.world import World
    from dollar.sampling.samplers import Sampler

SIZES = ("frames", "height", "width", "fps")


class Sampling(NamedTuple):
    """The teacher, what samples, and how file names call that."""

    teacher: Teacher
    sampler: Sampler
    by: str


def prompts_of(config: DictConfig) -> list[str]:
    """The prompts that were given, by key or by file; ValueError when there are none."""
    from dollar.data.prompts import read_prompts

    if config.prompts is not None:
        if config.prompt is not None:
            raise ValueError("prompt and prompts are both given; use prompts=FILE or prompt=TEXT")
        return read_prompts(config.prompts)
    given = list(config.prompt) if isinstance(config.prompt, ListConfig) else [config.prompt]
    prompts = [str(p) for p in given if p is not None and str(p).strip()]
    if not prompts:
        raise ValueError(
            'there is no prompt; give prompt="a small red circle moving left on a black background" or prompts=FILE'
        )
    return prompts


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail after the networks are read."""
    for key in ("clips", "batch"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    for key in ("steps", *SIZES):
        if config[key] is not None and config[key] <= 0:
            raise ValueError(f"{key} is {config[key]}; it must be positive, or null")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0")
    if config.guidance_scale is not None and config.guidance_scale < 0:
        raise ValueError(
            f"guidance_scale is {config.guidance_scale}, which leads away from the prompt; 1 is no guidance"
        )
    if not str(config.out).strip():
        raise ValueError("out is empty; name the folder that the clips are written to")
    if config.checkpoint is not None and config.guidance_scale is not None:
        raise ValueError("guidance_scale is the teacher's; a student has its guidance within. Leave one of them out")
    if config.parallel.shard_teacher:
        raise ValueError(
            "parallel.shard_teacher is true, but each process makes clips of its own with a whole network; leave it out"
        )
    if config.dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {config.dtype!r}; use float32, bfloat16 or float16, or null for parallel's")


def settle(config: DictConfig) -> None:
    """Put the everyday keys where the teacher and the processes read them."""
    given = {key: config[key] for key in SIZES if config[key] is not None}
    # As a pipeline decodes: what a clip is to the last bit depends on what is decoded with it.
    given |= {"decode_chunk": 1, "tiling": config.teacher.get("tiling", False) or config.tiling}
    if config.dtype is not None:
        config.parallel.dtype = config.parallel.teacher_dtype = given["frozen_dtype"] = config.dtype
    with open_dict(config.teacher):  # an older student's card may lack some
        config.teacher.update(given)


def sampler_of(config: DictConfig, world: World) -> Sampling:
    """The teacher, and itself or the student that samples, with weights in the dtype that was given."""
    from dollar.cli.build.teacher import build_teacher, dtype_of
    from dollar.export.student import load_student
    from dollar.models.assemble import DTYPES
    from dollar.sampling.samplers import teacher_sampler

    if config.checkpoint is None:
        teacher = build_teacher(config, world)
        teacher.denoiser.network.to(dtype_of(config, "teacher_dtype", DTYPES))
        sampler = teacher_sampler(teacher, config.steps or 50, config.guidance_scale)
        return Sampling(teacher, sampler, _called("teacher", config))
    teacher = build_teacher(config, world, weights=False)  # its transformer is not needed
    student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype", DTYPES))
    student.denoiser.network.to(dtype_of(config, "dtype", DTYPES))
    sampler = student.sampler(teacher, config.steps or max(student.few_steps), config.force)
    folder = student.folder.resolve()
    return Sampling(teacher, sampler, _called(folder.parent.name if folder.name == "student" else folder.name, config))


def _called(name: str, config: DictConfig) -> str:
    """A name with the sizes and the dtype that were given, so that no clip takes another's place."""
    sizes = "x".join(f"{config[key]:g}" for key in SIZES if config[key] is not None)
    return "-".join(part for part in (name, sizes, config.dtype) if part)
