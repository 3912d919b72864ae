/* Functions of Gradio events that run in the browser alone. Controls follow each other without asking the server. */

const ratios = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"];
const aspect = ratio => +`${ratio}`.split(":").reduce((w, h) => w / h) || 1;  // of "16:9" or "1.78"

/* logarithmic sliders: from log2 to the control's value, and back; the slider keeps its place where both agree */
const toRatio = v => ratios.find(ratio => Math.abs(v - Math.log2(aspect(ratio))) < 0.01) ?? (2 ** v).toFixed(2);
const toSide = v => {
  const side = 2 ** v, unit = side < 64 ? 1 : side < 1024 ? 8 : 64;
  return Math.round(side / unit) * unit;
};
const toZoom = v => +(2 ** v).toPrecision(3);
const fromRatio = (ratio, v) => toRatio(v) == ratio ? v : Math.log2(aspect(ratio)) || 0;
const fromSide = (side, v) => toSide(v) == side ? v : Math.log2(side) || 0;
const fromZoom = (zoom, v) => toZoom(v) == zoom ? v : Math.log2(zoom) || 0;

/* long side and ratio to width and height in pixels, and back */
const toSize = (side, ratio) => {
  const a = aspect(ratio);
  return [Math.round(side * Math.min(1, a)) || 1, Math.round(side / Math.max(1, a)) || 1];
};
const fromSize = (width, height, side, ratio) =>
  !width || !height || `${toSize(side, ratio)}` === `${[width, height]}` ? [side, ratio]
    : [Math.max(width, height), width === height ? "1:1" : `${width}:${height}`];

/* what the controls say of the view, for the stage; `refresh` is an event whose function sends its image */
const toStage = (values, quiet) =>
  document.querySelector(".stage")?.parentNode.dispatchEvent(new CustomEvent("view", { detail: { values, quiet } }));
const showView = (...values) => toStage(values, false);
const refreshView = (session, ...values) => { toStage(values, true); return [session, ...values]; };

/* the stage's view as values of the controls: centre in percent, zoom */
const fromStage = () => {
  const { x, y, zoom } = R2ID.stage.view.view;
  const digits = 2 + Math.ceil(Math.log10(zoom));  // finer than a pixel
  return [+(100 * x).toFixed(digits), +(100 * y).toFixed(digits), +zoom.toPrecision(4)];
};
const followRatio = (follow, ratio, shape) => follow ? ratio : shape;

const same = value => value;
const unique = () => performance.now();  // a value that no event has had before
const enable = () => ({ __type__: "update", interactive: true });
const disable = () => ({ __type__: "update", interactive: false });
const showStage = () => document.querySelector("#title").scrollIntoView({ block: "nearest" });
