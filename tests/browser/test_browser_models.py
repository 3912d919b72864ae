"""The tab Models: what is installed, what is broken, and what the chosen one says of itself."""

from conftest import until


def test_a_model_is_chosen_and_a_broken_one_tells_why(phone, weights):
    (weights / "twin" / "README.md").write_text("---\nlicense: mit\n---\n# The twin\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    user = phone("dark")
    page = user.page
    user.shows("decoded in")
    user.tab("Models")
    page.get_by_text("There is no model card beside its weights").wait_for()
    tiny, twin = (page.locator(f'#gallery [data-key="{name}"]') for name in ("tiny", "twin"))
    for card in (tiny, twin):
        card.locator("img").wait_for()
    assert (tiny.get_attribute("aria-pressed"), twin.get_attribute("aria-pressed")) == ("true", "false")
    panel = page.get_by_role("tabpanel").filter(has_text="Installed models")
    panel.get_by_text("spoilt cannot be used: config.json: not usable as JSON").wait_for()
    twin.focus()
    page.keyboard.press("Space")
    page.get_by_role("heading", name="The twin").wait_for()
    page.get_by_text("The latent on the page was made with model tiny").wait_for()
    assert page.get_by_role("combobox", name="Model").input_value() == "twin"
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    user.press("Generate")
    until(page, "/-seed[0-9]{3}/.test(document.querySelector('[data-part=save]').download)")
    user.shows("decoded in")
    assert user.parameters()["model"] == "twin"


def test_what_is_no_hub_id_is_refused_in_a_line(user):
    page = user.page
    user.shows("decoded in")
    user.tab("Models")
    hub = page.get_by_role("textbox", name="A model of the Hugging Face Hub")
    hub.fill("../weights")
    hub.press("Enter")
    page.get_by_text("must be owner/name").wait_for()
    assert page.locator("#gallery [aria-pressed=true]").get_attribute("data-key") == "tiny"
