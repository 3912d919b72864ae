"""Imports of `r2id` run downwards in the table of its docstring, and never in a circle."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter

from imports import imports_of, modules_of

import r2id

TABLE = r2id.__doc__.partition("further down:")[2]
ROWS = [row.split(", ") for row in re.findall(r"^    (\w[\w, ]*?)  ", TABLE, flags=re.MULTILINE)]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
MODULES = modules_of(r2id)


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_the_table_names_every_file_and_folder_once():
    assert sorted(RANK) == sorted({part_of(module) for module in MODULES})
    assert sum(map(len, ROWS)) == len(RANK) > 20


def test_no_import_runs_upwards():
    upwards = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in imports_of(path, set(MODULES))
        if RANK[part_of(other)] < RANK[part_of(module)]
    ]
    assert not upwards


def test_no_imports_run_in_a_circle():
    graph = {module: imports_of(path, set(MODULES)) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names one
    assert sum(map(len, graph.values())) > 100
