"""The large image where the browser decodes it: zoom, pan, handle, cells, sweeps, and when the server takes over."""

import itertools
import time

import numpy as np
import pytest
from conftest import HERE, UserPage, until

PIXELS = """() => { const image = document.querySelector('[data-part=image]');
    return Array.from(image.getContext('2d').getImageData(0, 0, image.width, image.height).data) }"""


def centre(user: UserPage, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
    box = user.part("image").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def pixels(user: UserPage) -> np.ndarray:
    side = user.part("image").evaluate("image => [image.height, image.width, 4]")
    return np.array(user.page.evaluate(PIXELS)).reshape(side)[..., :3]


def rgba(pixels_HWC: np.ndarray) -> list[int]:
    return np.concatenate([pixels_HWC, np.full((*pixels_HWC.shape[:2], 1), 255)], axis=2).flatten().tolist()


def changed(user: UserPage, before_HWC: np.ndarray) -> np.ndarray:
    """The pixels once they differ from these."""
    until(user.page, f"before => ({PIXELS})().some((v, i) => v !== before[i])", arg=rgba(before_HWC))
    return pixels(user)


def test_the_wheel_zooms_to_the_pointer_up_to_4096_times_without_asking_the_server(decoding):
    user = decoding()
    whole = pixels(user)
    user.page.mouse.move(*centre(user, 0.7, 0.4))
    seen = []
    for _ in range(14):
        user.page.mouse.wheel(0, -200)
        user.page.wait_for_timeout(30)
        seen.append(user.part("image").evaluate("image => image.hidden"))
    user.shows(f"64 × 64 pixels at 4,096 × {HERE}")
    assert not any(seen)
    assert user.asked() == []
    assert user.part("map").is_visible()
    link = user.page.evaluate("() => R2ID.stage.view.view")
    assert (link["x"], link["y"], link["zoom"]) == (pytest.approx(0.7, abs=0.01), pytest.approx(0.4, abs=0.01), 4096)
    user.part("screen").focus()
    user.page.keyboard.press("0")
    user.shows(f"64 × 64 pixels {HERE}")
    assert (pixels(user) == whole).all() and user.part("map").is_hidden() and user.asked() == []


def test_two_fingers_pinch_and_one_drags_and_glides(decoding):
    user = decoding(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    x, y = centre(user)
    touch = user.page.context.new_cdp_session(user.page)

    times = itertools.count(time.time(), 0.016)  # seconds; a busy machine sends later than it says

    def send(kind, *points):
        points = [dict(x=a, y=b, id=i) for i, (a, b) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points, timestamp=next(times)))

    send("touchStart", (x - 20, y), (x + 20, y))
    for spread in (30, 45, 60, 80):
        send("touchMove", (x - spread, y), (x + spread, y))
    send("touchEnd")
    user.shows(f"at 4 × {HERE}")
    zoomed = user.page.evaluate("() => R2ID.stage.view.view.x")
    send("touchStart", (x + 60, y))
    for moved in (40, 20, 0, -20):
        send("touchMove", (x + moved, y))
    send("touchEnd")
    dragged = zoomed + 80 / user.part("image").bounding_box()["width"] / 4
    until(user.page, "x => R2ID.stage.view.view.x > x + 0.001", arg=dragged)
    assert user.asked() == []


def test_reduced_motion_does_not_glide(decoding):
    user = decoding(reduced_motion="reduce")
    user.part("screen").focus()
    user.page.keyboard.press("+")
    user.page.keyboard.press("+")
    user.page.mouse.move(*centre(user, 0.6))
    user.page.mouse.down()
    user.page.mouse.move(*centre(user, 0.4), steps=3)
    user.page.mouse.up()
    user.shows(f"at 4 × {HERE}")
    assert user.page.evaluate("() => R2ID.stage.view.view.x") == pytest.approx(0.55, abs=0.005)


def test_keys_and_buttons_zoom_and_move(decoding):
    user = decoding()
    user.part("screen").focus()
    for key in ("+", "+", "ArrowRight", "ArrowDown"):
        user.page.keyboard.press(key)
    user.shows(f"at 4 × {HERE}")
    view = user.page.evaluate("() => R2ID.stage.view.view")
    assert (view["x"], view["y"]) == (pytest.approx(0.55), pytest.approx(0.55))
    user.page.get_by_role("button", name="Zoom out", exact=True).click()
    user.shows(f"at 2 × {HERE}")
    user.page.mouse.dblclick(*centre(user))
    user.shows(f"at 4 × {HERE}")
    user.page.get_by_role("button", name="All", exact=True).click()
    user.shows(f"64 × 64 pixels {HERE}")


def test_the_handle_sets_the_decoded_image_beside_one_of_as_many_numbers(decoding):
    user = decoding()
    decoded = pixels(user)
    assert "4 × 4 cells × 3 numbers = 48 numbers" in user.part("numbers").inner_text()
    user.press("Compare")
    handle = user.part("handle")
    until(user.page, "document.querySelector('[data-part=handle]').ariaValueNow === '50'")
    half = changed(user, decoded)
    assert (half[:, 33:] == decoded[:, 33:]).all() and (half[:, :31] != decoded[:, :31]).any()
    assert user.part("enlarged").inner_text() == "7 × 7 pixels, enlarged"
    box = handle.bounding_box()
    user.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    user.page.mouse.down()
    user.page.mouse.move(*centre(user, 0.25), steps=4)
    user.page.mouse.up()
    assert handle.get_attribute("aria-valuenow") == "25"
    handle.press("ArrowLeft")
    assert handle.get_attribute("aria-valuenow") == "24"
    handle.press("Home")
    until(user.page, f"whole => ({PIXELS})().every((v, i) => i % 4 === 3 || v === whole[i])", arg=rgba(decoded))
    assert user.asked() == []


def test_the_cells_are_laid_over_the_image_and_light_what_they_reach(decoding):
    user = decoding()
    user.press("Cells")
    marks = user.part("marks")
    marks.wait_for()
    drawn = "() => document.querySelector('[data-part=marks]').toDataURL()"
    lines = user.page.evaluate(drawn)
    user.page.mouse.move(*centre(user, 0.4, 0.4))
    until(user.page, f"before => ({drawn})() !== before", arg=lines)
    assert user.page.evaluate("() => R2ID.stage.view.pointed") == [1, 1]
    assert user.shows("coefficients act where it is lit, up to one cell from its centre", "lit")
    user.press("Cells")
    marks.wait_for(state="hidden")
    assert user.part("lit").is_hidden() and user.asked() == []


@pytest.mark.parametrize("cell", [(1, 1), (3, 0)])
def test_what_a_cell_lights_is_what_its_coefficients_change(decoding, cell):
    user = decoding()
    script = """cell => {
      const { view } = R2ID.stage, { decoder } = view, [h, w] = view.latent.cells, { D } = decoder.sizes, size = 96;
      const render = token => {
        decoder.setLatent(token, h, w, 1);
        decoder.render({ width: size, height: size, fit: "stretch", supersample: 1 });
        return decoder.readPixels();
      };
      const token = new Float32Array(h * w * D), before = render(token);
      token.fill(3, (cell[1] * w + cell[0]) * D, (cell[1] * w + cell[0] + 1) * D);
      const after = render(token), pixels = Array.from({ length: size * size }, (_, n) => n);
      const changed = pixels.filter(n => before[4 * n] !== after[4 * n]).map(n => [n % size, Math.floor(n / size)]);
      const ends = [0, 1].map(axis => changed.map(at => at[axis])).map(at => [Math.min(...at), Math.max(...at) + 1]);
      const inFrame = view.lit(cell).map(v => Math.min(Math.max(v / 4, 0), 1) * size);
      return [inFrame, [ends[0][0], ends[1][0], ends[0][1], ends[1][1]]];
    }"""
    lit, changed = user.page.evaluate(script, list(cell))
    assert all(abs(a - b) <= 3 for a, b in zip(lit, changed, strict=True)), (lit, changed)
    assert lit[0] <= changed[0] and lit[1] <= changed[1] and lit[2] >= changed[2] and lit[3] >= changed[3]


def test_a_sweep_plays_every_size_and_returns(decoding):
    user = decoding()
    user.page.evaluate("""() => { globalThis.sides = new Set();
        const { view } = R2ID.stage, set = view.set.bind(view);
        view.set = (changes, quiet) => { if (changes.side) sides.add(changes.side); return set(changes, quiet) } }""")
    user.press("▶ Sizes")
    until(user.page, "!document.querySelector('[data-part=sizes]').ariaPressed && sides.size > 3")
    sides = user.page.evaluate("() => [...sides]")
    assert min(sides) <= 16 and max(sides) >= 1024
    user.shows(f"64 × 64 pixels {HERE}")
    assert user.asked() == []
    user.press("▶ Ratios")
    until(user.page, "+document.querySelector('[data-part=image]').style.getPropertyValue('--ratio') > 1.5")
    user.press("▶ Ratios")
    user.shows(f"64 × 64 pixels {HERE}")


def test_the_server_takes_over_when_the_context_is_lost_and_inside_says_so(decoding):
    user = decoding()
    user.tab("Inside")
    user.page.get_by_text("This browser decodes the image").wait_for()
    user.page.evaluate("() => R2ID.stage.view.decoder.gl.getExtension('WEBGL_lose_context').loseContext()")
    user.shows("64 × 64 pixels decoded in [0-9]+ ms")
    user.page.get_by_text("it lost its graphics context").wait_for()


def test_a_download_has_the_view_that_is_seen(decoding):
    user = decoding()
    user.part("screen").focus()
    user.page.keyboard.press("+")
    user.shows(f"at 2 × {HERE}")
    with user.page.expect_download() as download:
        user.part("save").click()
    assert download.value.suggested_filename.endswith("64x64.png")


def test_memory_stays_flat_over_a_thousand_latents(decoding):
    user = decoding()
    script = """async () => {
      const { view } = R2ID.stage, { decoder } = view, [h, w] = view.latent.cells;
      const length = h * w * decoder.sizes.D, measured = [];
      view.set({ side: 8 });
      for (let n = 0; n < 1000; n++) {
        const token = Float32Array.from({ length }, (_, i) => Math.sin(i + n));
        view.show({ ...view.latent, id: `latent ${n}` }, null);
        view.decode(decoder, `latent ${n}`, token, h, w, 1);
        view.draw(false);
        if (n % 10 === 9) await new Promise(requestAnimationFrame);
        if (n % 250 === 249) {
          await new Promise(done => setTimeout(done, 300));
          gc();
          measured.push([performance.memory.usedJSHeapSize, decoder.textures.size, view.images.length]);
        }
      }
      return measured;
    }"""
    (_, *_), first, *_, last = user.page.evaluate(script)
    assert last[0] < first[0] + 2**20 and last[1:] == first[1:], (first, last)
