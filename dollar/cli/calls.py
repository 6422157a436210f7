"""The commands called from Python: settings in a mapping instead of key=value on a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict

from dollar.cli.build.objects import instantiate
from dollar.cli.entry import check_given
from dollar.cli.origin import teacher_of
from dollar.cli.overrides import CONF, check_overrides
from dollar.cli.texts import settle_text
from dollar.cli.written import quoted

if TYPE_CHECKING:
    from dollar.models.teacher import Teacher

PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*", re.ASCII)  # text that hydra reads as it is
WORDS = ("null", "true", "false", "yes", "no", "on", "off", "inf", "nan")  # ... but these, in any case
SIZES = (
    "frames",
    "height",
    "width",
    "fps",
    "guidance_scale",
    "text_length",
)  # the sizes of clips, which a folder doesn't state


def composed(command: str, settings: Mapping[str, Any]) -> AbstractContextManager[DictConfig]:
    """conf/<command>.yaml with these settings, as the command line would compose it; ValueError for a mistake."""
    return composed_of(command, overrides(settings))


@contextmanager
def composed_of(command: str, words: Sequence[str]) -> Iterator[DictConfig]:
    """conf/<command>.yaml with these arguments in hydra's grammar, as `composed`."""
    text = check_overrides(command, words)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(command, overrides=list(words), return_hydra_config=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    try:
        check_given(config)
        settle_text(command, config, text)
        with unwrapped():
            yield config
    finally:
        HydraConfig.instance().cfg = before


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what a constructor raised itself, where hydra wraps it."""
    try:
        yield
    except InstantiationException as error:
        if not isinstance(error.__cause__, (ValueError, OSError)):
            raise
        raise error.__cause__ from None


def overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings as key=value; a mapping's keys are dotted below its own."""
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={_written(value)}")
    return found


def _written(value: Any) -> str:
    """A value in hydra's grammar: numbers, true, false, null, lists, and text, quoted where it needs it.

    Numbers and arrays of numpy and torch, which a notebook's loops give, are python's.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_written, value))}]"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    return quoted(text)


def run(command: str, settings: Mapping[str, Any]) -> Any:
    """Run a command of launch/ with these settings; its mistakes are raised as ValueError."""
    main: Callable[[DictConfig], Any] = import_module(f"dollar.cli.commands.{command}").main
    with composed(command, settings) as config:
        return main(config)


def train(settings: Mapping[str, Any]) -> Path:
    """Run launch/train.py with these settings; returns the student's folder.

    InterruptedError where a signal stopped it.
    """
    from dollar.cli.commands.train import main
    from dollar.parallel.signals import STOPPED

    with composed("train", settings) as config:
        folder = Path(config.runs) / str(config.run)
        try:
            main(config)
        except SystemExit as end:
            if end.code != STOPPED:
                raise
            raise InterruptedError(f"{folder} was stopped and saved; the same call goes on from there") from None
    return folder / "student"


def teacher(name_or_folder: str | Path, device: str, dtype: Any, settings: Mapping[str, Any]) -> Teacher:
    """A teacher by its name in conf/teacher, or by its folder; ValueError for neither."""
    names = sorted(path.stem for path in (CONF / "teacher").glob("*.yaml"))
    if str(name_or_folder) not in names:
        return _teacher_at(Path(name_or_folder), names, device, dtype, settings)
    with composed("sample", {"teacher": str(name_or_folder), **{f"teacher.{k}": v for k, v in settings.items()}}) as c:
        return instantiate(c.teacher, device=device, compute_dtype=dtype)


def _teacher_at(folder: Path, names: list[str], device: str, dtype: Any, settings: Mapping[str, Any]) -> Teacher:
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"there is no teacher {str(folder)!r}; name one of {', '.join(names)}, or a diffusers folder, which has a "
            "model_index.json"
        )
    if missing := [key for key in SIZES if key not in settings]:
        raise ValueError(
            f"{folder} doesn't say its {', '.join(missing)}; give {', '.join(f'{key}=...' for key in missing)}, or "
            f"name the teacher that it is like and give it as folder={str(folder)!r}"
        )
    kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    configurations: list[Any] = [OmegaConf.load(CONF / "teacher" / f"{name}.yaml") for name in names]
    targets = sorted({str(configuration["_target_"]) for configuration in configurations})
    for target in targets:
        module = import_module(target.rpartition(".")[0])
        if kind in {getattr(value, "pipeline_class", None) for value in vars(module).values()}:
            load = getattr(module, target.rpartition(".")[2])
            return load(**{"name": folder.name, "folder": folder, **settings}, device=device, compute_dtype=dtype)
    raise ValueError(f"{folder} holds a {kind}, for which there is no adapter; there are {', '.join(targets)}")


def teacher_of_student(card: Mapping[str, Any], folder: Path, device: str) -> Teacher:
    """The teacher that the card of a student in a folder names, without its transformer's weights."""
    if "teacher" not in card:
        raise ValueError("the student doesn't say which teacher made it; load that one and give it as teacher=")
    # Its times stay those that it was trained for.
    shift = {} if card.get("shift") is None else {"shift": card["shift"]}
    settings = OmegaConf.create({**teacher_of(card, folder), **shift, "text": "online"})
    with unwrapped():
        return instantiate(settings, device=device, weights=False)
