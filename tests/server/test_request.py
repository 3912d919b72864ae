"""What made an image survives every form that it is written in, and nothing else passes for it."""

import json
import math
import random
from dataclasses import fields, replace
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
from PIL import Image

from r2id.demo.request import (
    LIMITS,
    GenerateRequest,
    ViewRequest,
    from_dict,
    from_query,
    sides,
    to_dict,
    to_python,
    to_query,
)
from r2id.image import to_pil

PLAIN = GenerateRequest("tiny"), ViewRequest()
RICH = (
    GenerateRequest("owner/näme & co", "3", "a=b;#'\"\\", 0.3, 16, 13, "9:16", 7, -2.5, "ddim", 0.7, 2**32 - 1),
    ViewRequest(1023, "1.78", "cover", 0.1, 1 / 3, 63.5),
)


def drawn(seed: int) -> tuple[GenerateRequest, ViewRequest]:
    """A record with every number somewhere in its range, often at an end."""
    draw = random.Random(seed)
    numbers = {
        name: draw.choice([low, high, draw.randint(low, high) if isinstance(low, int) else draw.uniform(low, high)])
        for name, (low, high) in LIMITS.items()
    }
    text = dict(model="m", label="1", other=draw.choice(["", "1", "7"]), shape=draw.choice(["1:1", "4:1", "0.3"]))
    text |= dict(sampler=draw.choice(["ddim", "dpm++"]), ratio=draw.choice(["9:16", "2"]), fit="stretch")
    return from_dict(numbers | text)


RECORDS = [PLAIN, RICH, *map(drawn, range(40))]


def one_line(act, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300 and all(word in text for word in words), text


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record[0].model)
def test_json_and_links_bring_every_record_back(record):
    assert from_dict(json.loads(json.dumps(to_dict(*record)))) == record
    assert from_query(dict(parse_qsl(to_query(*record), keep_blank_values=True, strict_parsing=True))) == record


def test_a_link_says_the_seed_and_what_is_unusual():
    assert to_query(*PLAIN) == "model=tiny&seed=0"
    assert to_query(replace(PLAIN[0], seed=7), replace(PLAIN[1], zoom=2)) == "model=tiny&seed=7&zoom=2.0"
    defaults = {**to_dict(*PLAIN)}
    assert from_query({"model": "tiny"}) == PLAIN and from_query({k: str(v) for k, v in defaults.items()}) == PLAIN


def test_a_link_may_carry_what_others_put_there():
    assert from_query({"model": "tiny", "__theme": "dark", "utm_source": "x"}) == PLAIN


def test_every_field_has_one_name_and_every_number_a_limit():
    names = [field.name for kind in (GenerateRequest, ViewRequest) for field in fields(kind)]
    numbers = [field.name for kind in (GenerateRequest, ViewRequest) for field in fields(kind) if field.type is not str]
    assert len(names) == len(set(names)) and sorted(numbers) == sorted(LIMITS)


def test_numbers_are_plain_whatever_they_came_as():
    request = GenerateRequest("tiny", count=np.int64(2), blend=1, guidance=np.float64(2))
    assert [type(v) for v in (request.count, request.blend, request.guidance)] == [int, float, float]


@pytest.mark.parametrize("ratio, size", [("1:1", (64, 64)), ("16:9", (36, 64)), ("9:16", (64, 36)), ("0.25", (64, 16))])
def test_a_ratio_is_width_to_height_and_the_long_side_stays(ratio, size):
    assert sides(64, ratio)[0] == size
    assert sides(1, ratio)[0] == (1, 1)


def test_exact_sizes_are_a_ratio_of_pixels():
    draw = random.Random(0)
    for _ in range(2000):
        width = draw.randint(1, 8192)
        height = draw.randint(math.ceil(width / 4), min(8192, 4 * width))
        assert ViewRequest(max(width, height), f"{width}:{height}").size == (height, width)


@pytest.mark.parametrize(
    ("made", "label"),
    [
        (GenerateRequest("m"), None),
        (GenerateRequest("m", "3"), "3"),
        (GenerateRequest("m", "3", "7"), "3"),
        (GenerateRequest("m", "3", "7", 1.0), "7"),
        (GenerateRequest("m", "3", "3", 0.4), "3"),
        (GenerateRequest("m", "3", "", 0.4), "3"),
        (GenerateRequest("m", "", "7", 1.0), "7"),
        (GenerateRequest("m", "3", "7", 0.25), {"3": 0.75, "7": 0.25}),
    ],
)
def test_labels_are_what_diffuse_takes(made, label, tiny):
    assert made.labels == [label]
    assert replace(made, count=3).labels == [label] * 3
    assert tiny.diffuse(made.labels, steps=1, seed=0).labels == (label,)


@pytest.mark.parametrize("size_multiple", [1, 2, 3, 4, 7, 8])
def test_the_latent_has_multiples_and_at_most_the_cells_asked_for(size_multiple):
    for cells in range(1, 65):
        for shape in ("1:1", "16:9", "9:16", "4:1", "0.6"):
            request = GenerateRequest("m", cells=cells, shape=shape)
            h, w = request.latent_size(size_multiple)
            assert (
                h % size_multiple == w % size_multiple == 0
                and min(h, w) >= size_multiple
                and h * w <= max(4096, size_multiple**2)
            )
            assert max(h, w) == max(cells // size_multiple, 1) * size_multiple
            assert (
                abs(min(h, w) - max(h, w) * min(request.aspect, 1 / request.aspect)) <= size_multiple / 2
                or min(h, w) == size_multiple
            )


def test_a_row_is_the_same_image_alone(tiny):
    request = GenerateRequest("tiny", "3", "7", 0.5, count=3, cells=4, steps=2, seed=2**32 - 2)
    rows = [request.row(i) for i in range(3)]
    assert [row.seed for row in rows] == [2**32 - 2, 2**32 - 1, 0]
    assert tiny.diffuse(request.labels, steps=1, seed=request.seed).seeds == tuple(row.seed for row in rows)
    assert all(replace(row, count=3, seed=request.seed) == request for row in rows)


def test_a_region_keeps_its_size_and_stays_inside():
    for x in (0.0, 1e-9, 0.2, 0.5, 0.93, 1.0):
        for zoom in (1.0, 1.0000001, 1.7, 3.0, 49.0, 64.0):
            left, top, right, bottom = ViewRequest(x=x, y=1 - x, zoom=zoom).region
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert right - left == pytest.approx(1 / zoom) and bottom - top == pytest.approx(1 / zoom)
            if 0.5 / zoom <= x <= 1 - 0.5 / zoom:
                assert (left + right) / 2 == pytest.approx(x) and (top + bottom) / 2 == pytest.approx(1 - x)


@pytest.mark.parametrize("x", [0, 0.3, 1])
def test_without_zoom_all_is_shown_exactly(x):
    assert ViewRequest(x=x, y=x).region == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("index", range(4))
def test_the_lines_of_python_make_the_same_images(index, tiny, tiny_weights, tmp_path, monkeypatch):
    request, view = [
        (GenerateRequest("tiny", "3", cells=4, steps=2), ViewRequest(24)),
        (
            GenerateRequest("tiny", cells=6, shape="16:9", steps=2, seed=5),
            ViewRequest(30, "3:2", "cover", 0.9, 0.2, 3.0),
        ),
        (
            GenerateRequest("tiny", "1", "8", 0.25, 2, 4, "1:1", 3, 2.0, "ddim", 1.0, 9),
            ViewRequest(16, "0.7", "stretch"),
        ),
        (GenerateRequest("tiny", "1", count=2, cells=7, steps=1, seed=2**32 - 1), ViewRequest(16, zoom=2.0)),
    ][index]
    monkeypatch.chdir(tmp_path)
    exec(to_python(request, view, str(tiny_weights), size_multiple=2), {})
    how = dict(steps=request.steps, guidance=request.guidance, sampler=request.sampler, eta=request.eta)
    how |= dict(latent_size=request.latent_size(2), aspect=request.aspect, seed=request.seed)
    images = tiny.resample(tiny.diffuse(request.labels, **how), size=view.size, fit=view.fit, region=view.region)
    files = ["image.png"] if request.count == 1 else [f"image{i}.png" for i in range(request.count)]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    for file, image in zip(files, images, strict=True):
        assert (np.array(Image.open(file)) == np.array(to_pil(image))).all() and np.ptp(np.array(Image.open(file))) > 0


def test_the_lines_of_python_leave_out_what_makes_no_difference():
    plain, rich = to_python(*PLAIN, "weights/tiny"), to_python(*RICH, "weights/tiny")
    for word in ("aspect=", "eta=", "region=", "* ", "for "):
        assert word not in plain and word in rich
    assert len(plain.splitlines()) == 7


def test_the_lines_of_python_run_no_name(tmp_path, monkeypatch):
    bad = """x"); open('made', 'w'); ("' + \\"""
    text = to_python(GenerateRequest(bad, bad, bad + "2", 0.5), ViewRequest(), bad + "\n", size_multiple=1)
    assert compile(text, "lines", "exec")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        exec(text, {})
    assert not list(tmp_path.iterdir())


def test_a_link_survives_an_address():
    query = to_query(*RICH)
    assert urlencode(dict(parse_qsl(query))) == query and query.isascii() and " " not in query
