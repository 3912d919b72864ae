// The images of a walk, which a slider goes through and a button plays there and back.
const [figure, image, play, slider, output] =
  ["figure", "img", "button", "input", "output"].map(name => element.querySelector(name));
const ROUND = 6000;  // milliseconds there and back
let frames = [], start = null;
const show = () => {
  const at = Math.round(slider.value / slider.max * (frames.length - 1));
  if (!frames.length || image.dataset.at === `${at}`) return;
  image.dataset.at = at;
  image.src = frames[at].src;
  image.alt = frames[at].words;
  output.textContent = frames[at].words;
};
const step = now => {
  if (start === null || !element.isConnected) return;
  slider.value = (1 - Math.cos((now - start) / ROUND * 2 * Math.PI)) / 2 * slider.max;
  show();
  requestAnimationFrame(step);
};
const run = on => {
  const at = Math.acos(1 - 2 * slider.value / slider.max) / (2 * Math.PI) * ROUND;
  start = on ? performance.now() - at : null;
  play.textContent = on ? "Pause" : "Play";
  play.setAttribute("aria-pressed", on);
  if (on) requestAnimationFrame(step);
};
play.onclick = () => run(start === null);
slider.oninput = () => { run(false); show(); };
watch("value", () => {
  run(false);
  frames = props.value.frames.map(([src, words]) => Object.assign(new Image(), { src, words }));
  figure.style.setProperty("--ratio", props.value.ratio);
  delete image.dataset.at;
  slider.value = 0;
  figure.hidden = false;
  show();
});
