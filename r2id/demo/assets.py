"""The css, html and js files of `web/`, in the forms that Gradio takes."""

import json
from pathlib import Path

WEB = Path(__file__).parent / "web"


def text(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def template(name: str, library: str = "") -> dict[str, str]:
    """Arguments of `gr.HTML` for a component whose markup is name.html and whose script is name.js, after that of a
    library. `<!-- sheet -->` and `<!-- tools -->` in the markup are those of every pane, see web/pane.js."""
    markup = text(f"{name}.html")
    for part in ("sheet", "tools"):
        markup = markup.replace(f"<!-- {part} -->", text(f"{part}.html"))
    return dict(html_template=markup, js_on_load=library + text(f"{name}.js"))


def function(name: str, file: str = "events.js") -> str:
    """The argument `js` of an event: a function of web/events.js, or of another file there."""
    return f"(...values) => {{ {text(file)}; return {name}(...values) }}"


def constant(value) -> str:
    """The argument `js` of an event: a function that returns this value."""
    return f"() => ({json.dumps(value)})"
