"""The tab for words as a user sees it."""

from pathlib import Path

from conftest import HERE, until

from r2id.image import read_parameters

DRAWN = "() => document.querySelector('.row [data-part=image]').toDataURL()"


def test_a_word_is_written_compared_zoomed_and_saved(phone):
    user = phone("light")
    page = user.page
    user.tab("Word")
    page.get_by_text("tiny writes 0 1 2").wait_for()
    page.get_by_label("Your word").fill("Hi")
    user.press("Write the word")
    page.get_by_text("'H' cannot be written: this model knows 0123456789").wait_for()
    page.get_by_label("Your word").fill("2026")
    user.press("Write the word")
    user.says(".row", "768 × 256 pixels, decoded by the server from 4 × 4 × 3 cells")
    user.type("Height (pixels)", "64")
    user.says(".row", "192 × 64 pixels, decoded by the server")
    row = page.locator(".row")
    assert row.locator("canvas").first.get_attribute("aria-label") == "the word 2026, 192 by 64 pixels"
    whole = page.evaluate(DRAWN)
    row.get_by_role("button", name="Compare").click()
    until(page, f"whole => ({DRAWN})() !== whole", arg=whole)
    row.get_by_role("button", name="Zoom in").click()
    user.says(".row", "192 × 64 pixels at 2 ×, decoded by the server")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_download() as saved:
        user.press("Save the row as PNG")
    assert saved.value.suggested_filename == "2026-192x64.png"
    assert read_parameters(saved.value.path())["region"] == [0.25, 0.25, 0.75, 0.75]
    with page.expect_download() as saved:
        user.press("Save the row as SVG")
    assert saved.value.suggested_filename == "2026.svg"
    assert Path(saved.value.path()).read_text(encoding="utf-8").count("<path ") == 4


def test_a_word_is_zoomed_and_compared_in_the_browser_without_asking_the_server(decoding):
    user = decoding()
    page = user.page
    user.tab("Word")
    page.get_by_label("Your word").fill("30")
    user.type("Height (pixels)", "32")
    user.press("Write the word")
    user.says(".row", f"48 × 32 pixels, {HERE} from 2 × 4 × 3 cells")
    page.wait_for_timeout(500)  # what the server still sends
    user.requests.clear()
    image, whole = page.locator(".row canvas").first, page.evaluate(DRAWN)
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.wheel(0, -400)
    user.says(".row", f"48 × 32 pixels at 4 ×, {HERE}")
    zoomed = page.evaluate(DRAWN)
    row = page.locator(".row")
    row.get_by_role("button", name="Compare").click()
    until(page, f"zoomed => ({DRAWN})() !== zoomed", arg=zoomed)
    row.get_by_role("button", name="Compare").click()
    row.locator("[data-part=screen]").press("0")
    user.says(".row", f"48 × 32 pixels, {HERE}")
    until(page, f"whole => ({DRAWN})() === whole", arg=whole)
    assert zoomed != whole and user.asked() == []


def test_an_images_outline_is_saved(user):
    user.tab("History")
    user.page.locator("#history button").first.wait_for()
    with user.page.expect_download() as saved:
        user.press("Save its outline as SVG")
    assert saved.value.suggested_filename == "r2id-label-3.svg"
