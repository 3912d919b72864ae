"""The script that shows the first image being generated, in a page of its own."""

import pytest
from conftest import until

from r2id.demo.assets import text

PAGE = """<div class=stage><div class=sheet style="position: relative"><canvas data-part=image></canvas></div></div>"""
RUN = """script => { const log = window.log = {asked: 0, shown: []}; const props = {value: null}; let changed;
    const seen = () => { const image = document.querySelector('.first-visit'); if (image) log.shown.push(image.src) };
    new MutationObserver(seen)
        .observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ['src']});
    new Function('props', 'watch', 'trigger', script)(props, (name, fn) => changed = fn, () => {
        log.asked++; props.value = ['data:,1', 'data:,2', 'data:,3']; setTimeout(() => changed()) }) }"""


@pytest.fixture
def visit(browser):
    contexts = []

    def opened(address: str = "", context=None, **options):
        if context is None:
            contexts.append(context := browser.new_context(**options))
        page = context.new_page()
        page.route("**/*", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        page.goto("http://127.0.0.1:9/" + address)
        page.evaluate(RUN, text("first_visit.js"))
        return page

    yield opened
    for context in contexts:
        context.close()


def test_it_plays_once_and_stops(visit):
    page = visit()
    until(page, "log.shown.at(-1) === 'data:,3'")
    until(page, "!document.querySelector('.first-visit')")
    assert page.evaluate("[log.asked, new Set(log.shown).size]") == [1, 3]
    assert visit(context=page.context).evaluate("log.asked") == 0


def test_who_acts_ends_it(visit):
    page = visit()
    page.locator(".first-visit").wait_for()
    page.keyboard.press("a")
    assert page.locator(".first-visit").count() == 0


def test_it_does_not_play_where_a_link_names_an_image_or_motion_is_unwelcome(visit):
    assert visit("?model=tiny").evaluate("log.asked") == 0
    assert visit(reduced_motion="reduce").evaluate("log.asked") == 0
