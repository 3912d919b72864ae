"""The tab Inside as a user sees it."""

from r2id.demo.illustrations import GAP
from r2id.demo.tabs.inside import STEP_SIDE

SIDEWAYS = "document.documentElement.scrollWidth > innerWidth"


def test_channels_steps_and_coordinates_are_those_of_the_latent_on_the_page(phone):
    user = phone("dark")
    page = user.page
    user.shows("decoded in")
    user.tab("Inside")
    page.get_by_alt_text("3 maps of 4 by 4 cells, one a channel").wait_for()
    page.get_by_text("This latent was not generated just now").wait_for()
    page.get_by_text("This model ships no report of its loss").wait_for()
    user.press("Generate")
    steps = page.get_by_alt_text("the image as expected after each of 4 steps")
    steps.wait_for()
    assert steps.evaluate("image => image.decode().then(() => image.naturalWidth)") == 4 * (STEP_SIDE + GAP) + GAP
    page.get_by_alt_text("absolute coordinates over an image of 512 by 512 pixels").wait_for()
    user.drawer("Image")
    user.type("Image ratio (w : h)", "16:9")
    page.locator("img[alt^='absolute coordinates']").scroll_into_view_if_needed()
    page.get_by_alt_text("absolute coordinates over an image of 512 by 288 pixels").wait_for()
    assert not page.evaluate(SIDEWAYS)
