"""Who may import whom: a file stands on lower floors, and on its own floor only where the table says so."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "dollar.diffusion": 0,
    "dollar.media": 0,
    "dollar.pace": 0,
    "dollar.losses": 1,
    "dollar.objective": 1,
    "dollar.models": 2,
    "dollar.rewards": 2,
    "dollar.data": 2,
    "dollar.distill": 3,
    "dollar.latent_reward": 3,
    "dollar.pixel_reward": 3,
    "dollar.parallel": 4,
    "dollar.trainer": 5,
    "dollar.guard": 5,
    "dollar.log": 5,
    "dollar.sampling": 5,
    "dollar.plan": 5,
    "dollar.student": 5,
    "dollar.export": 5,
    "dollar.pretraining": 5,
    "dollar.evaluation": 5,
    "launch": 6,
}
# Neighbours on one floor; a file may also import from its own room.
NEIGHBOURS = {
    ("dollar.objective", "dollar.losses"),
    ("dollar.rewards", "dollar.data"),
    ("dollar.rewards", "dollar.models"),
    ("dollar.distill", "dollar.latent_reward"),
    ("dollar.distill", "dollar.pixel_reward"),
    ("dollar.latent_reward", "dollar.pixel_reward"),
    ("dollar.trainer", "dollar.log"),
    ("dollar.trainer", "dollar.guard"),
    ("dollar.sampling", "dollar.log"),
    ("dollar.student", "dollar.sampling"),
    ("dollar.export", "dollar.sampling"),
    ("dollar.pretraining", "dollar.log"),
    ("dollar.evaluation", "dollar.log"),
    ("dollar.evaluation", "dollar.sampling"),
}
# Floors 2 to 6 are listed where they may use a library that others may not.
LIBRARIES = {
    "hydra": ("launch",),
    "omegaconf": ("launch",),
    "torch.distributed": ("dollar.parallel",),
    "diffusers": ("dollar.models", "dollar.pretraining", "launch.build"),
    "transformers": ("dollar.models", "dollar.rewards", "dollar.pretraining", "launch.build"),
    "tensorboard": ("dollar.log",),
    "tqdm": ("dollar.log",),
    "av": ("dollar.data", "dollar.media"),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(p): p for room in ("dollar", "launch") for p in sorted((ROOT / room).rglob("*.py"))}


def room_of(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    found = [room for room in FLOORS if module == room or module.startswith(room + ".")]
    assert len(found) == 1, f"{module} has no floor of its own; give it one in FLOORS"
    return found[0]


def imports(tree: ast.AST) -> set[str]:
    """Every module that the code imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def faults(module: str, names: set[str]) -> list[str]:
    """What a module imports that its floor forbids."""
    room, found = room_of(module), []
    for name in sorted(names):
        if name in FILES and inside(name, ("dollar",)) and name != "dollar":
            other = room_of(name)
            if FLOORS[other] >= FLOORS[room] and other != room and (room, other) not in NEIGHBOURS:
                found.append(f"{module} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]})")
        elif name.split(".")[0] == "launch":
            found.append(f"{module} imports {name}")
        for library, places in LIBRARIES.items():
            if inside(name, (library,)) and not inside(module, places):
                found.append(f"{module} imports {name}, which belongs in {', '.join(places)}")
        if FLOORS[room] <= 1 and module != "dollar.media" and not inside(name, ("torch", "einops", "dollar")):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names:
                found.append(f"{module} is mathematics and imports {name}")
    return found


@pytest.mark.parametrize("module", [m for m in FILES if m not in ("dollar", "launch")])
def test_a_file_stands_on_lower_floors(module: str) -> None:
    assert faults(module, imports(ast.parse(FILES[module].read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("dollar.diffusion.denoise", "from dollar.losses.vsd import vsd"),
        ("dollar.losses.vsd", "import numpy"),
        ("dollar.models.codec", "from dollar.data import shapes"),
        ("dollar.trainer", "import hydra"),
        ("dollar.trainer", "import torch.distributed as dist"),
        ("dollar.trainer", "def f():\n    from torch import distributed"),
        ("dollar.distill", "from dollar.parallel.world import World"),
        ("dollar.sampling", "from diffusers import LCMScheduler"),
        ("dollar.sampling", "from dollar.trainer import Trainer"),
    ],
)
def test_the_walker_sees_a_forbidden_import(module: str, code: str) -> None:
    assert faults(module, imports(ast.parse(code)))


def test_launch_files_do_not_leak_the_configuration() -> None:
    """No signature below launch/ takes a config object; a dict of plain values may be carried along."""
    for module, path in FILES.items():
        if module.startswith("dollar"):
            assert "DictConfig" not in path.read_text(encoding="utf-8"), module
