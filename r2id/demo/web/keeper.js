// Keeps the history of the page in the browser, see r2id/demo/keeper.py. It survives reloading, in the same tab.
const KEY = `r2id history ${location.pathname}`, MOST = 24;

function stored() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY));
    if (Array.isArray(kept.entries)) return kept;
  } catch {}  // nothing stored, or storage is not allowed
  return { server: null, entries: [] };
}

const kept = stored();

function store() {
  for (;;) {
    try {
      return sessionStorage.setItem(KEY, JSON.stringify(kept));
    } catch {  // it is full: the oldest go
      if (!kept.entries.pop()) return;
    }
  }
}

function update() {
  const { ask, keep, server } = props.value || {};
  if (keep) {
    kept.entries = [keep, ...kept.entries.filter(entry => entry.key !== keep.key)].slice(0, MOST);
    kept.server = server;
    store();
  }
  const tab = document.querySelector("[role=tab][aria-selected=true]")?.innerText ?? "";
  if (ask) trigger("restore", { kept, tab });
}
watch("value", update);
