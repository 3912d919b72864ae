"""`config.json` beside `*.safetensors`.

Files may come from strangers: what they hold is loaded or refused in one line, never run, and takes no more memory than
its size.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAX_FILE_BYTES = 2**32  # a billion parameters in float32
MAX_HEADER_BYTES = 2**22
MAX_CONFIG_BYTES = 2**20
MAX_AXES = 8

PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
DTYPES = {  # safetensors' names → torch's
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
# Biases, norms, embeddings, first and last layers: rounding them would change images most and save least.
SMALL = 2**13
FLOATS = ("float16", "bfloat16", "float32", "float64")  # that become one another
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
Kind = tuple[str, tuple[int, ...]]  # dtype and shape of a tensor
REMEDY = "only safetensors files are read"
FACTORIES = (torch.empty, torch.ones, torch.randn, torch.zeros)


class CheckpointError(ValueError):
    """A file or configuration that cannot be used: one line of at most 500 characters, whatever the file holds."""

    def __init__(self, message: str):
        line = " ".join(message.split())
        super().__init__(line if len(line) <= 500 else line[:499] + "…")


def load_config(folder: str | Path) -> dict[str, Any]:
    """The object in `folder/config.json`. Raises CheckpointError."""
    path = Path(folder) / "config.json"
    data = _read(path, MAX_CONFIG_BYTES)
    try:
        config = _json(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not usable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(config).__name__}")
    return config


def save_config(folder: str | Path, config: dict[str, Any]) -> None:
    """Writes `folder/config.json`, replacing it in one step. Raises ValueError for NaN and infinity."""
    _write(Path(folder) / "config.json", (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises CheckpointError."""
    path = Path(path)
    _refuse_suffix(path)
    # Read, never mapped: a mapped file that is truncated meanwhile kills the process with SIGBUS.
    return _parse(_read(path, MAX_FILE_BYTES), path)


def save_tensors(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Write a safetensors file, replacing it in one step. Raises CheckpointError for what could not be loaded again."""
    path = Path(path)
    _refuse_suffix(path)
    # Copies, because tied tensors share memory and safetensors refuses that.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(copies)
    _parse(data, path)
    _write(path, data)


def sketch(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` builds, on the meta device: names, shapes and dtypes, without memory for parameters of any
    size that torch's FACTORIES make."""
    with _Weightless():
        return make()


def load_module(make: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """The module that `make` builds, with the tensors of a file or of its shards: see `load_into`. Raises
    CheckpointError unless they fit it, and then neither has taken any memory, whatever sizes `make` asks for."""
    path, kinds = Path(path), {}
    for file in _files_of(path):
        header = _read(file, MAX_FILE_BYTES, first=8 + MAX_HEADER_BYTES)
        _merge(kinds, _check_header(header, file, file.stat().st_size), path)
    _check_fit(sketch(make), _unwrapped(kinds, path), path)
    module = make()
    load_into(module, path)
    return module


def load_into(module: nn.Module, path: str | Path) -> None:
    """Loads a file, or the shards of `path.index.json` beside it, into a module in place, wherever the module is.

    The tensors may be float16, bfloat16, float32 or float64 and become the module's dtype; prefixes of torch.compile
    and of data-parallel wrappers are stripped. Raises CheckpointError unless names and shapes agree and dtypes can be
    converted; the module is then unchanged."""
    path, tensors = Path(path), {}
    for file in _files_of(path):
        _merge(tensors, load_tensors(file), path)
    tensors, own = _unwrapped(tensors, path), module.state_dict()
    _check_fit(module, {name: _kind(tensor) for name, tensor in tensors.items()}, path)
    tensors = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{path}: too large for {own[bad[0]].dtype} in {names_of(bad)}")
    module.load_state_dict(tensors)


def save_module(module: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a module's parameters and buffers, those of floating point with more than SMALL values as `dtype` (None:
    as they are). Raises CheckpointError for what could not be loaded again."""
    tensors = module.state_dict()
    if dtype is not None:
        large = (name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > SMALL)
        tensors = tensors | {name: tensors[name].to(dtype) for name in large}
    save_tensors(tensors, path)


def _read(path: Path, limit: int, first: int | None = None) -> bytes:
    """A regular file of 1 to `limit` bytes, or its first ones."""
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CheckpointError(f"{path}: {size:,} bytes, at most {limit:,} are read")
            data = file.read(size if first is None else min(first, size))  # as much is allocated as is asked for
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise CheckpointError(f"{path}: empty, fetch it again")
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git-LFS pointer, not the file itself: run `git lfs pull`")
    return data


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _refuse_suffix(path: Path) -> None:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(f"{path}: {path.suffix} files are pickles, which can run code: {REMEDY}")


def _parse(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors from the bytes of a safetensors file; `path` only heads the errors."""
    _check_header(data, path, len(data))
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from error
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{path}: NaN or infinity in {names_of(bad)}")
    return tensors


def _check_header(data: bytes, path: Path, size: int) -> dict[str, Kind]:
    """Name → dtype and shape of every tensor of a file of `size` bytes, from its first ones.

    Refuses what is no safetensors file, and what the format's own reader accepts but should not."""
    if data.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path}: a zip archive, as pickles of PyTorch are: {REMEDY}")
    if data[0] == 0x80 and data[1:2] <= b"\x05" and data[8:9] != b"{":  # 0x80 may also begin a header's length.
        raise CheckpointError(f"{path}: a pickle, which can run code: {REMEDY}")
    truncated = f"{path}: truncated at {size:,} bytes, fetch it again"
    if size < 9:
        raise CheckpointError(truncated)
    if data[8:9] != b"{":
        raise CheckpointError(f"{path}: not a safetensors file: {REMEDY}")
    start = 8 + int.from_bytes(data[:8], "little")
    if start - 8 > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: a header of {start - 8:,} bytes, at most {MAX_HEADER_BYTES:,} are read")
    if start > size:
        raise CheckpointError(truncated)
    try:
        entries = {name: entry for name, entry in _json(data[8:start]).items() if name != "__metadata__"}
        end = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        # With no axis empty, the format's own check of shape against bytes bounds every axis by the file's size.
        odd = {
            name: f"{entry['dtype']} {entry['shape']}"
            for name, entry in entries.items()
            if entry["dtype"] not in DTYPES or len(entry["shape"]) > MAX_AXES or min(entry["shape"], default=1) < 1
        }
        kinds = {name: (DTYPES.get(entry["dtype"]), tuple(entry["shape"])) for name, entry in entries.items()}
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{path}: malformed header: {error}") from error
    if odd:
        raise CheckpointError(f"{path}: unusable dtype or shape of {names_of(odd)}, the first {odd[min(odd)]}")
    if end > size:
        raise CheckpointError(truncated)
    return kinds


class _Weightless(TorchFunctionMode):
    """See `sketch`. Unlike under `torch.device("meta")`, small buffers are computed: torch would import 800 modules."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in FACTORIES:
            return torch.empty(*args, **kwargs | {"device": "meta"})
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the shards that `path.index.json` names. Raises CheckpointError for a bad index."""
    index = path.with_name(f"{path.name}.index.json")
    _refuse_suffix(path)
    if path.exists() or not index.exists():
        return [path]
    try:
        names = sorted(set(_json(_read(index, MAX_HEADER_BYTES))["weight_map"].values()))
        if not names or not all(SHARD.fullmatch(name) for name in names):
            raise ValueError("shards must be names of .safetensors files beside it")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not usable as an index of shards: {error}") from error
    shards = [path.with_name(name) for name in names]
    if (total := sum(shard.stat().st_size for shard in shards if shard.exists())) > MAX_FILE_BYTES:
        raise CheckpointError(f"{index}: {total:,} bytes of shards, at most {MAX_FILE_BYTES:,} are read")
    return shards


def _merge(found: dict[str, Any], more: Mapping[str, Any], path: Path) -> None:
    if twice := found.keys() & more.keys():
        raise CheckpointError(f"{path}: in two shards {names_of(twice)}")
    found.update(more)


def _unwrapped(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Names without the prefixes that torch.compile and data-parallel wrappers add."""
    plain = {name: name.replace("_orig_mod.", "") for name in found}
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {name: short.removeprefix("module.") for name, short in plain.items()}
    if len(set(plain.values())) < len(plain):
        twice = [name for name, count in Counter(plain.values()).items() if count > 1]
        raise CheckpointError(f"{path}: with and without a wrapper's prefix {names_of(twice)}")
    return {plain[name]: value for name, value in found.items()}


def _check_fit(module: nn.Module, kinds: Mapping[str, Kind], path: str | Path) -> None:
    """Raises CheckpointError unless the module has tensors of these names and shapes, and their dtypes become its."""
    own, faults = {name: _kind(tensor) for name, tensor in module.state_dict().items()}, []
    if missing := own.keys() - kinds.keys():
        faults.append(f"missing {names_of(missing)}")
    if extra := kinds.keys() - own.keys():
        faults.append(f"not in the model {names_of(extra)}")
    shared = own.keys() & kinds.keys()
    if odd := [name for name in shared if own[name][1] != kinds[name][1]]:
        name = min(odd)
        faults.append(f"misshapen {names_of(odd)} ({name!r} is {kinds[name][1]}, the model's {own[name][1]})")
    if odd := [name for name in shared if not _becomes(kinds[name][0], own[name][0])]:
        name = min(odd)
        faults.append(f"of a dtype that cannot be converted {names_of(odd)} ({kinds[name][0]} to {own[name][0]})")
    if faults:
        raise CheckpointError(f"{path}: does not fit {type(module).__name__}: {'; '.join(faults)}")


def _becomes(dtype: str, other: str) -> bool:
    return dtype == other or {dtype, other} <= set(FLOATS)


def _json(data: bytes) -> Any:
    """JSON without repeated keys, NaN or infinity. Raises ValueError or RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise ValueError(f"repeated keys {names_of(repeated)}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(data, object_pairs_hook=unique, parse_constant=refuse)


def _kind(tensor: Tensor) -> Kind:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def names_of(names: Iterable[str]) -> str:
    """The first few names, quoted."""
    ordered = sorted(names)
    return ", ".join(repr(name) for name in ordered[:4]) + (f" and {len(ordered) - 4} more" if ordered[4:] else "")
