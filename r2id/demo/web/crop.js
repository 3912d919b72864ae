// The part of an image that a frame shows. "input" is triggered with the part, in fractions of the image, when it rests.
const [figure, frame, image, slider, output, whole] =
  ["figure", "figure > div", "img", "input", "output", "button"].map(name => element.querySelector(name));
const MOST = 8, REST = 250;  // magnification; milliseconds without motion until the part is sent
let zoom = 1, centre = [0.5, 0.5], size = [1, 1], sent = 0;
const pointers = new Map();
/* the visible part, [width, height] in fractions of the image: the largest of the frame's ratio, divided by the zoom */
const part = () => {
  const own = size[0] / size[1], { ratio } = props.value;
  return [Math.min(1, ratio / own) / zoom, Math.min(1, own / ratio) / zoom];
};
const paint = () => {
  const shown = part();
  centre = centre.map((c, axis) => Math.min(Math.max(c, shown[axis] / 2), 1 - shown[axis] / 2));
  image.style.width = `${100 / shown[0]}%`;
  image.style.left = `${(0.5 - centre[0] / shown[0]) * 100}%`;
  image.style.top = `${(0.5 - centre[1] / shown[1]) * 100}%`;
  image.style.height = `${100 / shown[1]}%`;
  slider.value = Math.log2(zoom);
  output.textContent = `${zoom.toFixed(1)} ×`;
};
const send = () => {
  const [width, height] = part(), [x, y] = centre;
  trigger("input", { region: [x - width / 2, y - height / 2, x + width / 2, y + height / 2] });
};
const moved = () => { paint(); clearTimeout(sent); sent = setTimeout(send, REST); };
const pan = (dx, dy) => {  // in fractions of the frame
  const shown = part();
  centre = [centre[0] - dx * shown[0], centre[1] - dy * shown[1]];
  moved();
};
const magnify = (factor, at = [0, 0]) => {  // what lies at `at`, in fractions of the frame from its middle, stays there
  const before = part();
  zoom = Math.min(Math.max(zoom * factor, 1), MOST);
  const after = part();
  centre = centre.map((c, axis) => c + at[axis] * (before[axis] - after[axis]));
  moved();
};
const place = ({ clientX, clientY }) => {
  const { left, top, width, height } = frame.getBoundingClientRect();
  return [(clientX - left) / width - 0.5, (clientY - top) / height - 0.5];
};
const middle = () => [0, 1].map(axis => [...pointers.values()].reduce((sum, at) => sum + at[axis], 0) / pointers.size);
const spread = () => {
  const [a, b] = pointers.values();
  return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
};
frame.onpointerdown = event => { frame.setPointerCapture(event.pointerId); pointers.set(event.pointerId, place(event)); };
frame.onpointermove = event => {
  if (!pointers.has(event.pointerId)) return;
  const before = middle(), wide = spread();
  pointers.set(event.pointerId, place(event));
  const after = middle();
  pan(after[0] - before[0], after[1] - before[1]);
  if (wide && spread()) magnify(spread() / wide, after);
};
frame.onpointerup = frame.onpointercancel = event => pointers.delete(event.pointerId);
frame.addEventListener("wheel", event => {
  event.preventDefault();
  magnify(2 ** (-event.deltaY / (event.deltaMode ? 10 : 300)), place(event));
}, { passive: false });
frame.onkeydown = event => {
  const keys = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
  if (keys[event.key]) pan(...keys[event.key]);
  else if ("+=".includes(event.key)) magnify(1.25);
  else if (event.key === "-") magnify(0.8);
  else return;
  event.preventDefault();
};
slider.oninput = () => magnify(2 ** slider.value / zoom);
whole.onclick = () => magnify(1 / MOST);
watch("value", () => {
  figure.hidden = !props.value;
  if (!props.value) return;
  const { src, width, height, ratio } = props.value;
  if (image.src !== src) [image.src, zoom, centre] = [src, 1, [0.5, 0.5]];
  size = [width, height];
  frame.style.setProperty("--ratio", ratio);
  moved();
});
