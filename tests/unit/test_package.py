"""What an installation is made of: its version, its dependencies, its files."""

import ast
import re
import sys
from pathlib import Path

import pytest

import r2id

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def test_the_page_needs_the_package_and_gradio():
    core, demo = PROJECT["project"]["dependencies"], lines(ROOT / "requirements.txt")
    assert set(core) < set(demo)
    assert [re.split(r"[<>=]", line)[0] for line in demo if line not in core] == ["gradio"]


def test_the_version_is_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", r2id.__version__)
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    citation, changes = lines(ROOT / "CITATION.cff"), lines(ROOT / ".github" / "CHANGELOG.md")
    assert f"version: {r2id.__version__}" in citation
    assert any(line.startswith(f"## {r2id.__version__}") for line in changes)


def names_encoding(call: ast.Call) -> bool:
    """Whether a call that opens a text file names its encoding; True for any other call."""
    function = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    places = {"read_text": 0, "write_text": 1, "open": 3}  # of the encoding among the arguments
    if function not in places or (function == "open" and not isinstance(call.func, ast.Name)):
        return True
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    binary = function == "open" and any("b" in mode.value for mode in modes if isinstance(mode, ast.Constant))
    named = any(keyword.arg == "encoding" for keyword in call.keywords)
    return binary or named or len(call.args) > places[function]


def test_text_files_are_utf_8_whatever_the_locale():
    calls, bad = 0, []
    for path in (file for folder in ("r2id", "train") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("open", "read_text", "write_text")):
                calls += 1
                bad += [] if names_encoding(node) else [f"{path.name}:{node.lineno}"]
    assert not bad and calls > 20
