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

FORMAT = 2  # of names in a state
KEEP = 2  # newest states that stay
FILE_BYTES = 2**30  # of tensors in one file, unless one alone is larger; more than that is slow to copy, check and read


@dataclass(frozen=True)
class State:
    """One moment of a run: every tensor of it by name, and `metadata` (step, recipe, data), plain JSON."""

    tensors: dict[str, Tensor]
    metadata: dict

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name.`, without that prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


def save_state(folder: Path, state: State) -> Path:
    """Writes `folder/state-STEP`; a crash at any moment leaves the older states whole. Raises OSError where the disk is
    full, say, with nothing left of the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"state-{state.metadata['step']:08d}"
    temporary = folder / f"tmp-{final.name}"
    for stale in folder.glob("tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        temporary.mkdir()
        files = split(state.tensors)
        for number, tensors in enumerate(files, 1):
            save_tensors(tensors, temporary / file_name(number, len(files)))
        (temporary / "state.json").write_text(
            json.dumps({"format": FORMAT, **state.metadata}, indent=1), encoding="utf-8"
        )
        for path in (*temporary.iterdir(), temporary):
            flush(path)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)  # damaged, or the same
    temporary.rename(final)
    flush(folder)
    for old in [path for path in states(folder) if path <= final][:-KEEP]:  # later ones were damaged
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_state(folder: Path) -> State | None:
    """The newest whole state of a run, or None; a damaged one is passed over with a warning. Raises ValueError for a
    state of another format."""
    for path in reversed(states(folder)):
        try:
            state = read_state(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"{path}: damaged state passed over ({error})", stacklevel=2)
            continue
        if (found := state.metadata.pop("format", 1)) != FORMAT:
            remedy = "start anew with another --out and --from a folder of exported weights"
            raise ValueError(f"{path}: a state of format {found}, this version resumes {FORMAT}; {remedy}")
        return state
    return None


def read_state(path: Path) -> State:
    files = sorted(path.glob("state*.safetensors"))
    count = int(files[0].stem.rpartition("-of-")[2]) if len(files) > 1 else 1
    tensors = {}
    for number in range(1, count + 1):
        tensors |= load_tensors(path / file_name(number, count))
    return State(tensors, json.loads((path / "state.json").read_text(encoding="utf-8")))


def split(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in their order, as few files' worth as hold FILE_BYTES each."""
    files, size = [{}], 0
    for name, tensor in tensors.items():
        if files[-1] and size + tensor.nbytes > FILE_BYTES:
            files.append({})
            size = 0
        files[-1][name] = tensor
        size += tensor.nbytes
    return files


def file_name(number: int, count: int) -> str:
    return "state.safetensors" if count == 1 else f"state-{number:05d}-of-{count:05d}.safetensors"


def states(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("state-*"))


def flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # which Windows cannot flush
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
