// An animation: {file, video, words}. An image loops by itself; a video has controls.
const figure = element.querySelector("figure");
watch("value", () => {
  const { file, video, words } = props.value ?? {};
  figure.hidden = !file;
  if (!file) return;
  const shown = document.createElement(video ? "video" : "img");
  if (video) {
    Object.assign(shown, { loop: true, muted: true, playsInline: true, controls: true });
    shown.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    shown.setAttribute("aria-label", words);
  } else shown.alt = words;
  shown.src = file.url;
  figure.replaceChildren(shown);
});
