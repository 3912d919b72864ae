"""Folders come, change, break and go, and so do models of the Hub; what works goes on working."""

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hub import hub_for
from refusals import refused

from r2id.demo import models
from r2id.demo.models import FIRST, MAX_CARD, MAX_HUB, Models, plain_markdown
from r2id.pipeline import Pipeline


@pytest.fixture
def weights(tiny_weights, tmp_path):
    """A folder of one model, `tiny`."""
    shutil.copytree(tiny_weights, tmp_path / "weights" / "tiny")
    return tmp_path / "weights"


@pytest.fixture
def loads(monkeypatch):
    """The names of the folders that are loaded, as it happens."""
    seen, load = [], Pipeline.from_pretrained

    def noted(folder, **how):
        seen.append(folder.name)
        return load(folder, **how)

    monkeypatch.setattr(Pipeline, "from_pretrained", noted)
    return seen


@pytest.fixture
def hub(tiny_weights, tmp_path):
    """A Hub with one model, `owner/name`."""
    with hub_for(tmp_path / "cache") as hub:
        hub.put("owner/name", tiny_weights)
        yield hub


def installed(weights, **how) -> Models:
    return Models(weights, device="cpu", **how)


def one_line(act, *words: str) -> None:
    message = refused(act)
    assert all(word in message for word in words), message


def generated(pipe: Pipeline) -> torch.Tensor:
    return pipe.resample(pipe.diffuse(["3"], steps=1, seed=0), size=(8, 8))


def touched(path: Path) -> None:
    """Makes a change visible however coarse the clock of the file system is."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 10**9))


def test_folders_are_listed_by_name_after_the_first(weights, tiny):
    for name in ("another", FIRST):
        shutil.copytree(weights / "tiny", weights / name)
    shutil.copytree(weights / "tiny", weights / ".hidden")
    (weights / "README.md").write_text("no model")
    (weights / "empty").mkdir()
    there = installed(weights)
    assert there.names == [FIRST, "another", "tiny"] and there.faults == {}
    assert torch.equal(generated(there.get("tiny")), generated(tiny))


def test_a_model_may_be_given_itself(weights):
    assert installed(weights / "tiny").names == ["tiny"]


@pytest.mark.parametrize("where", ["absent", "file"])
def test_without_models_there_are_none(tmp_path, where):
    (tmp_path / "file").write_text("")
    there = installed(tmp_path / where)
    there.scan()
    assert there.names == [] and there.faults == {}
    one_line(lambda: there.get("tiny"), "'tiny'", "there is none to use", "weights/")


def with_values(config: bytes, **values) -> bytes:
    return json.dumps(json.loads(config) | values).encode()


def without_one(weights: bytes) -> bytes:
    tensors = safetensors.torch.load(weights)
    return safetensors.torch.save({name: tensors[name] for name in sorted(tensors)[1:]})


BROKEN = {  # which file becomes what (None: goes), and what is said
    "no config": ("config.json", lambda _: None, "config.json: no such file"),
    "half a config": ("config.json", lambda old: old[:99], "config.json: not usable as JSON"),
    "unknown key": ("config.json", lambda old: with_values(old, colour=1), "unknown keys 'colour'"),
    "another format": ("config.json", lambda old: with_values(old, format=99), "format 99"),
    "other labels": ("config.json", lambda old: with_values(old, labels=["0"] * 99), "denoiser of 10 labels"),
    "no weights": ("denoiser.safetensors", lambda _: None, "denoiser.safetensors: no such file"),
    "empty": ("denoiser.safetensors", lambda _: b"", "denoiser.safetensors: empty"),
    "truncated": ("denoiser.safetensors", lambda old: old[:-100], "denoiser.safetensors: truncated"),
    "one missing": ("denoiser.safetensors", without_one, "does not fit R2ID: missing"),
    "NaN": ("resampler.safetensors", lambda old: old[:-4] + b"\0\0\xc0\x7f", "resampler.safetensors: NaN or infinity"),
    "pointer": ("resampler.safetensors", lambda _: b"version https://git-lfs.github.com/spec", "a Git-LFS pointer"),
}


def spoil(folder: Path, kind: str) -> Path:
    name, change, _ = BROKEN[kind]
    if (data := change((folder / name).read_bytes())) is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    return folder


def relabelled(folder: Path) -> None:
    (folder / "config.json").write_bytes(with_values((folder / "config.json").read_bytes(), labels=[*"abcdefghij"]))
    touched(folder / "config.json")


def test_a_broken_folder_is_listed_with_its_reason_and_the_others_work(tiny_weights, tmp_path):
    weights = tmp_path / "my weights"
    shutil.copytree(tiny_weights, weights / "tiny")
    for kind in BROKEN:
        spoil(shutil.copytree(weights / "tiny", weights / kind), kind)
    (weights / "only notes").mkdir()
    (weights / "only notes" / "notes.txt").touch()
    (weights / "a folder" / "config.json").mkdir(parents=True)
    (weights / "dangling").mkdir()
    (weights / "dangling" / "config.json").symlink_to("/nowhere/at/all")
    absent = "config.json: no such file"
    expected = {kind: words for kind, (*_, words) in BROKEN.items()} | {"only notes": absent, "dangling": absent}
    expected["a folder"] = "config.json: not a file"
    there = installed(weights)
    assert there.names == ["tiny"] and list(there.faults) == sorted(expected)
    for name, words in expected.items():
        fault = there.faults[name]
        assert words in fault and "\n" not in fault and "/" not in fault and len(fault) <= models.MAX_FAULT, fault
        one_line(lambda name=name: there.get(name), f"'{name}'", "must be one of tiny")
        assert there.card(name) == "" and there.report(name) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("a\nb /home/me/x/file, https://host/a/b and/or"), "a b file, https://host/a/b and/or"),
        (KeyError("x" * 9999), "'" + "x" * (models.MAX_FAULT - 2) + "…"),
    ],
    ids=["no message", "paths", "long"],
)
def test_whatever_loading_raises_is_one_line_without_paths(weights, monkeypatch, error, line):
    def fail(folder, **_):
        raise error

    monkeypatch.setattr(Pipeline, "from_pretrained", fail)
    assert installed(weights).faults == {"tiny": line}


@pytest.mark.parametrize("name", ["two\nlines", "caf\udce9"])
def test_a_name_that_no_page_can_show_is_escaped(weights, name):
    (weights / "tiny").rename(weights / name)
    there = installed(weights)
    assert there.names == [ascii(name)] and there.get(ascii(name))


def test_folders_come_change_and_go(weights, loads):
    there = installed(weights)
    first = there.get("tiny")
    shutil.copytree(weights / "tiny", weights / "later")
    assert there.names == ["tiny"]
    there.scan()
    assert there.names == ["later", "tiny"] and there.get("tiny") is first and loads == ["tiny", "later"]
    shutil.rmtree(weights / "later")
    there.scan()
    assert there.names == ["tiny"] and there.faults == {}
    one_line(lambda: there.get("later"), "'later'", "must be one of tiny")
    relabelled(weights / "tiny")
    assert there.get("tiny") is first and first.labels[0] == "0"
    there.scan()
    assert there.get("tiny").labels[0] == "a" and first.labels[0] == "0" and loads == ["tiny", "later", "tiny"]


def test_what_did_not_change_is_loaded_once(weights, loads):
    spoil(shutil.copytree(weights / "tiny", weights / "broken"), "truncated")
    there = installed(weights)
    (weights / "tiny" / "README.md").write_text("# Tiny")
    there.scan()
    there.scan()
    assert loads == ["broken", "tiny"] and there.card("tiny") == "# Tiny"


def test_a_broken_folder_can_be_mended_and_a_good_one_broken(weights, tiny_weights):
    there = installed(weights)
    held, before = there.get("tiny"), generated(there.get("tiny"))
    spoil(weights / "tiny", "truncated")
    assert torch.equal(generated(held), before)
    there.scan()
    assert there.names == [] and "truncated" in there.faults["tiny"]
    assert torch.equal(generated(held), before)
    shutil.copy(tiny_weights / "denoiser.safetensors", weights / "tiny")
    touched(weights / "tiny" / "denoiser.safetensors")
    there.scan()
    assert there.faults == {} and torch.equal(generated(there.get("tiny")), before)


def test_a_lookup_does_not_wait_for_loading_and_many_scans_load_once(weights, monkeypatch, tiny):
    there, begun, go, loaded = installed(weights), threading.Event(), threading.Event(), []

    def slow(folder, **_):
        begun.set()
        go.wait(10)
        loaded.append(folder.name)
        return tiny

    monkeypatch.setattr(Pipeline, "from_pretrained", slow)
    shutil.copytree(weights / "tiny", weights / "later")
    scans = [threading.Thread(target=there.scan) for _ in range(4)]
    [scan.start() for scan in scans]
    assert begun.wait(10) and there.names == ["tiny"] and there.get("tiny")
    go.set()
    [scan.join() for scan in scans]
    assert there.names == ["later", "tiny"] and loaded == ["later"]


def test_a_model_of_the_hub_is_listed_by_its_id(weights, hub, tiny, tiny_weights, tmp_path):
    card = {"README.md": b"---\nlicense: mit\n---\n# From the Hub"}
    hub.put("owner/name", {path.name: path.read_bytes() for path in tiny_weights.iterdir()} | card)
    there = installed(weights)
    assert there.add(" owner/name ") == "owner/name" and hub.asked == ["owner/name"]
    assert there.names == ["tiny", "owner/name"] and torch.equal(generated(there.get("owner/name")), generated(tiny))
    assert there.card("owner/name") == "# From the Hub"
    shutil.rmtree(tmp_path / "cache")
    there.scan()
    assert there.get("owner/name")


@pytest.mark.parametrize("name", ["", "name", "weights/tiny", "./a/b", "/a/b", "http://host/a", "a/b/c", "a b/c", None])
def test_what_is_no_id_never_reaches_the_hub(weights, hub, name):
    there = installed(weights)
    one_line(lambda: there.add(name), "must be owner/name")
    assert hub.asked == [] and there.names == ["tiny"]


def test_users_cannot_open_folders_of_the_machine(weights, hub, tmp_path, monkeypatch):
    shutil.copytree(weights / "tiny", tmp_path / "private" / "model")
    monkeypatch.chdir(tmp_path)
    there = installed(weights)
    for name in ("private/model", "private/.."):
        one_line(lambda name=name: there.add(name), "must be owner/name")
    assert hub.asked == []


def test_the_oldest_model_of_the_hub_goes_but_never_the_configured_one(tmp_path, hub, tiny, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: tiny)
    for name in ("our/model", *(f"owner/m{i}" for i in range(MAX_HUB + 2))):
        hub.put(name, {"config.json": b"{}"})
    there = installed(tmp_path / "absent", hub="our/model")
    for i in range(MAX_HUB + 2):
        there.add(f"owner/m{i}")
    there.add("owner/m2")
    assert there.names == ["our/model", *(f"owner/m{i}" for i in (3, 4, 5, 2))]
    one_line(lambda: there.get("owner/m0"), "must be one of our/model")


def test_adding_again_loads_what_changed(weights, hub, loads, tmp_path):
    there = installed(weights)
    there.add("owner/name")
    first = there.get("owner/name")
    there.add("owner/name")
    assert there.get("owner/name") is first
    shutil.copytree(weights / "tiny", tmp_path / "changed")
    relabelled(tmp_path / "changed")
    hub.put("owner/name", tmp_path / "changed")
    there.add("owner/name")
    assert there.get("owner/name").labels[0] == "a" and loads == ["tiny", *hub.repositories["owner/name"].commits]


def test_a_hub_that_fails_leaves_everything_as_it_was(weights, hub, tmp_path):
    there = installed(weights)
    there.add("owner/name")
    one_line(lambda: there.add("owner/absent"), "owner/absent", "Repository Not Found")
    with hub.unreachable():
        one_line(lambda: there.add("owner/other"), "owner/other", "refused")
    shutil.copytree(weights / "tiny", tmp_path / "spoilt")
    spoil(tmp_path / "spoilt", "truncated")
    hub.put("owner/other", tmp_path / "spoilt")
    one_line(lambda: there.add("owner/other"), "owner/other cannot be used: denoiser.safetensors: truncated")
    assert there.names == ["tiny", "owner/name"] and there.faults == {}


def test_an_error_of_the_hub_does_not_tell_where_files_are(weights, monkeypatch):
    def failing(name):
        raise OSError("404 Client Error.\n\nRepository /home/me/.cache/x/y not found.")

    monkeypatch.setattr(models, "fetch", failing)
    there = installed(weights)
    one_line(lambda: there.add("owner/name"), "404 Client Error. Repository y not found.")
    assert there.names == ["tiny"]


def test_the_configured_model_stands_in_where_no_folder_is_usable(weights, hub):
    hub.put("our/model", weights / "tiny")
    assert installed(weights, hub="our/model").names == ["tiny"] and hub.asked == []
    spoil(weights / "tiny", "truncated")
    there = installed(weights, hub="our/model\n")
    there.scan()
    assert there.names == ["our/model"] and list(there.faults) == ["tiny"] and hub.asked == ["our/model"]


def test_a_configured_model_that_cannot_be_had_is_listed_and_asked_for_once(tmp_path, hub, tiny_weights):
    there = installed(tmp_path / "absent", hub="our/model")
    there.scan()
    assert there.names == [] and "Not Found" in there.faults["our/model"] and hub.asked == ["our/model"]
    assert there.card("our/model") == "" and there.report("our/model") is None
    one_line(lambda: there.get("our/model"), "Not Found", "there is none to use")
    hub.put("our/model", tiny_weights)
    assert there.add("our/model") == "our/model" and there.faults == {} and there.names == ["our/model"]


def test_a_report_is_an_object_or_none(weights):
    there, file = installed(weights), weights / "tiny" / "report.json"
    assert there.report("tiny") is None and there.report("absent") is None
    for data in (b"[1]", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000):
        file.write_bytes(data)
        assert there.report("tiny") is None
    file.write_text('{"loss_against_t": {"t": [0.5]}}')
    assert there.report("tiny") == {"loss_against_t": {"t": [0.5]}}


def test_a_card_is_read_whatever_it_is(weights):
    there = installed(weights)
    assert there.card("tiny") == "" and there.card("absent") == "" and there.card(None) == ""
    (weights / "tiny" / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n\r\n# T\xffiny\r\n")
    assert there.card("tiny") == "# T�iny"
    (weights / "tiny" / "README.md").unlink()
    (weights / "tiny" / "README.md").mkdir()
    assert there.card("tiny") == ""


def test_plain_text_of_a_card_stays():
    text = "# A\n\n1 < 2, 3 > 2 & `x <= y`\n\n| a |\n|---|\n\n---\n\n[web](https://host/a) [here](#figures)\n\nWell!"
    assert plain_markdown(text) == plain_markdown("---\na: b\n---\n" + text) == text
    assert plain_markdown("see <https://host/a>") == "see https://host/a"
    assert plain_markdown("---\nno end") == "---\nno end"
    assert plain_markdown("as [told there](../train/README.md).") == "as told there."


HOSTILE = [
    "<script>alert(1)</script>",
    "<scr<b>ipt>alert(1)</scr</b>ipt>",
    "<img src=x onerror=alert(1)//",
    "<<b>svg/onload=alert(1)>",
    "<a href='>'><iframe src=//host>",
    "[x](javascript:alert(1))",
    "[x]( \n javascript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](JaVa&#115;cript:alert(1))",
    "[x](file.md)",
    "[x][y]\n\n[y]: javascript:alert(1)",
    "[x]\n\n> [x]:\n> javascript:alert(1)",
    "<javascript:alert(1)>",
    "[x]![a](b)(javascript:alert(1))",
    "<![a](b)script>alert(1)",
    "![t](https://host/track.png)",
    "![u]\n\n[u]: https://host/track.png",
    "!![a](b)[c](https://host/track.png)",
    "!<b>[c](https://host/track.png)",
    "![a](https://host/(b).png)",
    "[![badge](https://host/b.svg)](https://host/a)",
    "!\0[c](https://host/track.png) <\0script>",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_card_can_open_no_tag_no_image_and_no_other_link(text):
    for card in (text, f"---\na: b\n---\n{text}", f"> {text}", f"```\n{text}\n```", text.replace("\n", "\r")):
        shown = plain_markdown(card)
        assert not re.search("<[a-zA-Z/!?]", shown) and "![" not in shown and "\0" not in shown
        for opening in ("](", "]:"):
            for rest in shown.split(opening)[1:]:
                assert rest.lstrip().startswith(("https://", "http://", "#")), shown


@pytest.mark.parametrize("part", ["!", "<a", "![", "](", "<!--", "---\n", "[x]:\n", " a ", "<", "\n"], ids=ascii)
def test_a_long_card_is_cut(part):
    """Long enough that a pattern which looks back would take hours."""
    shown = plain_markdown("# Card\n" + part * (2**18 // len(part)))
    assert len(shown) <= MAX_CARD and shown.startswith("# Card")
