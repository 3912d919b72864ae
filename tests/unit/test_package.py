"""What an installation is made of: its version, its dependencies, its files."""

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
    citation, changes = (ROOT / "CITATION.cff").read_text(), (ROOT / ".github" / "CHANGELOG.md").read_text()
    assert f"\nversion: {r2id.__version__}\n" in citation and f"\n## {r2id.__version__}" in changes
