from __future__ import annotations

import io
import json
import os
import pickle
import struct
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import pytest
import torch
from torch import nn

from r2id import checkpoint
from r2id.checkpoint import (
    CheckpointError,
    from_dict,
    load_config,
    load_into,
    load_module,
    load_tensors,
    save_config,
    save_module,
    save_tensors,
)
from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig


@dataclass(frozen=True)
class Inner:
    width: int
    kind: str = "cosine"

    def __post_init__(self):
        if self.kind not in ("cosine", "linear"):
            raise ValueError(f"kind {self.kind!r}: must be cosine or linear")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rate: float = 1.0
    flag: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    pair: tuple[float, str] = (0.0, "")
    local: Inner | None = None
    extra: dict = field(default_factory=dict)


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


def test_module_survives_save_and_load(tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    model, other = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in range(2))
    save_module(model, path)
    load_into(other, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_tied_weights_survive(tmp_path):
    model, other = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    model[1].weight = model[0].weight
    save_module(model, tmp_path / "a.safetensors")
    load_into(other, tmp_path / "a.safetensors")
    assert torch.equal(other[1].weight, model[0].weight)


def test_loading_names_what_does_not_fit_and_changes_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"weight": torch.ones(4, 2), **{f"extra{i}": torch.ones(1) for i in range(6)}}
    save_tensors(tensors, path)
    model = nn.Linear(3, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_into(model, path)
    for text in (
        "does not fit Linear",
        "missing 'bias'",
        "not in the model 'extra0', 'extra1', 'extra2', 'extra3' and 2 more",
        "misshapen 'weight' ('weight' is (4, 2), the model's (4, 3))",
    ):
        assert text in message(error)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_floating_point_become_the_modules(tmp_path, dtype):
    weight = torch.tensor([[0.1, -3.0, 7e-3]], dtype=dtype)
    save_tensors({"weight": weight}, tmp_path / "a.safetensors")
    loaded = load_module(lambda: nn.Linear(3, 1, bias=False), tmp_path / "a.safetensors")
    assert loaded.weight.dtype == torch.float32 and torch.equal(loaded.weight, weight.float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_weights_that_cannot_be_converted_are_refused_before_the_module_is_made(tmp_path, dtype):
    save_tensors({"weight": torch.ones(1, 1, dtype=dtype)}, tmp_path / "a.safetensors")
    for load in (partial(load_into, nn.Linear(1, 1, bias=False)), partial(load_module, only_sketch)):
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "a.safetensors")
        kinds = f"({str(dtype).removeprefix('torch.')} to float32)"
        assert f"of a dtype that cannot be converted 'weight' {kinds}" in message(error)


def test_counts_stay_whole_numbers(tmp_path):
    save_tensors(nn.BatchNorm1d(2).half().state_dict(), tmp_path / "a.safetensors")
    assert load_module(lambda: nn.BatchNorm1d(2), tmp_path / "a.safetensors").num_batches_tracked.dtype == torch.int64
    state = nn.BatchNorm1d(2).state_dict() | {"num_batches_tracked": torch.tensor(1.0)}
    save_tensors(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="cannot be converted 'num_batches_tracked' .float32 to int64."):
        load_module(lambda: nn.BatchNorm1d(2), tmp_path / "a.safetensors")


def test_eight_bit_floats_are_refused_by_name(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"a": entry(dtype="F8_E4M3", offsets=(0, 1))}, b"0"))
    with pytest.raises(CheckpointError, match=r"unusable dtype or shape of 'a', the first F8_E4M3 \[1\]"):
        load_tensors(tmp_path / "a.safetensors")


def test_what_is_too_large_for_the_module_is_refused_and_changes_nothing(tmp_path):
    save_tensors({"weight": torch.full((1, 1), 1e300, dtype=torch.float64)}, tmp_path / "a.safetensors")
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.clone()
    with pytest.raises(CheckpointError, match="too large for torch.float32 in 'weight'"):
        load_into(model, tmp_path / "a.safetensors")
    assert torch.equal(model.weight, before)


def test_weights_are_saved_at_half_precision_when_asked(tmp_path):
    model, path = nn.Sequential(nn.Linear(100, 90), nn.BatchNorm1d(90)), tmp_path / "a.safetensors"
    save_module(model, path, torch.float16)
    saved = load_tensors(path)
    assert {name for name, tensor in saved.items() if tensor.dtype == torch.float16} == {"0.weight"}
    assert torch.equal(saved["0.bias"], model[0].bias)  # small, so kept
    other = load_module(lambda: nn.Sequential(nn.Linear(100, 90), nn.BatchNorm1d(90)), path)
    assert torch.equal(other[0].weight, model[0].weight.half().float())


def write_shards(folder, parts: dict[str, dict], index: dict | None = None) -> None:
    """Shards beside the index of a.safetensors: file name → its tensors."""
    for name, tensors in parts.items():
        save_tensors(tensors, folder / name)
    names = {key: name for name, tensors in parts.items() for key in tensors}
    (folder / "a.safetensors.index.json").write_text(json.dumps(index or {"metadata": {}, "weight_map": names}))


def test_shards_are_read_by_their_index(tmp_path):
    model = nn.Linear(3, 4)
    write_shards(
        tmp_path,
        {f"a-0000{i}-of-00002.safetensors": {name: t} for i, (name, t) in enumerate(model.state_dict().items(), 1)},
    )
    loaded = load_module(lambda: nn.Linear(3, 4), tmp_path / "a.safetensors")
    assert torch.equal(loaded.weight, model.weight) and torch.equal(loaded.bias, model.bias)
    (tmp_path / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a-00002-of-00002.safetensors: no such file"):
        load_module(lambda: nn.Linear(3, 4), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"weight": 3}},
        {"weight_map": {"weight": "../b.safetensors"}},
        {"weight_map": {"weight": "b.pt"}},
    ],
)
def test_a_bad_index_is_refused(tmp_path, index):
    write_shards(tmp_path, {}, index or [index])
    with pytest.raises(CheckpointError) as error:
        load_module(lambda: nn.Linear(1, 1), tmp_path / "a.safetensors")
    assert "a.safetensors.index.json: not usable as an index of shards" in message(error)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_shards(
        tmp_path,
        {name: {"weight": torch.ones(1, 1)} for name in ("b.safetensors", "c.safetensors")},
        {"weight_map": {"weight": "b.safetensors", "bias": "c.safetensors"}},
    )
    with pytest.raises(CheckpointError, match="a.safetensors: in two shards 'weight'"):
        load_module(lambda: nn.Linear(1, 1), tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    model = nn.Linear(3, 4)
    save_tensors({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "a.safetensors")
    assert torch.equal(load_module(lambda: nn.Linear(3, 4), tmp_path / "a.safetensors").weight, model.weight)


def test_compiled_parts_are_unwrapped_and_names_stay_unique(tmp_path):
    weight, bias = torch.ones(1, 1), torch.ones(1)
    save_tensors({"0._orig_mod.weight": weight, "0._orig_mod.bias": bias}, tmp_path / "a.safetensors")
    assert torch.equal(
        load_module(lambda: nn.Sequential(nn.Linear(1, 1)), tmp_path / "a.safetensors")[0].weight, weight
    )
    save_tensors({"_orig_mod.weight": weight, "weight": weight, "bias": bias}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="with and without a wrapper's prefix 'weight'"):
        load_module(lambda: nn.Linear(1, 1), tmp_path / "a.safetensors")


def only_sketch() -> nn.Module:
    """A module that fails the test if it is made in earnest."""
    module = nn.Linear(1, 1, bias=False)
    assert module.weight.is_meta
    return module


def test_a_module_is_made_with_the_weights_of_a_file(tmp_path):
    config = CrossAttentionR2IRConfig(latent_channels=3, width=16, heads=2)
    model = CrossAttentionR2IR(config)
    save_module(model, tmp_path / "a.safetensors")
    loaded = load_module(lambda: CrossAttentionR2IR(config), tmp_path / "a.safetensors")
    for part in (nn.Module.state_dict, lambda module: dict(module.named_buffers())):  # frequencies are in no file
        theirs = part(loaded)
        assert part(model).keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in part(model).items())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"decoder_blocks": 128, "width": 2**14}, "missing "),
        ({"encoder_blocks": 1}, "not in the model 'encoder.1."),
        ({"width": 2**14, "cell_mlp_ratio": 64}, "misshapen 'cell_blocks.0."),
        ({"latent_channels": 4096}, "misshapen 'cell_in.weight', 'latent_out.bias', 'latent_out.weight' ('cell_in"),
    ],
    ids=["missing", "extra", "wide", "misshapen"],
)
def test_a_configuration_that_asks_for_another_model_takes_no_memory(tmp_path, values, text):
    config = CrossAttentionR2IRConfig(latent_channels=3, width=16, heads=2, linear_codec=False)
    save_module(CrossAttentionR2IR(config), tmp_path / "a.safetensors")
    other, made = replace(config, **values), []

    def make() -> nn.Module:
        made.append(CrossAttentionR2IR(other))
        return made[-1]

    with pytest.raises(CheckpointError) as error:
        load_module(make, tmp_path / "a.safetensors")
    assert "a.safetensors: does not fit CrossAttentionR2IR: " in message(error) and text in message(error)
    assert [module.cell_in.weight.is_meta for module in made] == [True]


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


def test_dataclass_survives_json():
    outer = Outer("a", Inner(3), 0.5, True, ((4, 4), (6, 9)), (1.0, "x"), Inner(5, "linear"), {"k": [1]})
    assert from_dict(Outer, json.loads(json.dumps(asdict(outer))), "x") == outer


def test_absent_keys_take_defaults_and_ints_may_be_floats():
    outer = from_dict(Outer, {"name": "a", "inner": {"width": 1}, "rate": 2, "local": None}, "x")
    assert outer == Outer("a", Inner(1), rate=2.0) and type(outer.rate) is float


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nam": 1}, "unknown keys 'nam', known are name, inner"),
        ({"inner": {"width": 1, "hight": 2}}, "inner: unknown keys 'hight', known are width, kind"),
        ({"inner": {}}, "inner: missing keys 'width'"),
        ({"inner": 3}, "inner: must be Inner, not 3"),
        ({"inner": {"width": 1.0}}, "inner.width: must be int, not 1.0"),
        ({"inner": {"width": True}}, "inner.width: must be int, not True"),
        ({"inner": {"width": 1, "kind": "sine"}}, "inner: kind 'sine': must be cosine or linear"),
        ({"local": {"width": "1"}}, "local.width: must be int, not '1'"),
        ({"name": None}, "name: must be str, not None"),
        ({"rate": "1"}, "rate: must be float, not '1'"),
        ({"rate": True}, "rate: must be float, not True"),
        ({"rate": float("nan")}, "rate: must be float, not nan"),
        ({"rate": float("inf")}, "rate: must be float, not inf"),
        ({"rate": 10**400}, "rate: must be float, not 1000"),
        ({"flag": 1}, "flag: must be bool, not 1"),
        ({"sizes": 3}, "sizes: must be tuple"),
        ({"sizes": [[1, 2], [3]]}, "sizes[1]: 1 items, must be 2"),
        ({"sizes": [[1, 2], [3, 4.5]]}, "sizes[1][1]: must be int, not 4.5"),
        ({"pair": ["x", 1]}, "pair[0]: must be float, not 'x'"),
        ({"extra": []}, "extra: must be dict, not []"),
        ({"name": ["x\n" * 9999]}, "name: must be str, not ['x"),
    ],
)
def test_every_fault_of_a_dict_names_its_key(change, text):
    with pytest.raises(CheckpointError) as error:
        from_dict(Outer, {"name": "a", "inner": {"width": 1}} | change, "config.json")
    assert message(error).startswith(f"config.json: {text}")


@pytest.mark.parametrize("depth", [1, 10, 100, 400, 800, 950, 990, 5_000])
def test_deep_values_end_in_one_line(tmp_path, depth):
    nested = "[" * depth + "]" * depth
    for text in (f'{{"name": {nested}}}', f'{{"name": "a", "inner": {nested}}}', f'{{"sizes": {nested}}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError) as error:
            from_dict(Outer, load_config(tmp_path), "config.json")
        assert message(error)


def test_a_number_beyond_all_floats_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "a", "inner": {"width": 1}, "rate": 1e999}')
    with pytest.raises(CheckpointError, match="^config.json: rate: must be float, not inf$"):
        from_dict(Outer, load_config(tmp_path), "config.json")


def test_faults_at_the_top():
    with pytest.raises(CheckpointError, match="^a.toml: missing keys 'inner', 'name'$"):
        from_dict(Outer, {}, "a.toml")
    with pytest.raises(CheckpointError, match=r"^a.toml: must be Outer, not \[\]$"):
        from_dict(Outer, [], "a.toml")
