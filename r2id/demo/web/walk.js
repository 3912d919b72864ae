// A walk, which a slider goes through and a button plays there and back. `props.value` is made by r2id/demo/tabs/walk.py.
const part = name => element.querySelector(`[data-part="${name}"]`);
const [slider, output, play] = [...["input", "output"].map(name => element.querySelector(name)), part("play")];
const ROUND = 6000;  // milliseconds there and back
let walk = null, images = [], at = null, due = 0, start = null;

const pane = new R2ID.Pane(element, {
  maxZoom: 4096,
  ask: asked => trigger("look", { view: asked, at }),
  small: () => trigger("look", { view: view.view, at }),
  drawn: drawn => { if (!walk.preview) part("caption").textContent = pane.describe(drawn).join(", "); },
});
const { view } = pane;

const id = position => `${walk.number} ${walk.words.length} ${position}`;  // previews have fewer positions

/** Shows the position of the slider: the next one not before the last one is drawn. */
function show() {
  cancelAnimationFrame(due);
  const next = Math.round(slider.value / slider.max * (walk.words.length - 1));
  if (next === at) return;
  if (view.busy) { due = requestAnimationFrame(show); return; }
  at = next;
  output.textContent = walk.words[at];
  part("image").setAttribute("aria-label", walk.words[at]);
  const bitmap = images[at];
  pane.show({ ...walk.latent, id: id(at), tokens: walk.decoder, preview: walk.preview },
    bitmap && { bitmap, view: { ...view.view, side: walk.side, x: 0.5, y: 0.5, zoom: 1 }, preview: walk.preview });
  if (!walk.preview && !view.complete) view.change();
  pane.decode(walk.decoder, [at, at + 1]);
}

function step(now) {
  if (start === null) return;
  if (!element.offsetParent) return run(false);  // another tab is open
  slider.value = (1 - Math.cos((now - start) / ROUND * 2 * Math.PI)) / 2 * slider.max;
  show();
  requestAnimationFrame(step);
}

function run(on) {
  const before = Math.acos(1 - 2 * slider.value / slider.max) / (2 * Math.PI) * ROUND;
  start = on ? performance.now() - before : null;
  play.textContent = on ? "Pause" : "Play";
  play.setAttribute("aria-pressed", on);
  if (on) requestAnimationFrame(step);
}

async function update() {
  const next = props.value;
  if (!next) return;
  if (next.look) {  // the server's image of one position
    const { at: position, view: seen, src, small } = next.look, bitmap = await R2ID.imageOf(src);
    await pane.setSmall(id(position), small);
    if (next.number === walk.number && position === at) pane.show({ ...view.latent }, { bitmap, view: seen });
    return;
  }
  const bitmaps = await Promise.all(next.images.map(R2ID.imageOf));
  if (next.order <= walk?.order) return;  // overtaken while its images were decoded
  if (next.number !== walk?.number) {
    run(false);
    slider.value = 0;
    view.set({ fit: "stretch", x: 0.5, y: 0.5, zoom: 1 }, true);
  }
  [walk, images, at] = [next, bitmaps, null];
  view.set({ side: walk.side, ratio: walk.latent.aspect }, true);
  part("caption").textContent = "";
  part("screen").parentNode.hidden = false;
  show();
}

play.onclick = () => run(start === null);
slider.oninput = () => { run(false); show(); };
watch("value", update);
