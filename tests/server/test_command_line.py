"""The page's command line, as far as it does not serve; and what importing it leaves behind."""

import importlib.util
import sys
from pathlib import Path

import gradio
import pytest
import torch

from r2id.demo import cli, controls


@pytest.fixture
def started(monkeypatch):
    """`started(*arguments)` → how `Models` was called; nothing is loaded or served."""
    calls = []

    class Started(Exception):
        pass

    def models(weights, **how):
        calls.append((weights, how["hub"]))
        raise Started

    monkeypatch.setattr(cli, "Models", models)
    monkeypatch.delenv("R2ID_MODEL", raising=False)

    def start(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["r2id-demo", *arguments])
        with pytest.raises(Started):
            cli.main()
        return calls[-1]

    return start


def test_weights_are_a_folder_or_an_id_of_the_hub(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert started() == (Path("weights"), None)
    assert started("--weights", str(tmp_path)) == (tmp_path, None)
    assert started("--weights", "owner/name") == (Path("owner/name"), "owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert started("--weights", "owner/name") == (Path("owner/name"), None)
    monkeypatch.setenv("R2ID_MODEL", "our/model")
    assert started() == (Path("weights"), "our/model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_decoders_dtype_is_printed_and_can_be_chosen(dtype, tiny_weights, monkeypatch, capsys):
    built = []

    def build(models, *_):
        built.append(models.get("tiny"))
        raise ValueError("served")

    monkeypatch.setattr(cli, "build", build)
    monkeypatch.setattr(sys, "argv", ["r2id-demo", "--weights", str(tiny_weights), "--decoder-dtype", dtype])
    with pytest.raises(SystemExit):
        cli.main()
    assert built[0].decoder_dtype == getattr(torch, dtype)
    assert capsys.readouterr().out == f"Pixels are decoded in {dtype} (--decoder-dtype {dtype}).\n"


def test_another_dtype_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["r2id-demo", "--decoder-dtype", "float16"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert error.startswith("r2id-demo: argument --decoder-dtype: invalid choice: 'float16'")


def test_an_id_that_cannot_be_downloaded_ends_in_one_line(monkeypatch, capsys):
    def absent(name):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("r2id.demo.models.fetch", absent)
    monkeypatch.setattr(sys, "argv", ["r2id-demo", "--weights", "owner/name"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and capsys.readouterr().err == "r2id-demo: --weights owner/name: no network\n"


def test_gradio_writes_no_stubs_beside_components(tmp_path, monkeypatch):
    """It would for every class of a component, when the module is imported."""
    copy = tmp_path / "copied_controls.py"
    copy.write_bytes(Path(controls.__file__).read_bytes())
    spec = importlib.util.spec_from_file_location(copy.stem, copy)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert issubclass(module.Slider, gradio.Slider) and module.Slider.__module__ == spec.name
    assert not list(tmp_path.glob("*.pyi"))
