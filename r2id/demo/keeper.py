"""What the browser keeps of a session, so that its history outlives a restart of the server and an hour without use.

web/keeper.js stores packed entries of the history. A page that finds its session empty sends them back; like anything
from a browser they are checked before use.
"""

import base64
import hashlib
import json
import secrets
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r2id.demo.models import Models
from r2id.demo.request import MAX_TEXT, GenerateRequest
from r2id.demo.session import MAX_HISTORY, ORDER, Entry, Session, thumbs
from r2id.latent import Latent
from r2id.limits import check_int
from r2id.pipeline import Pipeline

SERVER = secrets.token_hex(8)  # changes with every start of the server
MAX_VALUES = 2**18  # of a latent that is kept: 1 MiB


def keep(session: Session) -> dict[str, Any] | None:
    """The newest entry for the browser; None if it has that already or the latent is too large."""
    entry = session.history[0] if session.history else None
    if entry is None or entry is session.kept or entry.latent.tensor.numel() > MAX_VALUES:
        return None
    session.kept = entry
    return {"server": SERVER, "keep": pack(entry)}


def ask() -> dict[str, Any]:
    """Makes the browser send what it keeps."""
    return {"server": SERVER, "ask": next(ORDER)}


def pack(entry: Entry) -> dict[str, Any]:
    """An entry as JSON can hold it; key: equal for equal entries."""
    with tempfile.TemporaryDirectory() as folder:
        entry.latent.save(file := Path(folder) / "latent.safetensors")
        latent = base64.b64encode(file.read_bytes()).decode()
    values = dict(request=asdict(entry.request), done=entry.done, origin=entry.origin, latent=latent)
    return values | {"key": hashlib.sha256(json.dumps(values).encode()).hexdigest()}


def unpack(kept: Any, models: Models) -> tuple[list[tuple[Pipeline, Entry]], bool]:
    """What a browser has sent → the entries that are valid here, and whether another run of the server made them."""
    if not isinstance(kept, dict) or not isinstance(kept.get("entries"), list):
        return [], False
    entries = []
    for values in kept["entries"][:MAX_HISTORY]:
        try:
            entries.append(_entry(values, models))
        except (KeyError, TypeError, ValueError):  # forged, or of a model that is gone
            continue
    return entries, kept.get("server") != SERVER


def _entry(values: dict[str, Any], models: Models) -> tuple[Pipeline, Entry]:
    request, origin, data = GenerateRequest(**values["request"]), values["origin"], values["latent"]
    if not isinstance(origin, str) or len(origin) > MAX_TEXT or not origin.isprintable():
        raise ValueError("origin: not printable text")
    if not isinstance(data, str) or len(data) > 8 * MAX_VALUES:
        raise ValueError("latent: too large")
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "latent.safetensors").write_bytes(base64.b64decode(data, validate=True))
        latent = Latent.load(file)
    if len(latent) != request.count:
        raise ValueError(f"latent of {len(latent)} rows for {request.count} images")
    pipe = models.get(request.model)
    done = check_int(values["done"], "done", 1, request.steps)
    return pipe, Entry(request, latent, done, tuple(thumbs(pipe.low_priority, latent)), origin)
