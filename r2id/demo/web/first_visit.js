// Shows the first image being generated over the large image, once in this browser; whoever acts meanwhile ends it.
const KEY = "r2id-first-visit", EACH = 140, FADE = 400, PATIENCE = 15000;  // milliseconds
const seen = () => {
  try { return localStorage.getItem(KEY); } catch { return true; }  // without storage it would play every time
};
const play = (frames, sheet) => {
  localStorage.setItem(KEY, "1");
  const image = Object.assign(new Image(), { alt: "", className: "first-visit" });
  Object.assign(image.style, { position: "absolute", inset: 0, width: "100%", height: "100%", margin: 0, pointerEvents: "none",
    transition: `opacity ${FADE}ms` });
  const acts = ["pointerdown", "keydown", "wheel"];
  let at = 0;
  const end = () => {
    clearInterval(timer);
    acts.forEach(name => removeEventListener(name, end, true));
    image.remove();
  };
  const show = () => {
    if (at < frames.length) image.src = frames[at++];
    else { image.style.opacity = 0; clearInterval(timer); setTimeout(end, FADE); }
  };
  const timer = setInterval(show, EACH);
  acts.forEach(name => addEventListener(name, end, { capture: true, passive: true }));
  show();
  sheet.append(image);
};
const start = (frames, since = performance.now()) => {
  const canvas = document.querySelector(".stage [data-part=image]");
  if (canvas && !canvas.hidden) play(frames, canvas.parentNode);
  else if (performance.now() - since < PATIENCE) requestAnimationFrame(() => start(frames, since));
};
watch("value", () => { if (props.value?.length && !seen()) start(props.value); });
if (!seen() && !/[?&]model=/.test(location.search) && !matchMedia("(prefers-reduced-motion: reduce)").matches) trigger("ask");
