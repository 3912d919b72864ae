"""Tests of the server, without a browser."""

import pytest
import served

from r2id import precision


@pytest.fixture(autouse=True, scope="session")
def same_precision():
    """All pipelines decode in float32, whatever this CPU is faster with, so that their results can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "bfloat16_speedup", lambda: 1.0)
        yield


serve, url, weights = served.serve, served.url, served.weights  # fixtures
