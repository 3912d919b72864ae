"""To the Hub and back by its own client, against a stand-in on this machine."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from hub import Hub
from runs import finished_run

from r2id import R2ID, Pipeline
from train.engine.state import load_state

TIMEOUT = 300  # seconds, most of them for a process to start on a busy machine
COMMON = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def call(environment: dict[str, str], act: str, *arguments):
    """In the client's process: "export" → nothing, "load" → the denoiser's weights and the cell that a row gives."""
    from train import export

    os.environ.pop("HF_TOKEN", None)
    os.environ.update(environment)
    if act == "export":
        return export.main(list(arguments))
    name, revision = arguments
    pipe = Pipeline.from_pretrained(name, revision=revision, device="cpu")
    return {key: value.numpy() for key, value in pipe.denoiser.state_dict().items()}


class Client:
    """The Hub's client reads its environment when it is imported, so it has a process of its own, where the token
    alone changes from call to call."""

    def __init__(self, hub: Hub, home: Path):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (COMMON | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}).items():
                patch.setenv(name, value)
            for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                patch.delenv(proxy, raising=False)
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            self.pool.submit(os.getpid).result(TIMEOUT)

    def __call__(self, act: str, *arguments: str, token: str | None = "writer"):
        environment = {"HF_TOKEN": token} if token else {}
        return self.pool.submit(call, environment, act, *arguments).result(TIMEOUT)


@pytest.fixture(scope="module")
def shared_hub():
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def client(shared_hub, tmp_path_factory):
    client = Client(shared_hub, tmp_path_factory.mktemp("home"))
    yield client
    client.pool.shutdown()


@pytest.fixture
def hub(shared_hub):
    shared_hub.repositories.clear()
    shared_hub.large.clear()
    shared_hub.requests.clear()
    return shared_hub


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("first"), tiny)


@pytest.fixture(scope="module")
def later_run(tiny, tmp_path_factory) -> Path:
    """The same with other weights."""
    denoiser = R2ID(tiny.config.denoiser)
    return finished_run(tmp_path_factory.mktemp("later"), Pipeline(tiny.config, tiny.resampler, denoiser, device="cpu"))


def same(weights: dict, run: Path) -> bool:
    expected = load_state(run / "denoiser").part("ema")
    assert weights.keys() == expected.keys()
    return all(torch.equal(torch.from_numpy(value), expected[key]) for key, value in weights.items())


def refusal(client: Client, *arguments: str, token: str | None = "writer") -> str:
    with pytest.raises(ValueError) as error:
        client(*arguments, token=token)
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500
    return text


def test_weights_go_to_the_hub_and_come_back(hub, client, run, tmp_path):
    client("export", str(run), str(tmp_path / "small"), "--license", "mit", "--push", "owner/small")
    (commit, files), *older = reversed(hub.repositories["owner/small"].commits.items())
    assert len(older) == 1 and hub.repositories["owner/small"].private is False
    names = {".gitattributes", "README.md", "config.json", "denoiser.safetensors", "resampler.safetensors"}
    assert files.keys() == names | {"samples.png"}
    assert all((tmp_path / "small" / name).read_bytes() == files[name] for name in files.keys() - {".gitattributes"})
    assert len(hub.large) == 2  # both weights, as large files
    assert 'Pipeline.from_pretrained("owner/small")' in files["README.md"].decode()
    assert same(client("load", "owner/small", None, token=None), run)
    assert same(client("load", "owner/small", commit, token=None), run)


def test_a_revision_pins_the_weights(hub, client, run, later_run, tmp_path):
    for source in (run, later_run):
        client("export", str(source), str(tmp_path / "small"), "--push", "owner/pinned")
    _, first, second = hub.repositories["owner/pinned"].commits
    assert same(client("load", "owner/pinned", first), run)
    assert same(client("load", "owner/pinned", second), later_run)
    assert same(client("load", "owner/pinned", None), later_run)
    hub.requests.clear()
    client("export", str(later_run), str(tmp_path / "small"), "--push", "owner/pinned")
    assert len(hub.repositories["owner/pinned"].commits) == 3  # the same again is no commit
    assert not any("PUT" in request for request in hub.requests)
    assert "Invalid rev id" in refusal(client, "load", "owner/pinned", "0" * 40)


def test_only_what_a_model_needs_is_uploaded(hub, client, run, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("notes.txt", "state.pt", "old.safetensors", "unused.png", "shown.png"):
        (folder / name).write_bytes(b"mine")
    (folder / "private").mkdir()
    (folder / "private" / "config.json").write_text("{}")
    (folder / "README.md").write_text("![One](shown.png)")
    client("export", str(run), str(folder), "--push", "owner/small")
    files = hub.repositories["owner/small"].commits.popitem()[1]
    weights = {"denoiser.safetensors", "resampler.safetensors"}
    assert files.keys() == {".gitattributes", "README.md", "config.json", "shown.png"} | weights
    assert files["README.md"] == b"![One](shown.png)"


def test_a_report_goes_along_only_if_it_is_of_these_weights(hub, client, run, later_run, tmp_path):
    def pushed(source: Path) -> set[str]:
        client("export", str(source), str(tmp_path / "small"), "--push", "owner/small")
        return set(list(hub.repositories["owner/small"].commits.values())[-1])

    assert "report.json" not in pushed(run)
    (tmp_path / "small" / "report.json").write_text(json.dumps({"setting": {}}))
    assert "report.json" in pushed(run)
    hub.repositories.clear()
    assert "report.json" not in pushed(later_run)


def test_a_private_repository_is_for_its_owner(hub, client, run, tmp_path):
    client("export", str(run), str(tmp_path / "small"), "--push", "owner/own", "--private")
    assert hub.repositories["owner/own"].private is True
    assert same(client("load", "owner/own", None), run)
    hub.repositories["owner/other"] = hub.repositories.pop("owner/own")  # nothing of it is in the cache
    for token, text in (
        (None, "owner/other: not a local folder, and could not be downloaded"),
        ("wrong", "Invalid credentials"),
    ):
        assert text in refusal(client, "load", "owner/other", None, token=token)


def test_nothing_private_is_uploaded_to_a_public_repository(hub, client, run, tmp_path):
    client("export", str(run), str(tmp_path / "small"), "--push", "owner/small")
    before = dict(hub.repositories["owner/small"].commits)
    text = refusal(client, "export", str(run), str(tmp_path / "small"), "--push", "owner/small", "--private")
    assert text == "--push owner/small: the repository is public; make it private in its settings, or give another name"
    assert hub.repositories["owner/small"].commits == before


@pytest.mark.parametrize(
    ("token", "name", "expected"),
    [
        (None, "owner/small", "no token of the Hub; run `hf auth login`, or set HF_TOKEN"),
        ("wrong", "owner/small", "the token is not valid; run `hf auth login`"),
        ("reader", "owner/small", "the token may not write there; use one that may, or a name of your own"),
        ("writer", "someone/small", "the token may not write there"),
        ("writer", "owner/small--x", "Cannot have -- or .. in repo_id"),
    ],
)
def test_a_push_that_is_refused_is_one_line_and_the_weights_stay(hub, client, run, tmp_path, token, name, expected):
    text = refusal(client, "export", str(run), str(tmp_path / "small"), "--push", name, token=token)
    assert text.startswith(f"--push {name}: {expected}")
    assert hub.repositories == {} and Pipeline.from_pretrained(tmp_path / "small", device="cpu")


def test_a_reader_of_a_repository_may_not_write_it(hub, client, run, later_run, tmp_path):
    client("export", str(run), str(tmp_path / "small"), "--push", "owner/small")
    before = dict(hub.repositories["owner/small"].commits)
    text = refusal(client, "export", str(later_run), str(tmp_path / "small"), "--push", "owner/small", token="reader")
    assert "the token may not write there" in text and hub.repositories["owner/small"].commits == before


def test_a_failure_of_the_hub_is_one_line(hub, client, run, tmp_path):
    hub.failing = "POST /api/models/owner/small/commit"
    try:
        text = refusal(client, "export", str(run), str(tmp_path / "small"), "--push", "owner/small")
    finally:
        hub.failing = None
    assert text.startswith("--push owner/small: ") and "500" in text
    client("export", str(run), str(tmp_path / "small"), "--push", "owner/small")  # what is there is not sent again
    assert sum("PUT" in request for request in hub.requests) == 2


def test_without_a_network_a_push_is_one_line_and_an_earlier_download_will_do(hub, client, run, tmp_path):
    client("export", str(run), str(tmp_path / "small"), "--push", "owner/cached")
    client("load", "owner/cached", None)
    with hub.unreachable():
        text = refusal(client, "export", str(run), str(tmp_path / "small"), "--push", "owner/small")
        assert text.startswith(f"--push owner/small: no upload to {hub.url}: ") and "refused" in text
        assert same(client("load", "owner/cached", None), run)
        assert "not a local folder, and could not be downloaded" in refusal(client, "load", "owner/absent", None)


def test_a_configuration_from_the_hub_is_checked_as_any_other(hub, client, run, tmp_path):
    client("export", str(run), str(tmp_path / "small"), "--push", "owner/broken")
    files = next(reversed(hub.repositories["owner/broken"].commits.values()))
    config = json.loads(files["config.json"])
    config["denoiser"]["width"] = 2**40
    files["config.json"] = json.dumps(config).encode()
    text = refusal(client, "load", "owner/broken", None)
    assert "denoiser: width 1099511627776: must be a whole number, 1…16384" in text
