"""Optional packages, some of which carry weights: found, or missed in one line that says what to install."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

INSTALL = "pip install --no-deps -r train/requirements-judges.txt"


def module(name: str) -> ModuleType:
    """An optional package, imported. Raises ValueError where it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old packages, new Python
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name}: not installed or not whole ({error}); {INSTALL}") from error


def file_of(package: str, path: str) -> str:
    """A file inside a package that need not be importable: some import what no longer exists. Raises ValueError where
    there is none."""
    found = importlib.util.find_spec(package)
    file = Path(next(iter(found.submodule_search_locations or [""])), path) if found else None
    if not file or not file.is_file():
        raise ValueError(f"{package}: not installed, {path} is needed; {INSTALL}")
    return str(file)
