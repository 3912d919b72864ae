"""The tab that moves between two images, as a user sees it."""

from conftest import HERE, until

DRAWN = "() => document.querySelector('.walk [data-part=image]').toDataURL()"


def test_a_walk_is_made_played_and_saved(phone):
    user = phone("dark")
    page = user.page
    user.shows("pixels")
    user.tab("Between")
    page.get_by_text("The walk starts from the image on the page").wait_for()
    user.press("Another seed")
    user.press("Make the walk")
    user.says(".walk", "256 × 256 pixels, decoded by the server")
    image = page.locator(".walk canvas").first
    assert image.get_attribute("aria-label") == "0 % of the way"
    page.get_by_label("Position on the way").press("End")
    assert image.get_attribute("aria-label") == "100 % of the way"
    user.press("Play")
    until(page, "document.querySelector('.walk canvas').ariaLabel.startsWith('5')")
    user.press("Pause")
    page.locator(".walk").get_by_role("button", name="Zoom in").click()
    user.says(".walk", "256 × 256 pixels at 2 ×, decoded by the server")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("radio", name="WebP").check()
    user.press("Make the file")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download (WEBP").click()
    assert saved.value.suggested_filename == "r2id-walk.webp"


def test_the_slider_decodes_latents_that_were_sent_once(decoding):
    user = decoding()
    page = user.page
    user.tab("Between")
    page.get_by_label("number input for Images on the way").fill("8")
    late = "() => { window.late = []; Image.prototype.decode = () => new Promise(done => late.push(done)) }"
    page.evaluate(late)  # previews, which must not take the walk's place
    user.press("Make the walk")
    user.says(".walk", HERE)
    assert page.evaluate("late.forEach(done => done()), late.length") > 0
    page.wait_for_timeout(500)  # what the server still sends
    user.says(".walk", HERE)
    sent = [url for url in user.requests if "tokens" in url]
    assert len(sent) == 1
    user.requests.clear()
    seen, slider = [page.evaluate(DRAWN)], page.get_by_label("Position on the way")
    for share in ("500", "1000"):
        slider.fill(share)
        until(page, f"seen => !seen.includes(({DRAWN})())", arg=seen)
        page.wait_for_timeout(400)
        seen.append(page.evaluate(DRAWN))
    slider.fill("0")
    until(page, f"first => ({DRAWN})() === first", arg=seen[0])
    assert user.asked() == []
