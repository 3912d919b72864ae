"""The decoder in the browser's GPU: the same images as the server's, and a page that needs no server. Software GL."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, until

from r2id import R2IR, Latent, Pipeline
from r2id.demo import export_page, web_decoder
from r2id.demo.word import resample_row
from r2id.interpolation import interpolate_tiles
from r2id.position import FULL, window_of

SHIPPED = dict(features=28, decoder_harmonics=4, pixel_width=64)
MODELS = {
    "shipped sizes": dict(decoder_size=64, latent_channels=24, **SHIPPED),
    "colour, no border": dict(channels=3, border_rings=0, linear_codec=False, background=(0.25, 0.5, 1.0), fit="cover"),
    "one ring, dense": dict(border_rings=1, decoder_size=1024, latent_channels=3),
    "high frequencies": dict(base_frequency=16.0, decoder_harmonics=8),  # a deep zoom shows something
}
DEEP = (0.61, 0.33, 0.61 + 1 / 4096, 0.33 + 1 / 4096)
VIEWS = {  # cells, aspect of the frame, views: height, width, fit, region
    "shipped sizes": [
        ((8, 8), 1.0, [(8, 8, "contain", FULL), (64, 64, "contain", FULL), (33, 57, "stretch", FULL)]),
        ((4, 7), 7 / 4, [(40, 40, "contain", FULL), (50, 70, "cover", (0.2, 0.1, 0.45, 0.2))]),
    ],
    "colour, no border": [
        ((4, 4), 1.0, [(64, 64, "cover", FULL), (30, 90, "contain", FULL)]),
        ((16, 16), 0.7, [(100, 60, "stretch", (0.0, 0.5, 0.125, 1.0)), (256, 256, "contain", FULL)]),
        ((1, 1), 1.0, [(20, 30, "contain", FULL)]),
    ],
    "one ring, dense": [
        ((8, 8), 1.0, [(8, 8, "contain", FULL), (1024, 1024, "contain", FULL), (60, 256, "contain", FULL)]),
        ((7, 4), 0.5, [(100, 77, "cover", (0.3, 0.3, 0.31, 0.35))]),
    ],
    "high frequencies": [
        ((8, 8), 1.0, [(64, 64, "contain", DEEP), (60, 90, "cover", DEEP)]),
        ((7, 4), 0.5, [(64, 64, "contain", DEEP), (60, 90, "stretch", DEEP)]),
    ],
}
SCRIPT = """
window.bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
window.text = pixels => {
  let all = '';
  for (let at = 0; at < pixels.length; at += 8192) all += String.fromCharCode(...pixels.subarray(at, at + 8192));
  return btoa(all);
};
window.create = async (model, options) => {
  window.troubles = [];
  const onTrouble = reason => troubles.push(reason);
  window.decoder = R2ID.createDecoder(document.createElement('canvas'), await R2ID.unpack(bytes(model)),
    { budget: Infinity, onTrouble, ...options });
};
window.show = async latent => {
  const { metadata, tensors: { token: { data, shape: [count, h, w] } } } = await R2ID.unpack(bytes(latent));
  decoder.setLatent(data, h, w, metadata.aspect, count);
};
"""


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def pipeline(tiny, *, background=(0.0,), fit="contain", decoder_size=32, **options) -> Pipeline:
    """A pipeline with random weights of these sizes, scaled so that images have contrast."""
    sizes = dict(channels=1, features=6, decoder_harmonics=3, pixel_width=10, latent_channels=3, linear_codec=True)
    torch.manual_seed(0)
    resampler = R2IR(config := replace(tiny.config.resampler, **sizes | options))
    with torch.no_grad():
        resampler.coefficients_out.weight.mul_(2)
        if config.border_rings:
            resampler.border_token.normal_()
    rest = dict(channels=config.channels, background=background, fit=fit, decoder_size=decoder_size, resampler=config)
    rest |= dict(latent_mean=(0.0,) * config.latent_channels, latent_std=(1.0,) * config.latent_channels)
    denoiser_config = replace(tiny.config.denoiser, latent_channels=config.latent_channels)
    rest |= dict(denoiser=denoiser_config)
    denoiser = type(tiny.denoiser)(denoiser_config)
    return Pipeline(replace(tiny.config, **rest), resampler, denoiser, device="cpu", decoder_dtype="float32")


def latent_of(pipe: Pipeline, cells: tuple[int, int], aspect: float) -> Latent:
    generator = torch.Generator().manual_seed(1)
    return Latent(torch.rand(1, pipe.config.latent_channels, *cells, generator=generator) * 2 - 1, aspect)


@pytest.fixture
def page(software):
    page = software.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.set_content("<p>")
    page.add_script_tag(content=web_decoder.script() + SCRIPT)
    yield page
    page.close()


def pixels_of(page, view: dict, pipe: Pipeline, call: str = "render") -> np.ndarray:
    """What the browser draws, (C, H, W) in 0…255."""
    drawn = page.evaluate(f"view => {{ decoder.{call}(view); return text(decoder.readPixels()) }}", view)
    shape = (view["height"], view["width"], 4)
    return (
        np.frombuffer(base64.b64decode(drawn), np.uint8).reshape(shape)[..., : pipe.config.channels].transpose(2, 0, 1)
    )


def assert_same(drawn_CHW: np.ndarray, image_CHW: torch.Tensor) -> None:
    """99.9 % of the pixels within 1/255, all within 2/255, of an image that is not flat."""
    wanted_CHW = image_CHW.numpy() * 255
    assert wanted_CHW.std() > 5, "a flat image shows nothing"
    fault_HW = np.abs(drawn_CHW - wanted_CHW).max(axis=0)
    assert fault_HW.max() <= 2 and np.mean(fault_HW <= 1) >= 0.999, (fault_HW.max(), np.mean(fault_HW <= 1))


@pytest.mark.parametrize("name", MODELS)
def test_the_browser_decodes_the_image_that_the_pipeline_decodes(page, tiny, name):
    pipe = pipeline(tiny, **MODELS[name])
    page.evaluate("model => create(model)", text(web_decoder.pack_model(pipe)))
    for cells, aspect, views in VIEWS[name]:
        latent = latent_of(pipe, cells, aspect)
        page.evaluate("latent => show(latent)", text(web_decoder.pack_latent(pipe, latent)))
        for height, width, fit, region in views:
            drawn_CHW = pixels_of(page, dict(height=height, width=width, fit=fit, region=region), pipe)
            image_BCHW = pipe.resample(latent, size=(height, width), fit=fit, region=region)
            assert_same(drawn_CHW, image_BCHW[0])
    assert page.evaluate("decoder.gl.getError()") == 0 and page.evaluate("troubles") == []


@pytest.mark.parametrize("name", ["letters", "mnist"])
def test_the_browser_decodes_what_shipped_weights_generate(page, name):
    weights = Path(__file__).parents[2] / "weights" / name
    pipe = Pipeline.from_pretrained(weights, device="cpu", decoder_dtype="float32")
    page.evaluate("model => create(model)", text(web_decoder.pack_model(pipe)))
    for cells in ((4, 4), (8, 8), (6, 9), (16, 16)):
        latent = pipe.diffuse([3], latent_size=cells, seed=3, steps=4)
        page.evaluate("latent => show(latent)", text(web_decoder.pack_latent(pipe, latent)))
        for height, width, region in ((8, 8, FULL), (96, 128, FULL), (64, 64, (0.3, 0.3, 0.6, 0.6))):
            view = dict(height=height, width=width, fit="contain", region=region)
            image_BCHW = pipe.resample(latent, size=(height, width), fit="contain", region=region)
            assert_same(pixels_of(page, view, pipe), image_BCHW[0])


def test_an_image_of_as_many_numbers_is_enlarged_in_the_same_view_beside_the_decoded_one(page, tiny):
    pipe = pipeline(tiny, decoder_size=64, channels=3, background=(0.25, 0.5, 1.0), latent_channels=24)
    latent, view = latent_of(pipe, (4, 7), 7 / 4), dict(height=90, width=80, fit="contain", region=[0.0, 0.1, 0.5, 0.7])
    page.evaluate("model => create(model)", text(web_decoder.pack_model(pipe)))
    page.evaluate("latent => show(latent)", text(web_decoder.pack_latent(pipe, latent)))
    small = page.evaluate("decoder.smallSize")
    height, width = small["height"], small["width"]
    assert (height, width) == (11, 20)  # of 4 x 7 x 24 / 3 = 224 pixels in a frame of 7:4
    window = window_of((90, 80), aspect=latent.aspect, fit="contain", region=view["region"])
    small_BCHW = pipe.resample(latent, size=(height, width), fit="stretch") * 2 - 1
    background_C, boxes = torch.tensor(pipe.config.background) * 2 - 1, iter([(0, 0, 80, 90)])
    [(_, tile)] = interpolate_tiles(small_BCHW, window, width=80, background_C=background_C, boxes=boxes)
    enlarged_CHW = (tile[0] + 1) / 2
    assert_same(pixels_of(page, view, pipe, "renderEnlarged"), enlarged_CHW)

    decoded_CHW = pipe.resample(latent, size=(90, 80), fit="contain", region=view["region"])[0]
    script = """view => { decoder.renderEnlarged({ ...view, columns: [0, 30] });
        decoder.render({ ...view, columns: [30, 80] }); return text(decoder.readPixels()) }"""
    drawn = np.frombuffer(base64.b64decode(page.evaluate(script, view)), np.uint8).reshape(90, 80, 4)[..., :3]
    assert_same(drawn.transpose(2, 0, 1), torch.cat((enlarged_CHW[..., :30], decoded_CHW[..., 30:]), dim=2))


def test_latents_side_by_side_are_the_servers_row(page, tiny):
    pipe = pipeline(tiny, **MODELS["shipped sizes"])
    generator = torch.Generator().manual_seed(2)
    latent = Latent(torch.rand(3, 24, 8, 6, generator=generator) * 2 - 1, 0.75)
    page.evaluate("model => create(model)", text(web_decoder.pack_model(pipe)))
    page.evaluate("latent => show(latent)", text(web_decoder.pack_latent(pipe, latent)))
    for region in (FULL, (0.25, 0.5, 0.75, 1.0), (0.35, 0.2, 0.6, 0.45)):
        view = dict(height=64, width=144, fit="stretch", region=region)
        assert_same(pixels_of(page, view, pipe), resample_row(pipe, latent, height=64, region=region))
    size = page.evaluate("decoder.smallSize")
    small_BCHW = pipe.resample(latent, size=(size["height"], size["width"] // 3), fit="stretch") * 2 - 1
    small_BCHW = torch.cat(list(small_BCHW), dim=-1)[None]
    window, background_C = window_of((64, 144), aspect=2.25, fit="stretch"), torch.tensor(pipe.config.background)
    boxes = iter([(0, 0, 144, 64)])
    [(_, tile)] = interpolate_tiles(small_BCHW, window, width=144, background_C=background_C * 2 - 1, boxes=boxes)
    view = dict(height=64, width=144, fit="stretch", region=FULL)
    assert_same(pixels_of(page, view, pipe, "renderEnlarged"), (tile[0] + 1) / 2)


def test_a_thousand_latents_leave_no_textures_and_no_memory(page, tiny):
    pipe = pipeline(tiny)
    latents = [text(web_decoder.pack_latent(pipe, latent_of(pipe, cells, 1.0))) for cells in ((4, 4), (5, 3))]
    page.evaluate("model => create(model)", text(web_decoder.pack_model(pipe)))
    script = """async latents => {
      const { gl } = decoder, alive = { Texture: 0, Framebuffer: 0, Buffer: 0, Shader: 0, Program: 0 };
      for (const kind of Object.keys(alive)) {
        for (const [verb, by] of [['create', 1], ['delete', -1]]) {
          const own = gl[verb + kind].bind(gl);
          gl[verb + kind] = (...each) => { if (by === 1 || each[0]) alive[kind] += by; return own(...each) };
        }
      }
      const unpacked = [];
      for (const latent of latents) unpacked.push((await R2ID.unpack(bytes(latent))).tensors.token);
      const measured = [];
      for (let n = 0; n < 1000; n++) {
        const { data, shape: [, h, w] } = unpacked[n % 2];
        decoder.setLatent(data.slice(), h, w, 1);
        const { milliseconds } = decoder.render({ width: 8 + n % 2, height: 8, supersample: 1 });
        if (n % 20 === 0) decoder.renderEnlarged({ width: 8, height: 8 });
        if (n % 250 === 249) {
          await milliseconds;
          gc();
          measured.push([performance.memory.usedJSHeapSize, Object.values(alive).reduce((sum, each) => sum + each)]);
        }
      }
      return measured;
    }"""
    measured = page.evaluate(script, latents)
    memory, objects = zip(*measured, strict=True)
    assert len(set(objects[1:])) == 1, objects
    assert memory[-1] < memory[1] + 2**20, memory
    counts = page.evaluate("() => { decoder.dispose(); return decoder.textures.size }")
    assert counts == 0 and page.evaluate("decoder.render({ width: 8, height: 8 })") is None


def test_a_lost_context_and_a_slow_gpu_are_reported_once(page, tiny):
    pipe = pipeline(tiny)
    model, latent = (
        text(web_decoder.pack_model(pipe)),
        text(web_decoder.pack_latent(pipe, latent_of(pipe, (4, 4), 1.0))),
    )
    frames = (
        """async () => { for (let n = 0; n < 6; n++) await decoder.render({ width: 8, height: 8 }).milliseconds }"""
    )
    for budget, troubles in ((0, ["slow"]), (1e9, [])):
        page.evaluate("([model, budget]) => create(model, { budget })", [model, budget])
        page.evaluate("latent => show(latent)", latent)
        page.evaluate(frames)
        assert page.evaluate("troubles") == troubles
    page.evaluate("() => decoder.gl.getExtension('WEBGL_lose_context').loseContext()")
    until(page, "troubles.length > 0")
    assert page.evaluate("troubles") == ["lost"] and page.evaluate("decoder.lost")
    page.evaluate("latent => show(latent)", latent)
    assert page.evaluate("decoder.render({ width: 8, height: 8 })") is None


def test_what_cannot_be_decoded_here_is_one_line(page, tiny):
    pipe = pipeline(tiny)
    model = text(web_decoder.pack_model(pipe))
    refused = """async ([model, act]) => {
        try { await eval(act)(model); return null } catch (error) { return error.message } }"""
    no_gl = """async model => R2ID.createDecoder({ getContext: () => null }, await R2ID.unpack(bytes(model)))"""
    assert page.evaluate(refused, [model, no_gl]) == "no WebGL2 with float textures here"
    page.evaluate("model => create(model)", model)
    early = "() => decoder.render({ width: 8, height: 8 })"
    assert "no latent yet" in page.evaluate(refused, [model, early])
    page.evaluate("latent => show(latent)", text(web_decoder.pack_latent(pipe, latent_of(pipe, (4, 4), 1.0))))
    for view, words in {
        "{ width: 0, height: 8 }": "size 8 x 0",
        "{ width: 8, height: 8, fit: 'wide' }": "fit wide: must be one of contain, cover, stretch",
        "{ width: 8, height: 8, region: [0.5, 0, 0.5, 1] }": "region 0.5,0,0.5,1",
    }.items():
        assert words in page.evaluate(refused, [model, f"() => decoder.render({view})"])
    assert "must be 4 x 4" in page.evaluate(refused, [model, "() => decoder.setLatent(new Uint16Array(3), 4, 4, 1)"])


def test_an_exported_page_opens_from_disk_without_a_network_and_decodes_zooms_and_compares(
    software, tiny_weights, tmp_path
):
    export_page.main([str(tiny_weights), str(tmp_path / "out.html"), "--labels", "3,7", "--seeds", "0-2,5"])
    context = software.new_context(viewport=dict(width=900, height=900), offline=True)
    page, requests = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "out.html").as_uri())
    page.wait_for_selector('[data-ready="3"]')
    caption = page.locator("#caption")
    assert (
        "Label 3, seed 0: 512 × 512 pixels decoded from 4 × 4 cells × 3 numbers = 48 numbers, 1 ×"
        in caption.inner_text()
    )
    assert page.locator("#seeds button").count() == 4
    drawn = """() => document.querySelector('#view canvas').toDataURL()"""
    whole = page.evaluate(drawn)
    box = page.locator("#view canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.3)
    for _ in range(24):
        page.mouse.wheel(0, -100)
    until(page, "document.querySelector('#caption').innerText.includes('4,096 ×')")
    assert page.evaluate(drawn) != whole
    page.locator("#view").press("0")
    until(page, "document.querySelector('#caption').innerText.endsWith(' 1 ×')")
    until(page, "whole => document.querySelector('#view canvas').toDataURL() === whole", whole)
    page.get_by_role("button", name="Compare with enlarged").click()
    until(page, "document.querySelector('#caption').innerText.includes('enlarged from 7 × 7 pixels')")
    page.get_by_role("button", name="7", exact=True).click()
    page.wait_for_selector('[data-ready="7"]')
    page.get_by_role("button", name="seed 5").click()
    until(page, "document.querySelector('#caption').innerText.includes('Label 7, seed 5')")
    page.get_by_label("Aspect ratio").press("ArrowRight")
    until(page, "document.querySelector('#caption').innerText.includes('512 × 508 pixels')")
    assert not page.locator("#fault").is_visible() or "slowly" in page.locator("#fault").inner_text()
    assert len(requests) == 1 and requests[0].startswith("file:"), requests
    context.close()
