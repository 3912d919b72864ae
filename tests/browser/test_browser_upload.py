"""The tab for the user's own image as a user sees it."""

import re

from PIL import Image


def halves(width: int, height: int, mode: str = "L") -> Image.Image:
    """White on the left, black on the right."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    return image.convert(mode)


def test_a_drawing_is_encoded_measured_and_put_on_the_page(phone):
    user = phone("light")
    page = user.page
    user.shows("decoded in")
    user.tab("Your image")
    button = page.get_by_role("button", name="Put it on the page")
    assert button.is_disabled()
    board = page.get_by_label("Board to draw on")
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 180, steps=3)
    page.mouse.up()
    page.get_by_text(re.compile("What 8 × 8 cells keep: PSNR [0-9.]+ dB")).wait_for()
    page.get_by_alt_text("own image, your drawing, 8 × 8 pixels").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    button.click()
    page.get_by_role("img", name="your drawing, 512 by 512 pixels").wait_for()
    user.type("Resolution, long side (pixels)", "40")
    user.natural(40, 40)
    assert user.parameters() == {"origin": "your drawing"}
    page.get_by_role("button", name="Clear the board").click()
    page.get_by_text("Draw with a finger or the mouse").wait_for()


def test_an_image_is_uploaded_and_what_is_none_is_refused_in_a_line(user, tmp_path):
    page = user.page
    user.shows("decoded in")
    user.tab("Your image")
    halves(60, 40).save(tmp_path / "halves.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    upload = page.locator("input[type=file][accept*=image]")
    upload.set_input_files(tmp_path / "halves.png")
    page.get_by_text("your image halves.png, 12 × 8 pixels").wait_for()
    page.get_by_alt_text("kept, 8 × 5 cells, 120 numbers").wait_for()
    assert page.get_by_alt_text("kept, ").count() == 4
    page.get_by_label("Zoom of your image").fill("1")
    page.get_by_text("your image halves.png, 12 × 8 pixels").wait_for()
    frame = page.get_by_role("group", name="Your image: drag to move it")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    sides = "e => ['left', 'width'].map(name => parseFloat(getComputedStyle(e.firstElementChild)[name]))"
    left, width = frame.evaluate(sides)
    assert abs(width - 2 * box["width"]) < 2 and abs(left + box["width"] / 2) < 2
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 100 + box["width"], box["y"] + 50, steps=4)
    page.mouse.up()
    assert abs(frame.evaluate(sides)[0]) < 1  # its left edge
    page.locator("[data-testid='1:1-radio-label'], label:has-text('1:1')").last.click()
    page.get_by_text("your image halves.png, 8 × 8 pixels").wait_for()
    page.locator("label:has-text('its own')").last.click()
    page.get_by_text("your image halves.png, 12 × 8 pixels").wait_for()
    upload.set_input_files(tmp_path / "broken.png")
    page.get_by_text("broken.png: not an image that can be read").wait_for()
    page.get_by_text("your image halves.png, 12 × 8 pixels").wait_for()  # nothing is lost
    for cells in ("9 × 6", "10 × 7"):
        user.slide("Latent size of your image", "ArrowRight")
        page.get_by_text(f"What {cells} cells keep").wait_for()
    user.press("Put it on the page")
    user.shows("decoded in [0-9]+ ms from 10 × 7 cells your image halves.png")
