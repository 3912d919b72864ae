// The big image, its grid of small ones, progress and links. `props.value` is a frame of r2id/demo/session.py.
const part = name => element.querySelector(`[data-part="${name}"]`);
const [screen, image, thumbs, busy, bar, said, fault, caption, save, stop] =
  ["screen", "image", "thumbs", "busy", "bar", "said", "fault", "caption", "save", "stop"].map(part);
let order = 0, shown = null, moved = null;

const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
const source = file => (typeof file === "string" ? file : file.url);

// Images far enough enlarged show their pixels as squares.
const harden = () => image.classList.toggle("hard", image.clientWidth > 1.5 * image.naturalWidth);

function draw(frame) {
  shown = frame;
  image.src = source(frame.image);
  image.alt = frame.alt;
  image.style.setProperty("--ratio", frame.ratio);
  image.style.transform = "";
  image.hidden = false;
  harden();
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
  caption.replaceChildren(...frame.caption.map((text, index) => {
    const line = document.createElement(index ? "span" : "b");
    line.textContent = text;
    return line;
  }));
  part("actions").dataset.off = Boolean(frame.busy);
  save.href = image.src;
  save.download = frame.name;
  part("actions").hidden = false;
  part("link").hidden = part("python").hidden = !frame.query;
}

function mark(selected) {
  [...thumbs.children].forEach((button, index) => button.setAttribute("aria-pressed", index === selected));
}

async function update() {
  const frame = props.value;
  if (!frame || frame.order <= order) return;  // one that was overtaken on its way
  order = frame.order;
  busy.dataset.on = Boolean(frame.busy);
  stop.disabled = !frame.busy;
  fault.textContent = frame.fault ?? "";
  fault.hidden = !frame.fault;
  if (frame.busy) {
    said.textContent = frame.busy.text;
    if (frame.busy.share == null) bar.removeAttribute("value"); else bar.value = frame.busy.share;
  }
  if (!frame.image) return;
  const next = new Image();  // decoded before it is shown, so that image and words change together
  next.src = source(frame.image);
  await next.decode().catch(() => {});
  if (frame.order === order) draw(frame);
}

// Looking closer: what is asked for goes out as x, y (0…1) and zoom; the image comes back decoded anew.
function look(x, y, zoom) {
  zoom = clamp(zoom, 1, 64);
  const half = 0.5 / zoom;
  props.value = { ...props.value, asked: [clamp(x, half, 1 - half), clamp(y, half, 1 - half), zoom] };
  trigger("input");
}

function place(event) {  // of the pointer, in fractions of the whole image
  const box = image.getBoundingClientRect(), [x, y, zoom] = shown.view;
  return [[event.clientX - box.left, box.width, x], [event.clientY - box.top, box.height, y]]
    .map(([at, length, centre]) => clamp(centre, 0.5 / zoom, 1 - 0.5 / zoom) + (at / length - 0.5) / zoom);
}

image.onpointerdown = event => {
  if (!shown || event.button) return;
  image.setPointerCapture(event.pointerId);
  moved = { at: [event.clientX, event.clientY], far: false };
};
image.onpointermove = event => {
  if (!moved) return;
  const by = [event.clientX - moved.at[0], event.clientY - moved.at[1]];
  moved.far ||= Math.hypot(...by) > 6;
  if (moved.far && shown.view[2] > 1) image.style.transform = `translate(${by[0]}px, ${by[1]}px)`;
};
image.onpointerup = event => {
  if (!moved) return;
  const [x, y, zoom] = shown.view, { at, far } = moved;
  moved = null;
  if (!far) return look(...place(event), event.shiftKey ? zoom / 2 : zoom * 2);
  const by = [(event.clientX - at[0]) / image.clientWidth, (event.clientY - at[1]) / image.clientHeight];
  look(x - by[0] / zoom, y - by[1] / zoom, zoom);
};
image.onpointercancel = () => { moved = null; image.style.transform = ""; };
screen.onkeydown = event => {
  if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
  const [x, y, zoom] = props.value.asked ?? shown.view, step = 0.2 / zoom;
  const to = {
    "+": [x, y, zoom * 2], "=": [x, y, zoom * 2], "-": [x, y, zoom / 2], "0": [0.5, 0.5, 1],
    ArrowLeft: [x - step, y, zoom], ArrowRight: [x + step, y, zoom],
    ArrowUp: [x, y - step, zoom], ArrowDown: [x, y + step, zoom],
  }[event.key];
  if (to) { event.preventDefault(); look(...to); }
};

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
part("link").onclick = event => copy(`${location.origin}${location.pathname}?${shown.query}`, event.target);
part("python").onclick = event => copy(shown.python, event.target);
part("closer").onclick = () => look(shown.view[0], shown.view[1], shown.view[2] * 2);
part("farther").onclick = () => look(shown.view[0], shown.view[1], shown.view[2] / 2);
stop.onclick = () => trigger("stop");
new ResizeObserver(harden).observe(screen);
watch("value", update);
update();
