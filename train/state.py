"""Training state on disk: written to a temporary folder, flushed, renamed, and only then are old ones pruned."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from r2id.checkpoint import load_tensors, save_tensors

KEEP = 2  # newest states that stay


@dataclass(frozen=True)
class State:
    """One moment of a run: every tensor of it by name, and `about` (step, recipe, data), plain JSON."""

    tensors: dict[str, Tensor]
    about: dict

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name.`, without that prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


def save_state(folder: Path, state: State) -> Path:
    """Writes `folder/state-STEP`; a crash at any moment leaves the older states whole."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"state-{state.about['step']:08d}"
    temporary = folder / f"tmp-{final.name}"
    for stale in [*folder.glob("tmp-*"), final]:
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    save_tensors(state.tensors, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps(state.about, indent=1))
    for path in (*temporary.iterdir(), temporary):
        flush(path)
    temporary.rename(final)
    flush(folder)
    for old in [path for path in states(folder) if path <= final][:-KEEP]:  # later ones were damaged
        shutil.rmtree(old)
    return final


def load_state(folder: Path) -> State | None:
    """The newest whole state of a run, or None; a damaged one is passed over with a warning."""
    for path in reversed(states(folder)):
        try:
            return State(load_tensors(path / "state.safetensors"), json.loads((path / "state.json").read_text()))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path}: damaged state passed over ({error})", stacklevel=2)
    return None


def states(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("state-*"))


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
