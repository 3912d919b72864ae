"""What stands below the main area: one module a tab, each with `build(page)`."""

from r2id.demo.tabs import compare, history, inside, models, upload, walk, word

TABS = [tab.build for tab in (word, walk, compare, upload, inside, history, models)]
