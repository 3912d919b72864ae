"""The tab for words as a user sees it."""

from pathlib import Path


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
    page.get_by_alt_text("the word 2026, 768 by 256 pixels").first.wait_for()
    user.type("Height (pixels)", "64")
    page.get_by_alt_text("the word 2026, 192 by 64 pixels").first.wait_for()
    page.get_by_label("compare with the bicubic enlargement").check()
    page.get_by_alt_text("the word 2026, enlarged bicubically").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_download() as saved:
        user.press("Save the row as PNG")
    assert saved.value.suggested_filename == "2026-192x64.png"
    with page.expect_download() as saved:
        user.press("Save the row as SVG")
    assert saved.value.suggested_filename == "2026.svg"
    assert Path(saved.value.path()).read_text(encoding="utf-8").count("<path ") == 4


def test_an_images_outline_is_saved(user):
    user.tab("History")
    user.page.locator("#history button").first.wait_for()
    with user.page.expect_download() as saved:
        user.press("Save its outline as SVG")
    assert saved.value.suggested_filename == "r2id-label-3.svg"
