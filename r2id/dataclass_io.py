"""Frozen dataclasses from JSON or TOML, with every fault named by the path of its key."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import Any

from r2id.checkpoint import CheckpointError, names_of
from r2id.limits import short_repr


def from_dict(dataclass_type: type, values: dict[str, Any], where: str | Path, *, note: str = "") -> Any:
    """A (nested) dataclass from JSON or TOML: lists become tuples, an int may stand for a float, absent keys take the
    dataclass's default. `where` heads the errors and `note` ends them. Raises CheckpointError with the path of the
    key."""
    try:
        return _convert(dataclass_type, values, "")
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}{note}") from error


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
        raise _fault(key, f"unknown keys {names_of(unknown)}, known are {', '.join(fields)}")
    required = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if missing := required - values.keys():
        raise _fault(key, f"missing keys {names_of(missing)}")
    hints = typing.get_type_hints(kind)
    converted = {name: _convert(hints[name], value, f"{key}.{name}" if key else name) for name, value in values.items()}
    try:
        return kind(**converted)
    except (ValueError, TypeError) as error:
        raise _fault(key, error) from error


def _fault(key: str, text: object) -> CheckpointError:
    return CheckpointError(f"{key}: {text}" if key else str(text))
