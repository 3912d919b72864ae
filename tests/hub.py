"""A stand-in for the Hub on this machine: the routes by which its client makes repositories, uploads and downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from r2id import hub as r2id_hub

OWNERS = {"writer": "owner", "reader": None}  # token → the name below which it may write


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # hash → every file, the newest last

    def at(self, revision: str) -> str | None:
        """The hash of a branch or commit."""
        return next(reversed(self.commits)) if revision == "main" else revision if revision in self.commits else None


class Hub:
    """Large files are those of safetensors; they are kept by their sha256."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []  # "METHOD /path", without what a query adds
        self.failing: str | None = None  # pattern of requests that are answered with 500
        self.sized = True  # whether it tells how large files are
        hub = self

        class Handler(Answer):
            def __init__(self, *args):
                self.hub = hub
                super().__init__(*args)

        self.handler, self.address = Handler, ("127.0.0.1", 0)
        self.start()

    def start(self) -> None:
        self.server = ThreadingHTTPServer(self.address, self.handler)
        self.address = self.server.server_address  # the port stays its own
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, name: str, files: dict[str, bytes] | Path) -> str:
        """A commit of these files, or of those of a folder, in place of what is there. Returns its hash."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in sorted(files.iterdir())}
        repository = self.repositories.setdefault(name, Repository(private=False, commits={}))
        commit = digest(repr((name, len(repository.commits), sorted(files.items()))).encode(), 40)
        repository.commits[commit] = files
        self.large |= {digest(data): data for path, data in files.items() if is_large(path)}
        return commit

    @property
    def asked(self) -> list[str]:
        """The repositories that somebody wanted to know about, in order."""
        return [found[1] for text in self.requests if (found := re.fullmatch(f"GET /api/models/{NAME}", text))]

    @contextmanager
    def unreachable(self):
        self.stop()
        try:
            yield
        finally:
            self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    @property
    def store(self) -> str:
        """Where large files are: under another name of this machine, which is to see no token."""
        return f"http://localhost:{self.address[1]}/large"


@contextmanager
def asking(url: str, cache: Path) -> Iterator[None]:
    """The Hub's client of this process asks there, does not wait long, and keeps what it gets in the folder `cache`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(huggingface_hub.model_info.__self__, "endpoint", url)
        patch.setattr(r2id_hub, "HUB_TIMEOUT_SECONDS", 0.3)
        yield


@contextmanager
def hub_for(cache: Path) -> Iterator[Hub]:
    """A Hub of its own that this process asks."""
    hub = Hub()
    try:
        with asking(hub.url, cache):
            yield hub
    finally:
        hub.stop()


class Refusal(Exception):
    """status, the Hub's code for it, its message."""


class Answer(BaseHTTPRequestHandler):
    hub: Hub
    timeout = 10

    def log_message(self, *_):
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        body = self.read()
        try:
            if self.hub.failing and re.search(self.hub.failing, request):
                raise Refusal(500, "", "something went wrong")
            for pattern, act in ROUTES.items():
                if match := re.fullmatch(pattern, request):
                    return act(self, body, *match.groups())
            raise Refusal(404, "", f"no route {request}")
        except Refusal as refusal:
            status, code, message = refusal.args
            self.send(b"", status, {"X-Error-Code": code, "X-Error-Message": message})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, body: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token is not None and token not in OWNERS:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return token

    def without_token(self) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "", "a token, sent to a stranger")

    def may_write(self, name: str) -> None:
        token = self.token()
        if token is None:
            raise Refusal(401, "", "Invalid username or password.")
        if OWNERS[token] != name.split("/")[0]:
            raise Refusal(403, "", "You don't have the rights to write there")

    def repository(self, name: str) -> Repository:
        token, repository = self.token(), self.hub.repositories.get(name)
        if repository is None or repository.private and OWNERS.get(token) != name.split("/")[0]:
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        return repository

    def snapshot(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(name)
        if (commit := repository.at(revision)) is None:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return commit, repository.commits[commit]

    # routes: the body, then what the pattern found

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        self.may_write(name)
        there = name in self.hub.repositories
        self.hub.repositories.setdefault(
            name, Repository(wanted.get("visibility") == "private", {digest(b"", 40): {".gitattributes": b"\n"}})
        )
        self.json({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def info(self, body: bytes, name: str, revision: str | None) -> None:
        commit, files = self.snapshot(name, revision or "main")
        siblings = [{"rfilename": path, "blobId": oid(data)} for path, data in files.items()]
        for sibling, data in zip(siblings, files.values(), strict=True):
            sibling |= {"size": len(data)} if self.hub.sized else {}
        private = self.hub.repositories[name].private
        self.json({"id": name, "sha": commit, "private": private, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        entries = []
        for path, data in self.snapshot(name, revision)[1].items():
            entries.append({"type": "file", "path": path, "size": len(data), "oid": oid(data)})
            if is_large(path):
                entries[-1]["lfs"] = {"oid": digest(data), "size": len(data), "pointerSize": 130}
        self.json(entries)

    def valid_yaml(self, body: bytes) -> None:
        self.json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self.may_write(name)
        files, there = json.loads(body)["files"], self.snapshot(name, revision)[1]
        self.json(
            {
                "files": [
                    {
                        "path": (path := file["path"]),
                        "uploadMode": "lfs" if is_large(path) else "regular",
                        "shouldIgnore": False,
                        "oid": oid(there[path], large=is_large(path)) if path in there else None,
                    }
                    for file in files
                ]
            }
        )

    def batch(self, body: bytes, name: str) -> None:
        self.may_write(name)
        objects = []
        for wanted in json.loads(body)["objects"]:
            objects.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in self.hub.large:
                objects[-1]["actions"] = {"upload": {"href": f"{self.hub.store}/{wanted['oid']}"}}
        self.json({"transfer": "basic", "objects": objects})

    def put_large(self, body: bytes, key: str) -> None:
        self.without_token()
        if digest(body) != key:
            raise Refusal(400, "", "not what was announced")
        self.hub.large[key] = body
        self.send(b"")

    def get_large(self, body: bytes, key: str) -> None:
        self.without_token()
        self.send(self.hub.large[key])

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self.may_write(name)
        parent, files = self.snapshot(name, revision)
        files = dict(files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = digest(body + parent.encode(), 40)
        self.hub.repositories[name].commits[commit] = files
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.json({"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        commit, files = self.snapshot(name, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid(files[path])}"'}
        if not is_large(path):
            return self.send(files[path], headers=headers)
        key = digest(files[path])
        headers |= {"X-Linked-ETag": f'"{key}"', "X-Linked-Size": len(files[path])}
        self.send(b"", 302, headers | {"Location": f"{self.hub.store}/{key}"})


NAME, WORD = "([^/]+/[^/]+)", "([^/]+)"
ROUTES: dict[str, Callable] = {
    "POST /api/repos/create": Answer.create,
    f"GET /api/models/{NAME}(?:/revision/{WORD})?": Answer.info,
    f"GET /api/models/{NAME}/tree/{WORD}": Answer.tree,
    "POST /api/validate-yaml": Answer.valid_yaml,
    f"POST /api/models/{NAME}/preupload/{WORD}": Answer.preupload,
    f"POST /{NAME}.git/info/lfs/objects/batch": Answer.batch,
    f"PUT /large/{WORD}": Answer.put_large,
    f"(?:GET|HEAD) /large/{WORD}": Answer.get_large,
    f"POST /api/models/{NAME}/commit/{WORD}": Answer.commit,
    f"(?:GET|HEAD) /{NAME}/resolve/{WORD}/(.+)": Answer.resolve,
}


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def digest(data: bytes, length: int = 64) -> str:
    return hashlib.sha256(data).hexdigest()[:length]


def oid(data: bytes, *, large: bool = False) -> str:
    """The name of a file's content: its sha256 where it is large, else git's."""
    return digest(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
