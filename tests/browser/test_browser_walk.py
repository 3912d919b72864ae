"""The tab that moves between two images, as a user sees it."""


def test_a_walk_is_made_played_and_saved(phone):
    user = phone("dark")
    page = user.page
    user.shows("pixels")
    user.tab("Between")
    page.get_by_text("The walk starts from the image on the page").wait_for()
    user.press("Another seed")
    user.press("Make the walk")
    image = page.locator(".walk img")
    image.wait_for()
    assert image.get_attribute("alt") == "0 % of the way"
    page.get_by_label("Position on the way").press("End")
    assert image.get_attribute("alt") == "100 % of the way"
    page.wait_for_function("document.querySelector('.walk img').naturalWidth === 256")
    user.press("Play")
    page.wait_for_function("document.querySelector('.walk img').alt.startsWith('5')")
    user.press("Pause")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("radio", name="WebP").check()
    user.press("Make the file")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download (WEBP").click()
    assert saved.value.suggested_filename == "r2id-walk.webp"
