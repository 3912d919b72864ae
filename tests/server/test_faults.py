"""Faults while the server runs: each is reported in one line to whoever asked, and later calls work as before."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hub import Hub, asking
from load import App

from r2id import Latent, Pipeline
from r2id.demo.controls import view_control_values
from r2id.demo.events import Events
from r2id.demo.models import Models
from r2id.demo.page import Page
from r2id.demo.request import GenerateRequest, ViewRequest
from r2id.demo.serving import worker as worker_module
from r2id.demo.serving.fair_queue import MAX_WAITING, MAX_WAITING_PER_USER, FairQueue
from r2id.demo.serving.generation import GenerationService
from r2id.demo.serving.worker import worker
from r2id.demo.session import Session

REQUEST = GenerateRequest("tiny", "3", cells=4, steps=4, seed=5)
GOOD = dict(label="3", latent_height=4, latent_width=4, steps=4, seed=5, model="tiny", api_name="/diffuse")
SOON = 30  # seconds, of a busy machine


@pytest.fixture(scope="module")
def weights(tiny_weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    for name in ("tiny", "twin"):
        shutil.copytree(tiny_weights, folder / name)
    return folder


@pytest.fixture(scope="module")
def service(weights):
    return GenerationService(Models(weights, device="cpu"))


@pytest.fixture
def events(service):
    return Events(Page(service.models, service, *[None] * 6))


def fault_of(frames) -> str:
    """The line that ends these frames."""
    last = list(frames)[-1][1]
    assert last["busy"] is None and "\n" not in last["fault"]
    return last["fault"]


def generated(service, session: Session) -> torch.Tensor:
    session.submit(REQUEST)
    assert len(list(service.generate(session))) == 4 and len(service.queue) == 0
    return session.latent.tensor


# a user and the work


def test_a_user_who_is_gone_at_any_step_holds_nothing(service, tiny):
    expected = tiny.diffuse(["3"], latent_size=(4, 4), steps=4, seed=5, guidance=1.5).tensor
    for gone in range(4):
        (session := Session()).submit(REQUEST)
        frames = service.generate(session)
        for _ in range(gone):
            next(frames)
        frames.close()
        assert len(service.queue) == 0
        torch.testing.assert_close(generated(service, session), expected)


@pytest.mark.parametrize("fault", ["raises", "out of memory", "NaN"])
@pytest.mark.parametrize("step", [1, 3])
def test_a_fault_at_any_step_is_told_and_the_next_one_works(service, events, monkeypatch, capsys, fault, step):
    session, calls = Session(), []
    before = generated(service, session)
    denoiser = service.models.get("tiny").denoiser
    whole = type(denoiser).forward

    def broken(self, *arguments):
        calls.append(1)
        output = whole(self, *arguments)
        if len(calls) == step and fault == "NaN":
            output.prediction.fill_(torch.nan)
        elif len(calls) == step and fault == "out of memory":
            torch.empty(2**50)
        elif len(calls) == step:
            raise RuntimeError("a\nfault")
        return output

    with monkeypatch.context() as patch:
        patch.setattr(type(denoiser), "forward", broken)
        session.submit(REQUEST)
        text = fault_of(events.generate(session))
    words = {"raises": "(RuntimeError)", "out of memory": "(out of memory): ask for less", "NaN": f"step {step} of 4"}
    assert words[fault] in text and len(service.queue) == 0
    assert torch.equal(generated(service, session), before) and service.show(session, ViewRequest(side=32))
    assert ("a\nfault" in capsys.readouterr().err) == (fault == "raises")


def test_an_image_that_fails_is_told_below_the_one_that_stays(service, events, monkeypatch):
    session = Session()
    generated(service, session)
    shown = events.show(session, *view_control_values(ViewRequest(side=32)))[1]
    with monkeypatch.context() as patch:
        patch.setattr(worker_module.QueuedPipeline, "resample_tiles", lambda *_, **__: torch.empty(2**50))
        failed = events.show(session, *view_control_values(ViewRequest(side=40)))[1]
    assert "(out of memory): ask for less" in failed["fault"] and failed["image"] == shown["image"]
    again = events.show(session, *view_control_values(ViewRequest(side=40)))[1]
    assert "fault" not in again and again["image"] != shown["image"] and len(service.queue) == 0


def test_two_tabs_of_one_user_diffuse_side_by_side(service):
    tabs = Session(), Session()
    for tab, label in zip(tabs, "37", strict=True):
        tab.submit(GenerateRequest("tiny", label, cells=4, steps=4, seed=5))
    paths = [service.generate(tab) for tab in tabs]
    for frames in zip(*paths, strict=True):
        assert [frame["busy"]["text"][:4] for frame in frames] == ["Step", "Step"]
    assert [tab.request.label for tab in tabs] == ["3", "7"]
    assert not torch.equal(tabs[0].latent.tensor, tabs[1].latent.tensor)


def test_twenty_calls_of_one_user_delay_the_first_of_another_by_one():
    turns, order, inside = FairQueue(), [], threading.Barrier(2, timeout=SOON)

    def call(user, number):
        with turns.turn(user):
            if number == 0:
                inside.wait()  # both users' first ones are under way at once
            order.append((user, number))

    threads = [threading.Thread(target=call, args=("many", number)) for number in range(20)]
    for count, thread in enumerate(threads, start=1):
        thread.start()
        while len(turns) < count:
            time.sleep(0.001)
    call("one", 0)
    for thread in threads:
        thread.join(SOON)
    assert [number for user, number in order if user == "many"] == list(range(20))
    assert order.index(("one", 0)) < 3 and len(turns) == 0


@pytest.mark.parametrize(
    "users, most, words", [(1, MAX_WAITING_PER_USER, "of yours"), (MAX_WAITING, MAX_WAITING, "of all users")]
)
def test_more_than_may_wait_are_told_to_try_again(users, most, words):
    turns, over = FairQueue(), threading.Event()

    def call(user):
        with turns.turn(user):
            over.wait(SOON)

    threads = [threading.Thread(target=call, args=(number % users,)) for number in range(most)]
    for thread in threads:
        thread.start()
    while len(turns) < most:
        time.sleep(0.001)
    with pytest.raises(ValueError, match=f"^busy: {most} calls {words} are waiting, at most {most} may; try again"):
        call(0)
    over.set()
    for thread in threads:
        thread.join(SOON)
    call(0)


def test_no_flood_of_images_holds_a_step_for_ever(monkeypatch):
    monkeypatch.setattr(worker_module, "URGENT_LEAD_SECONDS", 0.05)
    begun, gate, order = threading.Event(), threading.Event(), []
    threads = [threading.Thread(target=worker().call, args=(lambda: begun.set() or gate.wait(SOON),))]
    for name in ("step", "image"):
        how = dict(args=(lambda name=name: order.append(name),), kwargs={"urgent": name == "image"})
        threads.append(threading.Thread(target=worker().call, **how))
    for count, thread in enumerate(threads):
        thread.start()
        assert begun.wait(SOON)
        while worker()._jobs.qsize() < count:
            time.sleep(0.001)
        time.sleep(0.1)  # longer than the lead
    gate.set()
    for thread in threads:
        thread.join(SOON)
    assert order == ["step", "image"]


def test_rows_in_pieces_are_the_rows_together(service, tiny, monkeypatch):
    monkeypatch.setattr(worker_module, "CHEAP_CELLS_DENOISED", 40)  # cells: two rows a piece
    labels, how = ["3", None, {"3": 1, "7": 1}], dict(latent_size=(4, 5), steps=3, seed=[5, 2**32 - 1, 9])
    pieces, together = (list(pipe.diffuse_steps(labels, **how)) for pipe in (service.models.get("tiny"), tiny))
    for piece, step in zip(pieces, together, strict=True):
        torch.testing.assert_close(piece.latent.tensor, step.latent.tensor)
        assert (piece.index, piece.latent.seeds, piece.latent.labels) == (
            step.index,
            step.latent.seeds,
            step.latent.labels,
        )


# the Hub


@pytest.mark.parametrize("kind", ["offline", "hanging", "failing"])
def test_without_the_hub_the_models_that_are_there_work(weights, service, tmp_path, kind):
    hub, silent = Hub(), socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()  # takes connections, and never answers
    hub.failing = "."
    if kind == "offline":
        hub.stop()
    url = f"http://127.0.0.1:{silent.getsockname()[1]}" if kind == "hanging" else hub.url
    with asking(url, tmp_path), pytest.raises(ValueError, match="owner/name: not a local") as error:
        service.models.add("owner/name")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 500
    silent.close()
    if kind != "offline":
        hub.stop()
    assert service.models.names == ["tiny", "twin"] and generated(service, Session()).isfinite().all()


# the process


@pytest.fixture(scope="module")
def server(weights):
    app = App(weights, OMP_NUM_THREADS="1")
    yield app
    app.stop()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@contextmanager
def limited(server, kind: int, most: int):
    """The server's process under this limit."""
    before = resource.prlimit(server.process.pid, kind)
    resource.prlimit(server.process.pid, kind, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, kind, before)


def assert_same(client, expected) -> None:
    """The same latent again; beside rows of other users it may have been rounded otherwise."""
    torch.testing.assert_close(tensor(client), expected, atol=1e-5, rtol=0)


def tensor(client, **how) -> torch.Tensor:
    return Latent.load(client.predict(**GOOD | how)[1]).tensor


def refusal(client, **how) -> str:
    with pytest.raises(AppError) as error:
        client.predict(**GOOD | how)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_truncated_and_replaced_while_it_serves(server, client, weights):
    """Nothing is mapped, so nothing is lost with the file."""
    before = tensor(client, model="twin")
    for name in ("denoiser.safetensors", "resampler.safetensors"):
        os.truncate(weights / "twin" / name, 9)
    assert torch.equal(tensor(client, model="twin"), before)
    shutil.copy(weights / "tiny" / "config.json", weights / "twin" / "denoiser.safetensors")
    assert torch.equal(tensor(client, model="twin"), before)
    assert ".safetensors" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    shutil.rmtree(weights / "twin")
    assert torch.equal(tensor(client, model="twin"), before)
    shutil.copytree(weights / "tiny", weights / "twin")


def test_out_of_memory(server, client):
    file = client.predict(**GOOD)[1]
    with limited(server, resource.RLIMIT_AS, 1024 * (server.status("VmSize") + 32 * 1024)):
        with pytest.raises(AppError, match="out of memory.: ask for less"):
            client.predict(handle_file(file), 4096, 4096, model="tiny", api_name="/resample")
    assert torch.equal(tensor(client), Latent.load(file).tensor)


def test_a_full_disk(server, client):
    before = tensor(client)
    with limited(server, resource.RLIMIT_FSIZE, 100):  # no file can grow beyond
        assert "the server could not do this (" in refusal(client)
    assert_same(client, before)


def test_a_user_whose_connection_breaks(server, client):
    before = tensor(client)
    for part in (
        b"POST /gradio_api/call/diffuse HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n{",
        b"GET /",
        b"\x16\3",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as broken:
            broken.sendall(part)
    gone = Client(server.url, verbose=False)
    jobs = [gone.submit(**GOOD | dict(steps=200)) for _ in range(3)]
    while not any(job.status().code.name == "PROCESSING" for job in jobs):
        time.sleep(0.01)
    for job in jobs:
        job.cancel()
    gone.close()
    assert_same(client, before)


def test_killed_and_started_again_and_asked_to_end_with_a_full_queue(server, client, weights, tmp_path):
    file = client.predict(**GOOD)[1]
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    again = App(weights, server.port, OMP_NUM_THREADS="1")
    try:
        other = Client(again.url, verbose=False, download_files=tmp_path)
        assert_same(other, Latent.load(file).tensor)
        assert other.predict(handle_file(file), 8, 8, model="tiny", api_name="/resample")
        jobs = [
            other.submit(**GOOD | dict(steps=1000, latent_height=8, latent_width=8))
            for _ in range(MAX_WAITING_PER_USER)
        ]
        while not any(job.status().code.name == "PROCESSING" for job in jobs):
            time.sleep(0.01)
        again.process.terminate()
        again.process.wait(10)
    finally:
        again.stop()


def test_the_same_weights_are_loaded_by_a_pipeline_that_outlives_them(tiny_weights, tmp_path):
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    before = pipe.diffuse(["3"], seed=1).tensor
    for file in folder.glob("*.safetensors"):
        os.truncate(file, 0)
    assert torch.equal(pipe.diffuse(["3"], seed=1).tensor, before)
