"""The tab Compare as a user sees it."""

import re

from conftest import until


def test_the_strip_goes_up_to_1024_and_the_line_is_moved_with_the_keyboard(phone):
    user = phone("dark")
    page = user.page
    user.shows("decoded in")
    user.tab("Compare")
    page.get_by_role("heading", name="Decoded or enlarged?").scroll_into_view_if_needed()
    page.get_by_role("heading", name="Decoded or enlarged?").hover()
    page.mouse.wheel(0, 200)
    alts = page.locator(".wipe img")
    alts.nth(1).wait_for()
    assert ["enlarged" in alts.nth(i).get_attribute("alt") for i in (0, 1)] == [True, False]
    page.get_by_role("slider", name="Share of the enlarged image").focus()
    page.keyboard.press("ArrowLeft")
    moved = "[...document.querySelectorAll('.wipe > div')].some(each => each.style.getPropertyValue('--cut') === '49%')"
    until(page, moved)
    page.get_by_role("heading", name="One latent, every size").scroll_into_view_if_needed()
    page.get_by_alt_text("decoded to pixels, 1024 × 1024 pixels").wait_for()
    assert page.locator(".images img").count() == 8
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_line_stands_in_the_present_view(user):
    page = user.page
    user.shows("decoded in")
    user.tab("Compare")
    page.get_by_role("heading", name="Decoded or enlarged?").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    page.locator(".wipe img").nth(1).wait_for()
    before = page.locator(".wipe img").nth(1).get_attribute("src")
    user.drawer("Image")
    user.type("Zoom (×)", "8")
    page.get_by_role("heading", name="Decoded or enlarged?").scroll_into_view_if_needed()
    until(page, "before => document.querySelectorAll('.wipe img')[1].src !== before", arg=before)


def test_latent_sizes_and_models_stand_side_by_side(user):
    page = user.page
    user.shows("decoded in")
    user.tab("Compare")
    user.press("Generate at several sizes")
    for cells in (4, 8, 12, 16):
        page.get_by_text(re.compile(f"^{cells} × {cells} cells: generated in [0-9]+ ms")).wait_for()
    page.get_by_role("button", name="Stop the sizes", disabled=True).wait_for()
    user.press("Generate with both")
    for model in ("tiny", "twin"):
        page.get_by_text(re.compile(f"^{model}, label 3, 4 cells, 4 steps: generated in [0-9]+ ms")).wait_for()
    page.get_by_label("Second model").click()
    page.get_by_role("option", name="tiny").click()
    user.press("Generate with both")
    page.get_by_text("tiny twice: choose two different models").wait_for()
