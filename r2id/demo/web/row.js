// A word: the latents of its letters side by side in one pane. `props.value` is made by r2id/demo/tabs/word.py.
const part = name => element.querySelector(`[data-part="${name}"]`);
let word = null, height = null;  // pixels, of the row

const pane = new R2ID.Pane(element, {
  maxZoom: 4096,
  ask: view => trigger("look", { view, height }),
  small: () => trigger("look", { view: view.view, height }),
  drawn: describe,
});
const { view } = pane;

function describe(drawn) {
  if (!view.own && !view.complete) return;  // a preview
  const { latent: { count, cells: [h, w] } } = word, [size, how] = pane.describe(drawn);
  part("caption").textContent = `${size}, ${how} from ${count} × ${h} × ${w / count} cells`;
  part("image").setAttribute("aria-label", `the word ${word.text}, ${view.size.width} by ${view.size.height} pixels`);
}

/** The row at its height: every letter has whole pixels. */
function resize(quiet = false) {
  const { count, aspect } = word.latent, width = count * Math.max(1, Math.round(height * aspect / count));
  view.set({ side: Math.max(width, height), ratio: `${width}:${height}` }, quiet);
}

async function update() {
  const next = props.value, late = () => word && (next.order <= word.order || +next.latent.id < +word.latent.id);
  if (!next?.latent || late()) return;
  const bitmap = next.image && await R2ID.imageOf(next.image.src);
  if (next.image?.small) await pane.setSmall(next.latent.id, next.image.small);
  if (late()) return;
  const first = word?.latent.id !== next.latent.id;
  word = next;
  part("screen").parentNode.hidden = false;
  part("screen").style.setProperty("--row", word.latent.aspect);
  if (first) {
    view.set({ fit: "stretch", x: 0.5, y: 0.5, zoom: 1 }, true);
    height ??= word.height;
    resize(true);
  }
  const image = bitmap && { bitmap, view: next.image.view ?? { ...view.view, side: 0 }, preview: word.preview };
  pane.show({ ...word.latent, tokens: word.decoder, preview: word.preview }, image);
  if (word.preview) part("caption").textContent = "";
  else if (!view.own && !view.complete) view.change();
  pane.decode(word.decoder, [0, word.latent.count]);
}

element.addEventListener("height", ({ detail }) => {
  height = Math.min(Math.max(Math.round(detail), 8), 1024);
  if (word) resize();
});
R2ID.row = pane;
watch("value", update);
