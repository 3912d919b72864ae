"""Imports of `train` run downwards, as its docstring says: scripts, then rooms, then `r2id`; never in a circle."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

from imports import imports_of, modules_of

import train

ROOT = Path(train.__file__).parent
ROOMS = re.findall(r"^    (\w+)  ", train.__doc__, flags=re.MULTILINE)  # from the top down


MODULES = {name: path for name, path in modules_of(train).items() if path.name != "__init__.py"}


def room_of(module: str) -> str | None:
    """None for a script."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else None


def test_there_are_the_rooms_that_the_docstring_names():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ROOMS) and len(ROOMS) == 5


def test_no_import_runs_upwards_and_nothing_imports_a_script():
    upwards = []
    for module, path in MODULES.items():
        allowed = ROOMS if room_of(module) is None else ROOMS[ROOMS.index(room_of(module)) :]
        for other in imports_of(path, set(MODULES)):
            if room_of(other) not in allowed:
                upwards.append(f"{module} imports {other}")
    assert not upwards


def test_no_imports_run_in_a_circle():
    graph = {module: imports_of(path, set(MODULES)) for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names one
    assert sum(map(len, graph.values())) > 100


def test_the_product_does_not_import_its_training():
    package = ROOT.parent / "r2id"
    inside = {path: imports_of(path, set(MODULES) | {"train"}) for path in package.rglob("*.py")}
    assert len(inside) > 20 and not any(inside.values())
