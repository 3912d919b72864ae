"""`config.json` beside `*.safetensors`, strict in both directions: what is written can be read back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from huggingface_hub.utils import filter_repo_objects
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from r2id.limits import short_repr

MAX_FILE_BYTES = 2**32  # a billion parameters in float32
MAX_HEADER_BYTES = 2**22
MAX_CONFIG_BYTES = 2**20
MAX_AXES = 8
MAX_HUB_BYTES = 2**32
HUB_TIMEOUT_SECONDS = 10.0
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "README.md", "report.json"]
HUB_ID = re.compile(r"(?!weights/)[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")

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
    """A file or configuration that cannot be used. One short line, whatever a file or the Hub put into the message."""

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
    """Write `folder/config.json`, replacing it in one step. Raises ValueError for NaN and infinity."""
    _write(Path(folder) / "config.json", (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises CheckpointError."""
    path = Path(path)
    _refuse_suffix(path)
    # Read, never mapped: a mapped file that is truncated meanwhile kills the process with SIGBUS.
    return _parse(_read(path, MAX_FILE_BYTES), path)


def save_tensors(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Write a safetensors file, replacing it in one step. Raises CheckpointError for what would not load."""
    path = Path(path)
    _refuse_suffix(path)
    # Copies, because tied tensors share memory and safetensors refuses that.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(copies)
    _parse(data, path)
    _write(path, data)


def sketch(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` builds, without memory for what torch's FACTORIES make: parameters of any size are only
    names, shapes and dtypes, on the meta device."""
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
        raise CheckpointError(f"{path}: too large for {own[bad[0]].dtype} in {_names(bad)}")
    module.load_state_dict(tensors)


def save_module(module: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a module's parameters and buffers, those of floating point with more than SMALL values as `dtype` (None:
    as they are). Raises CheckpointError for what would not load."""
    tensors = module.state_dict()
    if dtype is not None:
        large = (name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > SMALL)
        tensors = tensors | {name: tensors[name].to(dtype) for name in large}
    save_tensors(tensors, path)


def from_dict(dataclass_type: type, values: dict[str, Any], where: str | Path, *, note: str = "") -> Any:
    """A (nested) dataclass from JSON or TOML: lists become tuples, an int may stand for a float, absent keys take the
    dataclass's default. `where` heads the errors and `note` ends them. Raises CheckpointError with the path of the
    key."""
    try:
        return _convert(dataclass_type, values, "")
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}{note}") from error


def fetch(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: an existing folder, or a download of the Hub repository `owner/name`.

    Without an answer from the Hub (`HF_HUB_OFFLINE=1`, no network) an earlier download will do. Raises CheckpointError.
    """
    name = str(path_or_id)
    if name and os.path.isdir(name):
        return Path(name)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name[:100]!r}: no such folder, and not a Hub id of the form owner/name")
    wanted = {"repo_id": name, "revision": revision, "allow_patterns": HUB_FILES, "etag_timeout": HUB_TIMEOUT_SECONDS}
    try:
        files = huggingface_hub.model_info(
            name, revision=revision, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True
        ).siblings
    except Exception as error:  # The Hub's errors have no base class in common.
        try:
            return Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        except Exception:
            raise CheckpointError(f"{name}: not a local folder, nor to be had from the Hub: {error}") from error
    wanted_files = filter_repo_objects(files, allow_patterns=HUB_FILES, key=lambda file: file.rfilename)
    total = sum(math.inf if file.size is None else file.size for file in wanted_files)
    if total > MAX_HUB_BYTES:
        raise CheckpointError(f"{name}: {total:,} bytes on the Hub: at most {MAX_HUB_BYTES:,} are downloaded")
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except Exception as error:
        raise CheckpointError(f"{name}: the download from the Hub failed, try again: {error}") from error


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
        raise CheckpointError(f"{path}: NaN or infinity in {_names(bad)}")
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
        raise CheckpointError(f"{path}: unusable dtype or shape of {_names(odd)}, the first {odd[min(odd)]}")
    if end > size:
        raise CheckpointError(truncated)
    return kinds


class _Weightless(TorchFunctionMode):
    """See `sketch`. With `torch.device("meta")` the small buffers too were computed there, for which torch first loads
    800 more modules."""

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
        raise CheckpointError(f"{path}: in two shards {_names(twice)}")
    found.update(more)


def _unwrapped(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Names without the prefixes that torch.compile and data-parallel wrappers add."""
    plain = {name: name.replace("_orig_mod.", "") for name in found}
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {name: short.removeprefix("module.") for name, short in plain.items()}
    if len(set(plain.values())) < len(plain):
        twice = [name for name, count in Counter(plain.values()).items() if count > 1]
        raise CheckpointError(f"{path}: with and without a wrapper's prefix {_names(twice)}")
    return {plain[name]: value for name, value in found.items()}


def _check_fit(module: nn.Module, kinds: Mapping[str, Kind], path: str | Path) -> None:
    """Raises CheckpointError unless the module has tensors of these names and shapes, and their dtypes become its."""
    own, faults = {name: _kind(tensor) for name, tensor in module.state_dict().items()}, []
    if missing := own.keys() - kinds.keys():
        faults.append(f"missing {_names(missing)}")
    if extra := kinds.keys() - own.keys():
        faults.append(f"not in the model {_names(extra)}")
    shared = own.keys() & kinds.keys()
    if odd := [name for name in shared if own[name][1] != kinds[name][1]]:
        name = min(odd)
        faults.append(f"misshapen {_names(odd)} ({name!r} is {kinds[name][1]}, the model's {own[name][1]})")
    if odd := [name for name in shared if not _becomes(kinds[name][0], own[name][0])]:
        name = min(odd)
        faults.append(f"of a dtype that cannot be converted {_names(odd)} ({kinds[name][0]} to {own[name][0]})")
    if faults:
        raise CheckpointError(f"{path}: does not fit {type(module).__name__}: {'; '.join(faults)}")


def _becomes(dtype: str, other: str) -> bool:
    return dtype == other or {dtype, other} <= set(FLOATS)


def _json(data: bytes) -> Any:
    """JSON without repeated keys, NaN or infinity. Raises ValueError or RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise ValueError(f"repeated keys {_names(repeated)}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(data, object_pairs_hook=unique, parse_constant=refuse)


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the type hint `kind`; `key` is its dotted path, empty at the top."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        faults = []
        for part in parts:
            try:
                return _convert(part, value, key)
            except CheckpointError as error:
                faults.append(error)
        raise faults[0]
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) != len(value):
            raise _fault(key, f"{len(value)} items, must be {len(kinds)}")
        return tuple(_convert(kinds[i], item, f"{key}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind is Any or (type(value) is (origin or kind) and kind is not float):
        return value
    raise _fault(key, f"must be {getattr(kind, '__name__', kind)}, not {short_repr(value)}")


def _build(kind: type, values: dict[str, Any], key: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    if unknown := values.keys() - fields.keys():
        raise _fault(key, f"unknown keys {_names(unknown)}, known are {', '.join(fields)}")
    required = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if missing := required - values.keys():
        raise _fault(key, f"missing keys {_names(missing)}")
    hints = typing.get_type_hints(kind)
    converted = {name: _convert(hints[name], value, f"{key}.{name}" if key else name) for name, value in values.items()}
    try:
        return kind(**converted)
    except (ValueError, TypeError) as error:
        raise _fault(key, error) from error


def _fault(key: str, text: object) -> CheckpointError:
    return CheckpointError(f"{key}: {text}" if key else str(text))


def _kind(tensor: Tensor) -> Kind:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _names(names: Iterable[str]) -> str:
    """The first few names, quoted."""
    ordered = sorted(names)
    return ", ".join(repr(name) for name in ordered[:4]) + (f" and {len(ordered) - 4} more" if ordered[4:] else "")
