from __future__ import annotations

import io
import json
import os
import pickle
import struct

import pytest
import torch
from torch import nn

from r2id import checkpoint
from r2id.checkpoint import (
    CheckpointError,
    load_config,
    load_module,
    load_tensors,
    save_config,
    save_tensors,
)


def safetensors_bytes(header: dict | str, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: tuple = (1,), offsets: tuple = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def pickled(protocol: int) -> bytes:
    return pickle.dumps({"weight": [1.0, 2.0]}, protocol=protocol)


def torch_saved(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500
    return text


FLOAT = b"\0\0\0\0"
FAULTS = {
    "empty": (b"", "empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git-LFS pointer"),
    "zip": (torch_saved(zipped=True), "a zip archive"),
    "pickle of old torch": (torch_saved(zipped=False), "a pickle"),
    "pickle 2": (pickled(2), "a pickle"),
    "pickle 5": (pickled(5), "a pickle"),
    "web page": (b"<!doctype html><html>", "not a safetensors file"),
    "few bytes": (b"\x10\0\0", "truncated at 3 bytes"),
    "short header": (struct.pack("<Q", 99) + b'{"a":', "truncated at 13 bytes"),
    "short data": (safetensors_bytes({"a": entry(offsets=(0, 8), shape=(2,))}, FLOAT), "truncated at"),
    "huge header": (struct.pack("<Q", 2**40) + b"{}", "a header of 1,099,511,627,776 bytes, at most 4,194,304"),
    "not JSON": (safetensors_bytes("{nonsense}"), "malformed header"),
    "deep JSON": (safetensors_bytes("{" + '"a":{' * 100_000), "malformed header"),
    "no offsets": (safetensors_bytes({"a": {"dtype": "F32", "shape": [1]}}, FLOAT), "malformed header"),
    "duplicate": (safetensors_bytes('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2), FLOAT), "repeated keys 'a'"),
    "huge empty": (safetensors_bytes({"a": entry(shape=(0, 2**60), offsets=(0, 0))}), "unusable dtype or shape of 'a'"),
    "many axes": (safetensors_bytes({"a": entry(shape=(1,) * 99)}, FLOAT), "unusable dtype or shape of 'a'"),
    "odd dtype": (safetensors_bytes({"a": entry(dtype="C64")}, FLOAT), "the first C64 [1]"),
    "overlap": (safetensors_bytes({"a": entry(), "b": entry()}, FLOAT), "not a valid safetensors file"),
    "overflow": (safetensors_bytes({"a": entry(shape=(2**62, 2**62))}, FLOAT), "not a valid safetensors file"),
    "surplus": (safetensors_bytes({"a": entry()}, FLOAT * 2), "not a valid safetensors file"),
    "NaN": (safetensors_bytes({"a": entry()}, struct.pack("<f", float("nan"))), "NaN or infinity in 'a'"),
    "infinity": (safetensors_bytes({"a": entry()}, struct.pack("<f", float("-inf"))), "NaN or infinity in 'a'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_file_has_its_own_line(tmp_path, fault):
    data, text = FAULTS[fault]
    path = tmp_path / "denoiser.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_tensors(path)
    assert message(error).startswith(f"{path}: ") and text in message(error)


def test_faults_of_the_path(tmp_path, monkeypatch):
    for path, text in ((tmp_path / "none.safetensors", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(CheckpointError, match=text):
            load_tensors(path)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        (tmp_path / "a.safetensors").write_bytes(b"1")
        patch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        load_tensors(tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):  # and does not wait for a writer
        load_tensors(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PKL"])
def test_suffixes_of_pickles_are_refused_whatever_the_file_holds(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(safetensors_bytes({"a": entry()}, FLOAT))
    for act in (lambda: load_tensors(path), lambda: save_tensors({"a": torch.ones(1)}, path)):
        with pytest.raises(CheckpointError, match="files are pickles.*only safetensors files are read"):
            act()


def test_file_larger_than_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 10)
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(11))
    with pytest.raises(CheckpointError, match="11 bytes, at most 10"):
        load_tensors(path)


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    text = json.dumps({"a": entry()}).ljust(0x0280)
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(text, struct.pack("<f", 3)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert load_tensors(path)["a"].item() == 3


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.ones(3), "b": torch.ones(2, 2)}, path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="truncated|empty"):
            load_tensors(path)


def test_tensors_do_not_depend_on_the_file_after_loading(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.randn(64, 64), "steps": torch.arange(5), "half": torch.ones(3, dtype=torch.bfloat16)}
    save_tensors(tensors, path)
    loaded = load_tensors(path)
    path.write_bytes(b"")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_never_loaded_into_a_module(tmp_path, fault):
    (tmp_path / "a.safetensors").write_bytes(FAULTS[fault][0])
    with pytest.raises(CheckpointError) as error:
        load_module(lambda: nn.Linear(1, 1, bias=False), tmp_path / "a.safetensors")
    assert message(error)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    header = {"weight": entry(shape=(1, 1)), "bias": entry(offsets=(4, 8))}
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, FLOAT + struct.pack("<f", float("nan"))))
    with pytest.raises(CheckpointError, match="a.safetensors: NaN or infinity in 'bias'$"):
        load_module(lambda: nn.Linear(1, 1), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "tensor", [torch.tensor([float("nan")]), torch.ones(0, 3), torch.ones(2, dtype=torch.complex64)]
)
def test_what_would_not_load_is_not_saved(tmp_path, tensor):
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError):
        save_tensors({"a": tensor}, path)
    assert load_tensors(path)["a"].item() == 1


def test_config_survives_save_and_load(tmp_path):
    config = {"format": 1, "labels": ["0", "é"], "schedule": {"name": "cosine"}, "mean": [0.1, -2.0]}
    save_config(tmp_path / "new", config)
    assert load_config(tmp_path / "new") == config
    with pytest.raises(ValueError):
        save_config(tmp_path / "new", {"mean": float("nan")})
    assert load_config(tmp_path / "new") == config


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"[1]", "must hold a JSON object, not list"),
        (b'{"a": 1,}', "not usable as JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "repeated keys 'b'"),
        (b'{"a": "\xff"}', "not usable as JSON"),
        (b"[" * 100_000, "not usable as JSON"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "not usable as JSON"),
        (b" " * (checkpoint.MAX_CONFIG_BYTES + 1), "1,048,577 bytes, at most 1,048,576"),
    ],
)
def test_every_fault_of_a_config_has_its_own_line(tmp_path, data, text):
    if data is not None:
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_config(tmp_path)
    assert message(error).startswith(str(tmp_path / "config.json")) and text in message(error)
