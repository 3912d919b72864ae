"""What tests of bad input share: errors of one line, from a call or from a server."""

import io
import json
import urllib.error
import urllib.request
import zlib

import pytest
from PIL import Image

HANGS = 60  # seconds until a request to a server fails


def check_line(text: str, words: str = "") -> None:
    """Asserts that an error is one line of bounded length, holds these words and shows no temporary folder."""
    assert words in text and 10 < len(text) < 500 and len(text.splitlines()) == 1 and "/tmp/" not in text, text


def refused(call, words: str = "") -> str:
    """The message of the one-line ValueError that `call` raises."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert words in message and 10 < len(message) < 500 and len(message.splitlines()) == 1, message
    return message


class Refused(Exception):
    """What the server says."""


def post(url: str, path: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    """Status and answer; of a call that was accepted, its events."""
    request = urllib.request.Request(f"{url}gradio_api/{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=HANGS) as answer:
            text = answer.read().decode()
        if "event_id" in text:
            with urllib.request.urlopen(
                f"{url}gradio_api/{path}/{json.loads(text)['event_id']}", timeout=HANGS
            ) as more:
                text = more.read().decode()
        return answer.status, text
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def call(url: str, name: str, values: dict) -> list:
    """What an endpoint returns. Raises Refused."""
    status, text = post(url, f"call/{name}", json.dumps({"data": list(values.values())}).encode())
    data = json.loads(text.rpartition("data: ")[2])
    if status != 200 or not text.startswith("event: complete"):
        raise Refused(data["error"])
    return data


def upload(url: str, data: bytes, name: str = "latent.safetensors") -> dict:
    """A file as the endpoints take it."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    status, text = post(url, "upload", head.encode() + data + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    assert status == 200, text
    return {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}


def fetch(file: dict) -> bytes:
    with urllib.request.urlopen(file["url"], timeout=HANGS) as answer:
        return answer.read()


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def turned(image: Image.Image) -> bytes:
    (exif := Image.Exif())[0x0112] = 6
    return file_of(image, exif=exif)


def bomb() -> bytes:
    """A small file that claims to be a grey image of 10^10 pixels."""
    data = bytearray(file_of(Image.new("L", (9, 9))))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)
