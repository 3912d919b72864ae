"""Models by name: a folder of this machine, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import errno
import math
import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import filter_repo_objects

from r2id.checkpoint import CheckpointError

MAX_HUB_BYTES = 2**32
HUB_TIMEOUT_SECONDS = 10.0
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "README.md", "report.json"]
HUB_ID = re.compile(r"(?!weights/)[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")


def fetch(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: an existing folder, or a download of the Hub repository `owner/name` at a revision.

    Without an answer from the Hub (`HF_HUB_OFFLINE=1`, no network) an earlier download is used. Raises CheckpointError,
    also for repositories above MAX_HUB_BYTES.
    """
    name = str(path_or_id)
    if name and os.path.isdir(name):
        return Path(name)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name[:100]!r}: no such folder, and not a Hub id of the form owner/name")
    wanted = {"repo_id": name, "revision": revision, "allow_patterns": HUB_FILES, "etag_timeout": HUB_TIMEOUT_SECONDS}
    try:
        files = huggingface_hub.model_info(
            name, revision=revision, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True
        ).siblings
    except Exception as error:  # The Hub's errors have no base class in common.
        try:
            return Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        except Exception:
            raise CheckpointError(f"{name}: not a local folder, and could not be downloaded: {error}") from error
    wanted_files = filter_repo_objects(files, allow_patterns=HUB_FILES, key=lambda file: file.rfilename)
    total = sum(math.inf if file.size is None else file.size for file in wanted_files)
    if total > MAX_HUB_BYTES:
        raise CheckpointError(f"{name}: {total:,} bytes on the Hub: at most {MAX_HUB_BYTES:,} are downloaded")
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except Exception as error:
        unwritable = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        remedy = "set HF_HOME to a folder that can be written" if unwritable else "try again"
        raise CheckpointError(f"{name}: the download from the Hub failed, {remedy}: {error}") from error
