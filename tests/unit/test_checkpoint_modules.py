"""Weights of modules: any floating point, shards and wrappers' prefixes are read, what does not fit is named."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from r2id.checkpoint import CheckpointError, load_into, load_module, load_tensors, save_module, save_tensors
from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig


def safetensors_bytes(header: dict | str, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: tuple = (1,), offsets: tuple = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500
    return text


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
