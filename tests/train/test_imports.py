"""Imports of `train` run downwards, as its docstring says: scripts, then rooms, then `r2id`; never in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import train

ROOT = Path(train.__file__).parent
ROOMS = re.findall(r"^    (\w+)  ", train.__doc__, flags=re.MULTILINE)  # from the top down


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"}


def imports_of(path: Path, names: set[str]) -> set[str]:
    """The modules among `names` that a file imports, wherever in the file, but for those that only a checker sees."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names


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
