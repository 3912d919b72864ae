// The page of export_page.py: a view of one of its latents, decoded here.
"use strict";
(async () => {
  const part = id => document.getElementById(id);
  const [view, split, caption, labels, seeds, fault] =
    ["view", "split", "caption", "labels", "seeds", "fault"].map(part);
  const canvas = view.querySelector("canvas"), screen = canvas.getContext("2d"), work = document.createElement("canvas");
  const MAX_ZOOM = 4096, REST = 200;  // milliseconds until an image is drawn with all its points
  const THUMB = { width: 48, height: 48, fit: "contain", supersample: 2 };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const say = text => { fault.textContent = text; fault.hidden = false; };
  const { title, model, latents } = JSON.parse(part("data").textContent);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  document.title = `r2id: ${title}`;

  const rows = [];  // of all latents: label, seed, tokens, h, w, aspect
  let decoder, shown, loaded, look = { x: 0.5, y: 0.5, zoom: 1 }, due = 0, rest = 0;
  try {
    decoder = R2ID.createDecoder(work, await R2ID.unpack(bytes(model)), {
      onTrouble: reason => say(reason === "lost" ? "The graphics context was lost: reload the page." :
        "This browser decodes slowly, perhaps without a GPU: smaller images are faster."),
    });
  } catch (error) {
    return say(`This browser cannot decode: ${error.message}.`);
  }
  for (const latent of latents) {
    const { metadata, tensors: { token: { data, shape: [count, h, w, D] } } } = await R2ID.unpack(bytes(latent));
    for (let row = 0; row < count; row++) {
      const tokens = data.subarray(row * h * w * D, (row + 1) * h * w * D);
      rows.push({ label: metadata.labels[row], seed: metadata.seeds[row], aspect: metadata.aspect, tokens, h, w });
    }
  }

  function size() {
    const side = Math.round(2 ** part("side").value), ratio = 2 ** part("ratio").value;
    return ratio > 1 ? { width: side, height: Math.max(1, Math.round(side / ratio)) }
      : { width: Math.max(1, Math.round(side * ratio)), height: side };
  }

  function region() {
    const half = 0.5 / look.zoom;
    look.x = clamp(look.x, half, 1 - half);
    look.y = clamp(look.y, half, 1 - half);
    return [look.x - half, look.y - half, look.x + half, look.y + half].map(value => clamp(value, 0, 1));
  }

  function load(row) {
    if (row !== loaded) decoder.setLatent(row.tokens, row.h, row.w, row.aspect);
    loaded = row;
  }

  /** The box of the image in the page: left, top, width, height. */
  function box() {
    const outer = canvas.getBoundingClientRect();
    const scale = Math.min(outer.width / canvas.width, outer.height / canvas.height);
    const [width, height] = [canvas.width * scale, canvas.height * scale];
    return { left: outer.left + (outer.width - width) / 2, top: outer.top + (outer.height - height) / 2, width, height };
  }

  function draw(supersample) {
    const asked = { ...size(), fit: part("fit").value, region: region(), supersample };
    const cut = split.hidden ? 0 : Math.round(split.value * asked.width);
    load(shown);
    if (cut < asked.width) decoder.render({ ...asked, columns: [cut, asked.width] });
    if (cut > 0) decoder.renderEnlarged({ ...asked, columns: [0, cut] });
    if (decoder.lost) return;
    canvas.width = asked.width;
    canvas.height = asked.height;
    screen.drawImage(work, 0, 0);
    const { left, width } = box();
    Object.assign(split.style, { left: `${left - view.getBoundingClientRect().left}px`, width: `${width}px` });
    const { h, w } = shown, numbers = decoder.config.latent_channels, small = decoder.smallSize;
    const known = `${h} × ${w} cells × ${numbers} numbers = ${(h * w * numbers).toLocaleString("en")} numbers`;
    caption.textContent = `Label ${shown.label}, seed ${shown.seed}: ${asked.width} × ${asked.height} pixels decoded from ` +
      `${known}, ${Number(look.zoom.toFixed(look.zoom < 10 ? 1 : 0)).toLocaleString("en")} ×` +
      (split.hidden ? "" : `; enlarged from ${small.width} × ${small.height} pixels, as many numbers`);
  }

  /** Draws with the next frame, a point a pixel, and with all points once nothing changes any more. */
  function change() {
    cancelAnimationFrame(due);
    clearTimeout(rest);
    due = requestAnimationFrame(() => draw(1));
    rest = setTimeout(draw, REST);
  }

  const press = (group, button) =>
    [...group.children].forEach(each => each.setAttribute("aria-pressed", each === button));

  function choose(row, button) {
    shown = row;
    press(seeds, button);
    change();
  }

  async function gallery(label, pressed) {
    press(labels, pressed);
    const own = rows.filter(row => row.label === label);
    const buttons = own.map(row => {
      const button = document.createElement("button");
      button.append(Object.assign(document.createElement("canvas"), { width: THUMB.width, height: THUMB.height }));
      button.setAttribute("aria-label", `seed ${row.seed}`);
      button.onclick = () => choose(row, button);
      return button;
    });
    seeds.replaceChildren(...buttons);
    const seed = shown?.seed, again = Math.max(0, own.findIndex(row => row.seed === seed));
    choose(own[again], buttons[again]);
    for (const [index, row] of own.entries()) {
      await new Promise(requestAnimationFrame);
      if (buttons[index].parentNode !== seeds || decoder.lost) return;
      load(row);
      decoder.render(THUMB);
      buttons[index].firstChild.getContext("2d").drawImage(work, 0, 0);
    }
    view.dataset.ready = label;
  }

  /** Where the pointer is, from the middle of the visible image, in fractions of it. */
  function place({ clientX, clientY }) {
    const { left, top, width, height } = box();
    return [(clientX - left) / width - 0.5, (clientY - top) / height - 0.5];
  }

  /** Zooms by a factor; what lies at `at` stays there. */
  function zoom(factor, at = [0, 0]) {
    const next = clamp(look.zoom * factor, 1, MAX_ZOOM), moved = 1 / look.zoom - 1 / next;
    look = { x: look.x + at[0] * moved, y: look.y + at[1] * moved, zoom: next };
    change();
  }

  function pan(dx, dy) {
    look = { ...look, x: look.x - dx / look.zoom, y: look.y - dy / look.zoom };
    change();
  }

  const pointers = new Map();
  const middle = () => [0, 1].map(axis => [...pointers.values()].reduce((sum, at) => sum + at[axis], 0) / pointers.size);
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
  };
  view.onpointerdown = event => {
    if (event.target === split) return;
    view.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
  };
  view.onpointermove = event => {
    if (!pointers.has(event.pointerId)) return;
    const [before, wide] = [middle(), spread()];
    pointers.set(event.pointerId, place(event));
    const after = middle();
    pan(after[0] - before[0], after[1] - before[1]);
    if (wide && spread()) zoom(spread() / wide, after);
  };
  view.onpointerup = view.onpointercancel = event => pointers.delete(event.pointerId);
  view.onwheel = event => {
    event.preventDefault();
    zoom(2 ** (-event.deltaY / 200), place(event));
  };
  view.ondblclick = event => zoom(event.shiftKey ? 0.5 : 2, place(event));
  view.onkeydown = event => {
    if (event.target === split || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), "0": () => zoom(0),
      ArrowLeft: () => pan(0.2, 0), ArrowRight: () => pan(-0.2, 0), ArrowUp: () => pan(0, 0.2), ArrowDown: () => pan(0, -0.2),
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  };
  for (const id of ["side", "ratio", "fit", "split"]) part(id).oninput = change;
  part("all").onclick = () => zoom(0);
  part("compare").onclick = () => {
    const on = split.hidden;
    for (const id of ["split", "enlarged", "decoded"]) part(id).hidden = !on;
    part("compare").setAttribute("aria-pressed", on);
    if (on) split.value = 0.5;
    change();
  };

  part("fit").value = decoder.config.fit;
  for (const label of new Set(rows.map(row => row.label))) {
    const button = document.createElement("button");
    button.textContent = label;
    button.onclick = () => gallery(label, button);
    labels.append(button);
  }
  labels.firstChild.click();
})();
