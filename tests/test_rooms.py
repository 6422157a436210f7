"""What the rooms export: every name is there, and asking for one file loads no other."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

ROOMS = ("data", "data.encoding", "evaluation", "evaluation.measures", "evaluation.report", "export", "sampling")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_what_it_exports(room: str) -> None:
    module = import_module(f"dollar.{room}")
    assert module.__doc__ and sorted(module.__all__) == sorted(set(module.__all__))
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        value = getattr(module, name)
        assert getattr(value, "__module__", module.__name__).startswith("dollar."), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_a_light_file_stays_light() -> None:
    """Mistakes on a command line are answered before torch is read."""
    code = "import sys, dollar.data.listed, dollar.export.source, dollar.evaluation.report.table; "
    code += "assert not {'torch', 'diffusers', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
