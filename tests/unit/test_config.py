"""A `config.json` from strangers: whatever a number in it becomes, it is refused in one line, nothing is built."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator

import pytest
import torch

from r2id import Pipeline, __version__

BAD = [
    "1e999",
    "NaN",
    "-Infinity",
    "1e30",
    "-1e30",
    "1" + "0" * 30,
    "true",
    '"3"',
    "null",
    "[1]",
    "{}",
    "[" * 99 + "]" * 99,
]


def places(value, *path) -> Iterator[tuple]:
    """The paths of all numbers."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, *path, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


def with_text(config: dict, path: tuple, text: str) -> str:
    config = copy.deepcopy(config)
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = "here"
    return json.dumps(config).replace('"here"', text)


@pytest.fixture(params=["tiny", "tiny_pixels"])
def folder(request, tmp_path):
    request.getfixturevalue(request.param).save(tmp_path / "model")
    return tmp_path / "model"


def test_every_number_is_checked(folder, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("a model is built"))
    config = json.loads((folder / "config.json").read_text())
    config["training"] = {"images": 1, "steps": 1, "operations": 1.0, "seconds": 1.0}
    for path in places(config):
        for text in BAD:
            (folder / "config.json").write_text(with_text(config, path, text))
            with pytest.raises(ValueError) as error:
                Pipeline.from_pretrained(folder, device="cpu")
            line = str(error.value)
            assert line.startswith(f"{folder / 'config.json'}: ") and "\n" not in line and len(line) <= 500, (
                path,
                line,
            )


@pytest.mark.parametrize("writer", ["9.9.9", __version__])
@pytest.mark.parametrize("part", [None, "denoiser"])
def test_an_unknown_key_is_named_with_the_version_that_wrote_it(folder, part, writer):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"version": writer}
    (config[part] if part else config)["surplus"] = 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = rf"'surplus'.*\(written by r2id {writer}, this is {__version__}\)$"
    with pytest.raises(ValueError, match=said):
        Pipeline.from_pretrained(folder, device="cpu")


def test_weights_that_do_not_fit_are_refused_before_the_model_is_built(folder):
    shutil.copy(folder / "config.json", folder.parent)
    for key, value in (("width", 2**14), ("decoder_blocks", 128), ("label_tokens", 4096), ("num_classes", 2**17)):
        config = json.loads((folder.parent / "config.json").read_text())
        config["denoiser"][key] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="denoiser.safetensors: does not fit R2ID: m"):
            Pipeline.from_pretrained(folder, device="cpu")
