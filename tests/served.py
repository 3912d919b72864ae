"""Fixtures of a server with tiny models, shared by tests/server and tests/browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from load import App


@contextmanager
def served(weights: Path) -> Iterator[str]:
    """Runs `python app.py` on a free port; yields its address."""
    app = App(weights, OMP_NUM_THREADS="1")
    try:
        yield app.url
    finally:
        app.stop()


@pytest.fixture(scope="session")
def serve():
    """`with serve(weights) as url` runs another server."""
    return served


@pytest.fixture(scope="session")
def weights(tiny_weights, tmp_path_factory) -> Path:
    """Two models, `tiny` and `twin`, and a broken one, `spoilt`."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("tiny", "twin"):
        shutil.copytree(tiny_weights, folder / name)
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "config.json").write_text("{")
    return folder


@pytest.fixture(scope="session")
def url(weights):
    with served(weights) as address:
        yield address
