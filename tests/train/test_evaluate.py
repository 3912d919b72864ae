"""A whole report from a tiny model and 64 digits; every latent is diffused once; bad input is named."""

from __future__ import annotations

import json

import pytest
import torch
from digits import digit_bytes
from grey import in_grey
from PIL import Image

from r2id.latent import Latent
from r2id.pipeline import Pipeline
from train.evaluate import main
from train.evaluation import detail, sections
from train.evaluation.protocol import LARGE, Evaluation, Protocol
from train.evaluation.report import SECTIONS
from train.evaluation.tables import Table

PROTOCOL = Protocol(
    generated=20,
    cells=((4, 4), (6, 9)),
    inputs=(0.5, 2),
    generated_cells=((4, 4), (5, 5)),
    outputs=(4, 8, 16),
    ratios=((9, 16), (16, 9)),
    enlargements=(2, 4, 8),
    consistency=5,
    patch_densities=(8,),
    steps=(1, 2),
    guidances=(1.0,),
)


def missing(*_):
    raise ValueError("somebody: not installed; pip install it")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "SHEET_SIDE", 16)
    monkeypatch.setattr(sections, "SHEET_SIZES", (4, 16))
    for constant, value in (("SIZES", (4, 16)), ("ZOOMS", (1, 8)), ("SHOWN", 16)):
        monkeypatch.setattr(detail, constant, value)
    for judge in ("read_letters", "mobilenet_features"):
        monkeypatch.setattr(detail, judge, missing)


@pytest.fixture
def folder(tmp_path):
    """64 digits in an image folder, 32 of them for training."""
    for number, pixels in enumerate(digit_bytes()):
        place = tmp_path / "data" / ("train" if number < 32 else "test") / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return str(tmp_path / "data")


@pytest.mark.parametrize("sizes, many", [((20,), 2), ((64, 56), 12), ((64, 1), 7)])
def test_large_outputs_are_judged_on_the_first_tenth_of_the_images(sizes, many):
    latents = [Latent(torch.randn(size, 3, 2, 2), 1.0, tuple(range(size)), None) for size in sizes]
    rows = Evaluation.fewer(None, latents, LARGE + 1)
    assert sum(map(len, rows)) == many and rows[0].seeds == (0,)
    assert Evaluation.fewer(None, latents, LARGE) is latents


WAYS_TALL = [("resampled", "4×4", 1), ("diffused", "7×4", 0.56), ("diffused", "4×2", 0.56)]


def test_whole_report(tiny_weights, folder, tmp_path, capsys):
    main([str(tiny_weights), "--data", folder, "--out", str(tmp_path / "out")], PROTOCOL)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    first = {name: report[name][0].get("rows") for name in SECTIONS}

    assert [row["latent"] for row in first["reconstruction"]] == ["4×4", "6×9"]
    assert all(row["MSE on [-1, 1]"] > 0.05 for row in first["reconstruction"])  # the weights are random
    assert [row["output"] for row in first["consistency"]] == [16, 32, 64]
    assert all(row["real images enlarged bicubically (dB)"] > 25 for row in first["consistency"])
    assert report["consistency"][1]["rows"][0]["largest difference"] < 1e-5
    given = report["reconstruction"][1]["rows"]
    assert [row["given at"] for row in given] == ["4×4", "16×16"]
    assert given[1]["interpolated (dB)"] > given[0]["interpolated (dB)"] > 10
    assert [row["latent"] for row in first["accuracy"]] == ["4×4", "5×5", "32 real images"]
    assert first["accuracy"][2]["output 8"] > 0.5 > first["accuracy"][0]["output 8"]
    ways = [(row["ratio"], row["method"], row["latent"], round(row["frame"], 2)) for row in first["aspects"]]
    tall = [("9:16", way, cells, frame) for way, cells, frame in WAYS_TALL]
    wide = [("16:9", way, cells[::-1], {1: 1, 0.56: 1.78}[frame]) for way, cells, frame in WAYS_TALL]
    assert ways == tall + wide
    assert [row["count"] for row in first["fidelity"]] == [20] * 5
    floor, *_, generated = first["fidelity"]
    assert floor["Fréchet distance"] < generated["Fréchet distance"] and floor["accuracy"] > generated["accuracy"]

    for row in first["shape"]:
        assert row["contain: centre, max |Δ|"] < 1e-5 < 1e-3 < row["stretch: centre, max |Δ|"]
    own = Pipeline.from_pretrained(tiny_weights, device="cpu").config.defaults
    varied = [(way, steps, own.guidance) for way in sections.SAMPLERS for steps in (1, 2)]
    settings = [(row["sampler"], row["steps"], row["guidance"]) for row in first["sampler"]]
    assert settings == [*varied, (own.sampler, own.steps, 1.0)]

    assert report["outline"] == [{"title": report["outline"][0]["title"]}] and "fonts" in report["outline"][0]["title"]
    assert "left out; somebody: not installed; pip" in report["reader"][0]["title"]
    note, patches = report["patches"]
    assert "left out; somebody" in note["title"]
    floor, *_, generated = [row["Fréchet distance, judge"] for row in patches["rows"]]
    assert 0 <= floor < generated
    assert [row["latent"] for row in first["closest"]] == ["4×4", "5×5"]
    assert all(row["generated"] > row["real images"] > 0 for row in first["closest"])

    files = {name: [item["file"] for item in report[name] if "file" in item] for name in SECTIONS}
    assert [files[name] for name in ("accuracy", "shape", "sampler", "loss")] == [
        ["accuracy.png"],
        ["shape.png"],
        ["steps.png"],
        ["loss.png"],
    ]
    names = files["sheets"]
    assert names[:3] == ["one_latent.png", "labels.png", "latents.png"]
    assert names[3:] == ["aspect_9x16.png", "aspect_16x9.png", "sizes.png", "zoom.png"]
    with Image.open(tmp_path / "out" / "labels.png") as labels:
        assert labels.size == (10 * 18 + 2, sections.SHEET_SEEDS * 18 + 2)
    written, printed = (tmp_path / "out" / "report.md").read_text(encoding="utf-8"), capsys.readouterr().out
    for item in report["reconstruction"] + report["sheets"]:
        assert item["title"] in written and item["title"] in printed


def test_every_latent_is_diffused_once(tiny_weights, folder, tmp_path, monkeypatch):
    calls, diffuse = [], Pipeline.diffuse

    def counted(self, labels, **options):
        calls.append((options["latent_size"], options["seed"], labels[:3]))
        return diffuse(self, labels, **options)

    monkeypatch.setattr(Pipeline, "diffuse", counted)
    more = ["--generated", "70", "--only", "accuracy,aspects,fidelity", "--out", str(tmp_path)]
    main([str(tiny_weights), "--data", folder, *more], PROTOCOL)
    sizes = [(4, 4), (5, 5), (7, 4), (4, 2), (4, 7), (2, 4)]
    assert calls == [(size, *batch) for size in sizes for batch in ((0, [0, 1, 2]), (64, [4, 5, 6]))]


def test_only_some_sections_on_the_validation_split(tiny_weights, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([str(tiny_weights), "--data", folder, "--split", "validation", "--only", "reconstruction"], PROTOCOL)
    report = json.loads((tmp_path / "runs" / "evaluation" / "tiny" / "report.json").read_text(encoding="utf-8"))
    assert report["setting"]["real images"] == 3
    assert set(report) == {"setting", "protocol", "reconstruction"}


def test_data_without_a_test_split_are_measured_on_validation_images(tiny_weights, folder, tmp_path, capsys):
    (tmp_path / "data" / "test").rename(tmp_path / "elsewhere")
    more = ["--only", "reconstruction", "--out", str(tmp_path / "out")]
    main([str(tiny_weights), "--data", folder, *more], PROTOCOL)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["setting"]["split"] == "validation" and report["setting"]["real images"] == 3
    assert "no test split, only train; add" in capsys.readouterr().out


def test_pixel_space_is_measured_at_its_own_sizes(tiny_pixels, folder, tmp_path):
    in_grey(tiny_pixels, size_multiple=2).save(tmp_path / "pixels")
    main([str(tmp_path / "pixels"), "--data", folder, "--out", str(tmp_path / "out")], PROTOCOL)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = {name: report[name][0].get("rows") for name in SECTIONS}
    assert [row["latent"] for row in rows["reconstruction"]] == ["4×4", "8×8", "16×16"]
    same = {row["latent"]: row["PSNR (dB)"] for row in rows["reconstruction"]}
    assert same["8×8"] > 100 and same["16×16"] > same["4×4"] > 10  # at its own size, the latent is the image
    assert [row["latent"] for row in rows["accuracy"][:-1]] == ["4×4", "8×8", "16×16"]
    assert [row["latent"] for row in rows["aspects"]] == ["8×8", "14×8", "8×4", "8×8", "8×14", "4×8"]
    assert len(report["sheets"]) == 6


def test_table_as_markdown():
    table = Table("Digits", {"latent": "{}", "accuracy": "{:.1%}"}, [("4×4", 0.987)])
    assert table.markdown() == "Digits\n\n| latent | accuracy |\n| --- | --- |\n| 4×4 | 98.7% |"
    assert table.plain() == {"title": "Digits", "rows": [{"latent": "4×4", "accuracy": 0.987}]}


def test_bad_input_is_named(tiny_weights, folder, tmp_path):
    def run(*more, weights=tiny_weights, data=folder):
        main([str(weights), "--data", data, "--out", str(tmp_path / "out"), *more], PROTOCOL)

    with pytest.raises(ValueError, match="--only beauty: must be of reconstruction, consistency"):
        run("--only", "beauty,accuracy")
    with pytest.raises(ValueError, match="generated 19: must be 20 or more"):
        run("--generated", "19")
    with pytest.raises(ValueError, match="limit 0"):
        run("--count", "0")
    with pytest.raises(ValueError, match="no such folder"):
        run(data=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="weights/missing"):
        run(weights="weights/missing")
    with pytest.raises(ValueError, match="none.safetensors: no such file"):
        run("--classifier", "none.safetensors")
    (tmp_path / "data" / "train" / "9").rename(tmp_path / "data" / "train" / "nine")
    with pytest.raises(ValueError, match="labels 0, 1, .*: the model's are 0, 1"):
        run()
    assert not (tmp_path / "out").exists()
