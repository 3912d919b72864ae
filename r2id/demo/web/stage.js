// The main area: the large image, the small ones, progress and links. `props.value` is a frame of session.py.
const part = name => element.querySelector(`[data-part="${name}"]`);
const [screen, image, thumbs, busy, bar, said, fault, caption, save, stop] = ["screen", "image", "thumbs", "busy", "bar", "said",
  "fault", "caption", "save", "stop"].map(part);
const source = file => (typeof file === "string" ? file : file.url);
const grouped = number => number.toLocaleString("en");
const sentWithPage = props.value?.order ?? 0;
let order = 0, frame = null, saving = false, playing = null;

const pane = new R2ID.Pane(element, {
  maxZoom: 4096,
  acted: () => { playing = null; },
  ask: asked => trigger("look", { view: asked }),
  small: () => trigger("small"),
  settled: ({ x, y, zoom }) => {
    if (playing) return;
    sent.push({ x: 100 * x, y: 100 * y, zoom });
    sent.splice(0, sent.length - 20);
    trigger("input");
  },
  drawn: describe,
  decoding: () => trigger("decoder", { reason: "" }),
  trouble: reason => trigger("decoder", { reason }),
});
const { view } = pane;

// frames of the server

const element_ = (name, text) => Object.assign(document.createElement(name), { textContent: text });

async function update() {
  const next = props.value;
  if (!next || !(next.order > order)) return;  // one that was overtaken on its way
  order = next.order;
  busy.dataset.on = Boolean(next.busy);
  stop.disabled = !next.busy;
  fault.textContent = next.fault ?? "";
  fault.hidden = !next.fault;
  if (next.fault) [saving, playing] = [false, null];
  if (next.busy) {
    said.textContent = next.busy.text;
    if (next.busy.share == null) bar.removeAttribute("value"); else bar.value = next.busy.share;
  }
  if (!next.latent) return;
  const bitmap = next.image && await R2ID.imageOf(next.image);
  if (next.order !== order) return;
  frame = next;
  image.dataset.live = next.order > sentWithPage;
  const thumb = new Image();
  if (frame.thumbs[frame.selected]) thumb.src = source(frame.thumbs[frame.selected]);
  if (!view.view) view.set(frame.view, true);
  if (frame.small?.latent === frame.latent.id) await pane.setSmall(frame.latent.id, frame.small.image);
  const preview = Boolean(frame.busy);
  pane.show({ ...frame.latent, tokens: frame.decoder, thumb, preview },
    bitmap?.naturalWidth ? { bitmap, view: frame.view, preview } : null);
  showThumbs();
  image.setAttribute("aria-label", frame.alt);
  part("actions").dataset.off = Boolean(frame.busy);
  part("actions").hidden = false;
  part("link").hidden = part("python").hidden = !frame.query;
  if (bitmap) save.href = bitmap.src;
  save.download = frame.name;
  if (saving && bitmap && !frame.busy) {
    saving = false;
    Object.assign(document.createElement("a"), { href: bitmap.src, download: frame.name }).click();
  }
  describe();
  pane.decode(frame.decoder);
}

function showThumbs() {
  while (thumbs.children.length > frame.thumbs.length) thumbs.lastChild.remove();
  frame.thumbs.forEach((file, index) => {
    if (!thumbs.children[index]) {
      const button = document.createElement("button");
      button.append(new Image());
      button.onclick = () => { mark(index); trigger("select", { index }); };
      thumbs.append(button);
    }
    const small = thumbs.children[index].firstChild;
    small.src = source(file);
    small.alt = `image ${index + 1} of ${frame.thumbs.length}`;
  });
  thumbs.hidden = frame.thumbs.length < 2;
  mark(frame.selected);
}

function mark(selected) {
  [...thumbs.children].forEach((button, index) => button.setAttribute("aria-pressed", index === selected));
}

/** What is seen, in words. drawn: of an image that was decoded here. */
function describe(drawn = null) {
  if (!frame) return;
  const { cells: [h, w], numbers, small: [height, width] } = frame.latent, lines = [...frame.caption];
  if (view.own) {
    if (!drawn) return;
    const { width, height } = view.size, [size, how] = pane.describe(drawn);
    [lines[0], lines[1]] = [size, `${how} from ${w} × ${h} cells`];
    image.setAttribute("aria-label", frame.alt.replace(/\d+ by \d+ pixels$/, `${width} by ${height} pixels`));
    image.dataset.drawn = `${frame.latent.id} ${width} × ${height}`;
  }
  caption.replaceChildren(...lines.map((text, index) => element_(index ? "span" : "b", text)));
  part("numbers").textContent = `${w} × ${h} cells × ${numbers} numbers = ${grouped(w * h * numbers)} numbers; ` +
    `as an image, that many numbers are ${width} × ${height} pixels`;
}

stop.onclick = () => trigger("stop");

// sweeps: of what is played, the view at 0…1

const SWEEPS = {
  sizes: { seconds: 7, at: t => ({ side: Math.round(8 * 256 ** t) }), steps: 9 },
  ratios: { seconds: 6, at: t => ({ ratio: +((9 / 16) ** (1 - 2 * t)).toFixed(3) }), steps: 7 },
};

/** Plays a sweep once and returns to where it began. Anything that is done meanwhile ends it. */
async function play(name) {
  const { seconds, at, steps } = SWEEPS[name], before = { ...view.view }, own = playing = {};
  part(name).setAttribute("aria-pressed", true);
  const start = performance.now();
  for (let step = 0; playing === own; step++) {
    const t = view.own ? (performance.now() - start) / 1000 / seconds : step / (steps - 1);
    if (t > 1) break;
    view.set(at(t));
    if (view.own) await new Promise(requestAnimationFrame);
    else for (let waited = 0; playing === own && !view.complete && waited < 100; waited++) {
      await new Promise(done => setTimeout(done, 100));  // the server decodes one size after the other
    }
  }
  part(name).removeAttribute("aria-pressed");
  if (playing === own) playing = null;
  if (!playing) view.set({ side: before.side, ratio: before.ratio });
}
for (const name of Object.keys(SWEEPS)) part(name).onclick = () => (playing ? playing = null : play(name));

// what the controls say: (side, ratio, fit, x %, y %, zoom), see events.js

const NAMES = ["side", "ratio", "fit", "x", "y", "zoom"], controls = {}, sent = [];  // values as the controls hold them

/** Whether a control only repeats what the stage sent it, which is rounded and arrives when the view has moved on. */
function echoes(name, value) {
  const found = sent.findLastIndex(each => Math.abs(each[name] - value) <= (name === "zoom" ? 1e-3 * value : 0.06));
  sent.slice(0, found + 1).forEach(each => { delete each[name]; });
  return found >= 0;
}

element.addEventListener("view", ({ detail: { values, quiet } }) => {
  const changes = {};
  NAMES.forEach((name, index) => {
    const value = values[index];
    if (value === controls[name]) return;
    controls[name] = value;
    if (!echoes(name, value)) changes[name] = name === "x" || name === "y" ? value / 100 : value;
  });
  if (!Object.keys(changes).length) return;
  playing = null;
  view.set(changes, quiet);
});

// links

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page that is not served over https
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const name = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = name; }, 1500);
}

/** The link's query with the present view; defaults are left out. */
function query() {
  const params = new URLSearchParams(frame.query), defaults = { side: 256, ratio: "1:1", fit: "contain", x: 0.5, y: 0.5, zoom: 1 };
  for (const [name, value] of Object.entries(view.view)) {
    if (value === defaults[name]) params.delete(name); else params.set(name, value);
  }
  return params;
}

/** The lines of Python with the present view. */
function python() {
  const { side, ratio, fit, zoom } = view.view, [width, height] = R2ID.sizeOf(side, ratio);
  const region = R2ID.regionOf(view.view).join(", ");
  const options = `size=(${height}, ${width}), fit='${fit}'${zoom > 1 ? `, region=(${region})` : ""}`;
  return frame.python.replace(/pipe\.resample\(latent, .*\)/, `pipe.resample(latent, ${options})`);
}

part("link").onclick = event => copy(`${location.origin}${location.pathname}?${query()}`, event.target);
part("python").onclick = event => copy(python(), event.target);
save.onclick = event => {
  if (!view.own && view.complete) return;
  event.preventDefault();  // the server makes the file
  saving = true;
  trigger("look", { view: { ...view.view }, image: true });
};
R2ID.stage = pane;
watch("value", update);
if (!new URLSearchParams(location.search).has("model")) update();  // the first image; a link asks for another
