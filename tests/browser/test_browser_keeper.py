"""The history outlives the session on the server: the browser keeps it."""

import numpy as np
import pytest
from conftest import until
from load import App

FINE = "pixels.*decoded in [0-9]+ ms"
ENTRIES = "document.querySelectorAll('#history button').length"
KEPT = "JSON.parse(Object.values(sessionStorage).find(text => text.includes('entries')) || '{}').entries?.length"


def generated(user) -> np.ndarray:
    """Generates a second latent and opens the history; returns the image."""
    user.shows(FINE)
    user.tab("History")
    user.press("Generate")
    user.shows(f"{FINE}.*seed [0-9]{{3}}")
    until(user.page, f"{ENTRIES} === 2 && {KEPT} === 2")
    return user.pixels()


@pytest.mark.parametrize("reloaded", [True, False])
def test_a_restart_of_the_server_loses_no_history(open_page, weights, reloaded):
    server = App(weights, OMP_NUM_THREADS="1")
    try:
        user = open_page(server.url)
        before = generated(user)
        words = user.shows(FINE)
        server.stop()
        server = App(weights, server.port, OMP_NUM_THREADS="1")
        if reloaded:  # as Gradio does where it notices
            user.page.reload()
        else:
            user.slide("Resolution", "ArrowLeft")
        user.page.get_by_text("The server was restarted").wait_for()
        if reloaded:
            user.tab("History")
        until(user.page, f"{ENTRIES} === 2")
        user.page.locator("#history button").nth(int(reloaded)).click()  # a page begins with its first latent
        user.drawer("Image")
        user.press("Reset")
        after = user.shows(f"512 × 512 {FINE}.*seed [0-9]{{3}}")
        assert after.split("seed")[1] == words.split("seed")[1] and np.array_equal(user.pixels(), before)
        user.press("Generate")
        until(user.page, f"{ENTRIES} === 3")
    finally:
        server.stop()
