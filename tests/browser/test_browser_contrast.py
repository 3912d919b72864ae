"""Text is readable on every tab and in every drawer, in both themes: the contrast of WCAG 2 AA, by axe-core."""

import pytest
from axe_playwright_python.sync_playwright import Axe

AXE, CONTRAST = Axe(), {"runOnly": ["color-contrast"]}


def faults_and_measured(page) -> tuple[list[str], int]:
    """Every visible text that is too faint, with its colours, and how many texts were measured.

    axe leaves open whether single characters are text; here they are.
    """
    found = AXE.run(page, options=CONTRAST).response
    nodes = [node for kind in ("violations", "incomplete") for rule in found[kind] for node in rule["nodes"]]
    seen = [(node, node["any"][0]["data"]) for node in nodes]
    faint = [(node, data) for node, data in seen if data.get("contrastRatio") and _faint(data)]
    lines = ["{} {fgColor} on {bgColor}: {contrastRatio}".format(node["html"], **data) for node, data in faint]
    return lines, sum(len(rule["nodes"]) for rule in found["passes"])


def _faint(data: dict) -> bool:
    return data["contrastRatio"] < float(data["expectedContrastRatio"].split(":")[0])


@pytest.mark.parametrize("theme, width", [("light", 390), ("dark", 1400)])
def test_every_text_is_readable(open_page, url, theme, width):
    user = open_page(f"{url}?__theme={theme}", viewport={"width": width, "height": 844})
    user.shows("decoded in")
    faults, measured = faults_and_measured(user.page)
    for drawer in ("Image", "Latent"):
        user.drawer(drawer)
    for name in [tab.inner_text() for tab in user.page.get_by_role("tab").all()]:
        user.tab(name)
        more, count = faults_and_measured(user.page)
        faults, measured = faults + more, measured + count
    assert not faults, "\n".join(sorted(set(faults)))
    assert measured > 400


def test_a_faint_text_is_found(user):
    user.shows("decoded in")
    user.page.add_style_tag(content="[data-part=numbers] {color: #bbb !important}")
    assert [line for line in faults_and_measured(user.page)[0] if "= 48 numbers" in line]


def test_what_the_keyboard_reaches_is_outlined(user):
    user.shows("decoded in")
    user.part("screen").focus()
    seen = """async () => { const { activeElement } = document;
        await Promise.allSettled(activeElement.getAnimations().map(transition => transition.finished));
        const { outlineStyle, outlineWidth } = getComputedStyle(activeElement);
        return [activeElement.outerHTML.slice(0, 120), outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2] }"""
    reached = {}
    for _ in range(40):
        user.page.keyboard.press("Tab")
        name, outlined = user.page.evaluate(seen)
        reached[name] = outlined
    assert not [name for name, outlined in reached.items() if not outlined and not name.startswith("<body")]
    assert len(reached) > 25
