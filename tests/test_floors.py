"""Who may import whom: a file stands on lower floors, and on its own floor only where the table says so."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A file imports from lower floors, and freely within its own room.
FLOORS = {
    "dollar.diffusion": 0,
    "dollar.media": 0,
    "dollar.log": 0,
    "dollar.storage": 0,
    "dollar.lazy": 0,
    "dollar.contents": 0,
    "dollar.losses": 1,
    "dollar.models": 2,
    "dollar.data": 3,
    "dollar.rewards": 4,
    "dollar.parallel": 5,
    "dollar.sampling": 6,
    "dollar.surrogate": 7,
    "dollar.evaluation": 8,
    "dollar.training": 9,
    "dollar.methods": 10,
    "dollar.export": 11,
    "dollar.pretraining": 11,
    "dollar.planning": 11,
    "dollar.benchmarks": 11,
    "dollar.studies": 11,
    "dollar.vip": 12,
    "dollar.cli": 13,
    "dollar.library": 14,
    "launch": 15,
}
# Neighbours on one floor.
NEIGHBOURS = {
    ("dollar.log", "dollar.media"),
}
# Libraries that only some rooms may use.
LIBRARIES = {
    "hydra": ("dollar.cli",),
    "omegaconf": ("dollar.cli",),
    "torch.distributed": ("dollar.parallel",),
    "diffusers": ("dollar.models", "dollar.pretraining", "dollar.cli.build.teacher"),
    "transformers": ("dollar.models", "dollar.rewards", "dollar.pretraining", "dollar.cli.build.teacher"),
    "tensorboard": ("dollar.training.trackers",),
    "tqdm": ("dollar.log",),
    "filelock": ("dollar.parallel",),
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
        if (
            FLOORS[room] <= 1
            and module not in ("dollar.media", "dollar.log", "dollar.storage")
            and not inside(name, ("torch", "einops", "dollar"))
        ):
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
        ("dollar.training.loop", "import hydra"),
        ("dollar.training.loop", "import torch.distributed as dist"),
        ("dollar.training.loop", "def f():\n    from torch import distributed"),
        ("dollar.losses.vsd", "from dollar.parallel.world import World"),
        ("dollar.sampling.samplers", "from diffusers import LCMScheduler"),
        ("dollar.sampling.samplers", "from dollar.training.loop import Loop"),
    ],
)
def test_the_walker_sees_a_forbidden_import(module: str, code: str) -> None:
    assert faults(module, imports(ast.parse(code)))


def test_launch_files_do_not_leak_the_configuration() -> None:
    """No signature below launch/ takes a config object; a dict of plain values may be carried along."""
    for module, path in FILES.items():
        if module.startswith("dollar") and not inside(module, ("dollar.cli",)):
            assert "DictConfig" not in path.read_text(encoding="utf-8"), module


def test_only_commands_print() -> None:
    """Below the command line, what there is to say goes through `dollar.log`'s logger."""
    for module, path in FILES.items():
        if inside(module, ("dollar",)) and not inside(module, ("dollar.cli", "dollar.log")):
            names = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
            assert "print" not in names, f"{module} prints; log it by dollar.log.logger"


def imports_at_once(body: list[ast.stmt]) -> set[str]:
    """The modules that are imported when a module is, not those of its functions or of its types."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= imports(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            found |= imports_at_once(node.body)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path that leads back to where it begins, or []."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str]:
        for name in sorted(graph[path[-1]]):
            if name in path:
                return [*path[path.index(name) :], name]
            if name not in done and (found := walk([*path, name])):
                return found
        done.add(path[-1])
        return []

    return next((found for name in graph if name not in done and (found := walk([name]))), [])


def test_there_is_no_circle_of_imports() -> None:
    graph = {}
    for module, path in FILES.items():
        names = imports_at_once(ast.parse(path.read_text(encoding="utf-8")).body)
        graph[module] = {n for n in names if n in FILES and n != module and not module.startswith(f"{n}.")}
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
