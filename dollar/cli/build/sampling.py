"""From conf/sample.yaml to prompts, what the clips are made with, and a sampler."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, ListConfig, open_dict

from dollar.cli.build.configs import Configs, check_grid, check_lengths, configs_of_teacher
from dollar.contents import contents_of, short_hash

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher
    from dollar.parallel.world import World
    from dollar.sampling.samplers import Sampler

# Everyday keys of a clip's size, and the letters that they have in file names.
SIZES = {"frames": "f", "height": "h", "width": "w", "fps": "fps"}
TEACHER_STEPS = 50
MOST_FPS, LARGEST_SEED = 1000, 2**63 - 1
# A student's card says by these how it is sampled.
CARD = ("timesteps", "between", "parameterization", "guided")
# Keys of conf/teacher that say where a teacher is and what it is, which its files tell, or that a row has by itself.
KNOWN_OTHERWISE = ("name", "folder", "parts", "states", "lora", "guidance_scale", "tiling", *SIZES)


class Sampling(NamedTuple):
    """The teacher, and what samples."""

    teacher: Teacher
    sampler: Sampler


def prompts_of(config: DictConfig) -> list[str]:
    """The prompts that were given, by key or by file; ValueError when there are none."""
    from dollar.data.prompts import read_prompts

    if config.prompts is not None:
        if config.prompt is not None:
            raise ValueError("prompt and prompts are both given; use prompts=FILE or prompt=TEXT")
        return read_prompts(config.prompts)
    given = list(config.prompt) if isinstance(config.prompt, ListConfig) else [config.prompt]
    prompts = ["" if p is None else str(p) for p in given]
    if not any(p.strip() for p in prompts):
        raise ValueError(
            'there is no prompt; give prompt="a small red circle moving left on a black background" or prompts=FILE'
        )
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ValueError(f"prompt {number} of {len(prompts)} is empty; write one, or leave it out")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"prompt {number} of {len(prompts)}, {prompt!r}, is no UTF-8 text; write it into a UTF-8 file and give "
                "prompts=FILE"
            ) from None
    return prompts


def check_keys(config: DictConfig) -> None:
    """Raise ValueError for what could only fail after the networks are read."""
    for key in ("clips", "batch"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    for key in ("steps", *SIZES):
        if config[key] is not None and config[key] <= 0:
            raise ValueError(f"{key} is {config[key]}; it must be positive, or null")
    if config.fps is not None and not (config.fps <= MOST_FPS and Fraction(config.fps).limit_denominator(1001)):
        raise ValueError(f"fps is {config.fps}; a film has from 0.001 to {MOST_FPS} frames a second")
    if not 0 <= config.seed <= LARGEST_SEED - config.clips + 1:
        raise ValueError(f"seed is {config.seed}; seeds are from 0 to {LARGEST_SEED}, and each clip takes the next one")
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
    if config.checkpoint is not None:
        from dollar.export.student import FORCED, check_trained, read_card

        if config.steps is not None and not config.force:
            check_trained(config.checkpoint, read_card(config.checkpoint)["steps"], config.steps, FORCED)


def settle(config: DictConfig) -> None:
    """Put the everyday keys where the teacher and the processes read them."""
    given = {key: config[key] for key in SIZES if config[key] is not None}
    # As a pipeline decodes: what a clip is to the last bit depends on what is decoded with it.
    given |= {"decode_chunk": 1, "tiling": config.teacher.get("tiling", False) or config.tiling}
    if config.dtype is not None:
        config.parallel.dtype = config.parallel.teacher_dtype = given["frozen_dtype"] = config.dtype
    with open_dict(config.teacher):  # an older student's card may lack some
        config.teacher.update(given)


def steps_of(config: DictConfig) -> int:
    """The step count of the clips."""
    if config.steps is not None:
        return int(config.steps)
    from dollar.export.student import read_card

    return TEACHER_STEPS if config.checkpoint is None else max(read_card(config.checkpoint)["steps"])


def check_before(config: DictConfig, prompts: list[str]) -> Configs:
    """The teacher's configs; ValueError for all that they, or a student's files, don't suit. No weight is read."""
    from dollar.export.student import student_weights
    from dollar.sampling.samplers import check_scale

    configs, steps = configs_of_teacher(config), steps_of(config)
    if config.checkpoint is not None:
        student_weights(config.checkpoint)
    else:
        check_scale(configs.family, configs.settings["name"], config.guidance_scale)
    check_grid(configs, steps, "steps")
    if not config.force:
        check_lengths(configs, prompts)
    return configs


def how_made(config: DictConfig, configs: Configs) -> dict[str, Any]:
    """What the manifest says of every clip, beside its prompt and seed: by this a clip is kept or made anew."""
    from dollar.export.student import read_card

    settings, student = configs.settings, config.checkpoint
    card = {} if student is None else {key: value for key, value in read_card(student).items() if key in CARD}
    guided = student is None or card.get("guided", False) or configs.family.embeds_guidance
    scale = settings["guidance_scale"] if config.guidance_scale is None else config.guidance_scale
    rest = {key: value for key, value in settings.items() if key not in KNOWN_OTHERWISE}
    rest |= {"card": card, "dtypes": [config.parallel.dtype, config.parallel.teacher_dtype]}
    return {
        "steps": steps_of(config),
        "by": "teacher" if student is None else "student",
        **{key: settings[key] for key in SIZES},
        "checkpoint": None if student is None else run_of(student),
        "dtype": config.parallel.teacher_dtype if student is None else config.parallel.dtype,
        "guidance_scale": float(scale) if guided else 1.0,
        "tiling": bool(settings.get("tiling", False)),
        "weights": short_hash([contents_of(place).digest for place in places_behind(config, configs)]),
        "settings": short_hash(rest),
    }


def places_behind(config: DictConfig, configs: Configs) -> list[Path]:
    """What the clips depend on: the teacher's components, its LoRA, and the student's transformer."""
    from dollar.models.pipeline import find

    pipeline, lora = configs.pipeline, configs.settings.get("lora")
    names = [n for n in configs.family.classes if n != "transformer" or config.checkpoint is None]
    places = [pipeline.place(name) for name in names]
    if config.checkpoint is not None:
        places.append(Path(config.checkpoint) / "transformer")
    elif lora is not None:
        places.append(find(lora, "LoRA (teacher.lora)", ["*.safetensors"], key="teacher.lora"))
    return [place for place in places if place.exists()]


def sampler_of(config: DictConfig, world: World) -> Sampling:
    """The teacher, and itself or the student that samples, with weights in the dtype that was given."""
    from dollar.cli.build.teacher import build_teacher, dtype_of
    from dollar.export.student import load_student
    from dollar.models.assemble import DTYPES
    from dollar.sampling.samplers import teacher_sampler

    if config.checkpoint is None:
        teacher = build_teacher(config, world)
        teacher.denoiser.network.to(dtype_of(config, "teacher_dtype", DTYPES))
        return Sampling(teacher, teacher_sampler(teacher, steps_of(config), config.guidance_scale))
    teacher = build_teacher(config, world, weights=False)  # its transformer is not needed
    student = load_student(config.checkpoint, teacher, dtype_of(config, "dtype", DTYPES))
    student.denoiser.network.to(dtype_of(config, "dtype", DTYPES))
    return Sampling(teacher, student.sampler(teacher, steps_of(config), config.force))


def run_of(checkpoint: str) -> str:
    """A student by the name of its run, or of its own folder."""
    folder = Path(checkpoint).resolve()
    return folder.parent.name if folder.name == "student" else folder.name


def called(config: DictConfig) -> str:
    """What made the clips, in their files' names: with the sizes and the dtype that were given, so that no clip takes
    another's place."""
    name = "teacher" if config.checkpoint is None else run_of(config.checkpoint)
    sizes = "x".join(f"{config[key]:g}{letter}" for key, letter in SIZES.items() if config[key] is not None)
    return "-".join(part for part in (name, sizes, config.dtype) if part)
