// What the large image, a word and a walk share: a view with its gestures, its tools, the handle, and the files that it is
// decoded from.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const TOKENS = 32;  // files of latents that are kept
  const BUDGET = 400;  // milliseconds for 256 x 256
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const panes = new Set(), known = new Map();  // known: of latents, by the address of their files: their content
  let reason = "";  // why the server decodes on this page; one reason is enough for all panes

  const read = async file => R2ID.unpack(await (await fetch(file.url)).arrayBuffer());

  function trouble(why) {
    if (reason) return;
    reason = why;
    for (const { view, hooks } of panes) {
      view.forgetDecoder();
      hooks.trouble?.(why);
    }
  }

  /** An image of a file of the server or of an address, decoded, so that it and its words change together. */
  async function imageOf(source) {
    const bitmap = Object.assign(new Image(), { src: source.url ?? source });
    await bitmap.decode().catch(() => {});
    return bitmap;
  }

  /** An image's pixels. */
  async function pixelsOf(source) {
    const bitmap = await imageOf(source);
    const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.naturalWidth, height: bitmap.naturalHeight });
    const pen = canvas.getContext("2d");
    pen.drawImage(bitmap, 0, 0);
    const { data, width, height } = pen.getImageData(0, 0, canvas.width, canvas.height);
    return { data, width, height };
  }

  class Pane {
    /**
     * @param {HTMLElement} element  with the parts of sheet.html and tools.html, a screen around the sheet, and a line "lit"
     * @param {object} hooks  those of `View`, and
     * @param {() => void} [hooks.acted]  the user has moved the view
     * @param {() => void} [hooks.decoding]  this browser decodes here for the first time
     * @param {(reason: string) => void} [hooks.trouble]  the server decodes from now on
     * @param {() => void} hooks.small  the server's small image of the latent is wanted, for the handle
     */
    constructor(element, hooks) {
      this.part = name => element.querySelector(`[data-part="${name}"]`);
      const [screen, canvas, marks, map] = ["screen", "image", "marks", "map"].map(this.part);
      this.hooks = hooks;
      this.view = new R2ID.View({ screen, canvas, marks, map }, { ...hooks, trouble });
      this.decoder = null;  // the model's, by the address of its file
      for (const pane of panes) if (!pane.view.screen.isConnected) panes.delete(pane);
      panes.add(this);
      this._gestures(screen, canvas);
      this._handle();
      this._grid(screen, canvas);
      new ResizeObserver(() => this.view.draw(true)).observe(screen);
    }

    /** Takes over a latent, and the server's image of it if there is one. */
    show(latent, image) {
      const [r, g, b] = latent.background.match(/\d+/g).map(Number), { screen } = this.view;
      screen.style.background = latent.background;
      screen.classList.toggle("bright", 0.3 * r + 0.59 * g + 0.11 * b > 140);  // what stands on it has to be readable
      this.view.show(latent, image);
      const [height, width] = latent.small;
      this.part("enlarged").textContent = `${width} × ${height} pixels, enlarged`;
      this.part("decoded").textContent = "decoded";
      this.part("handle").hidden = false;
      this.setSplit(this.view.split);
      this._explain();
    }

    /** Decodes the latent that is shown here, if this browser can. files: of its model and of its tokens, of which it
     * has the rows from … to - 1, side by side. */
    async decode(files, [from, to] = [0, 1]) {
      const { view } = this, { id, aspect } = view.latent;
      if (!files || reason || view.tokens === id) return;
      try {
        const decoder = await this._decoderOf(files.model), { url } = files.tokens;
        if (!known.has(url)) known.set(url, read(files.tokens));
        if (known.size > TOKENS) known.delete(known.keys().next().value);
        const { data, shape: [, h, w, D] } = (await known.get(url)).tensors.token, size = h * w * D, first = !view.decoder;
        view.decode(decoder, id, data.subarray(from * size, to * size), h, w, aspect / (to - from), to - from);
        if (first) this.hooks.decoding?.();
      } catch (error) {
        console.warn(error.message);
        trouble("missing");
      }
    }

    async _decoderOf({ url }) {
      if (this.decoder?.url !== url) {
        this.decoder?.made.then(decoder => decoder.dispose(), () => {});  // a browser has few contexts
        const options = { budget: R2ID.budget ?? BUDGET, onTrouble: trouble };
        const made = read({ url }).then(model => R2ID.createDecoder(document.createElement("canvas"), model, options));
        this.decoder = { url, made };
      }
      return this.decoder.made;
    }

    /** Sets the share of the image, from the left, that is enlarged instead of decoded. */
    setSplit(share) {
      const { view, part } = this, handle = part("handle");
      view.split = clamp(share, 0, 1);
      handle.parentNode.style.setProperty("--split", view.split);
      handle.setAttribute("aria-valuenow", Math.round(100 * view.split));
      part("compare").setAttribute("aria-pressed", view.split > 0);
      part("enlarged").hidden = view.split < 0.3;
      part("decoded").hidden = view.split === 0 || view.split > 0.8;
      if (view.split && view.latent && !view.own && view.smallOf !== view.latent.id && !view.latent.preview) {
        view.smallOf = view.latent.id;  // asked for once
        this.hooks.small();
      }
    }

    /** Takes over the server's image of as many numbers as the latent with this id. */
    async setSmall(id, source) {
      if (this.view.small?.of !== id) this.view.small = { ...await pixelsOf(source), of: id };
    }

    /** What is shown, in two parts: how large, and where it was decoded. drawn: what `View` says of it. */
    describe({ milliseconds, screen } = {}) {
      const { size: { width, height }, view: { zoom } } = this.view;
      const size = `${width} × ${height} pixels${zoom > 1 ? ` at ${times(zoom)}` : ""}`;
      if (milliseconds === undefined) return [size, "decoded by the server"];
      const shown = screen.width < width ? `, shown at ${screen.width} × ${screen.height}` : "";
      return [size + shown, `decoded here in ${Math.round(milliseconds)} ms`];
    }

    _gestures(screen, canvas) {
      const { view, part, hooks } = this;
      const zoom = (factor, at) => {
        if (!view.view) return;
        hooks.acted?.();
        view.zoom(factor, at);
      };
      R2ID.gestures(screen, {
        box: () => canvas.getBoundingClientRect(),
        magnification: () => view.view?.zoom ?? 1,
        zoom,
        pan: (dx, dy) => { if (view.view) view.pan(dx, dy); },
        own: target => target.closest("[data-part=busy], [data-part=handle]"),
      });
      for (const [name, factor] of [["closer", 2], ["farther", 0.5], ["all", 0]]) part(name).onclick = () => zoom(factor, [0, 0]);
    }

    _handle() {
      const { view, part } = this, handle = part("handle");
      const split = share => { this.setSplit(share); view.change(true); };
      part("compare").onclick = () => split(view.split ? 0 : 0.5);
      handle.onpointerdown = event => { handle.setPointerCapture(event.pointerId); event.preventDefault(); handle.focus(); };
      handle.onpointermove = event => {
        if (!handle.hasPointerCapture(event.pointerId)) return;
        const { left, width } = view.canvas.getBoundingClientRect();
        split((event.clientX - left) / width);
      };
      handle.onkeydown = event => {
        const to = { ArrowLeft: view.split - 0.01, ArrowRight: view.split + 0.01, Home: 0, End: 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        split(to);
      };
    }

    _grid(screen, canvas) {
      const { view, part } = this;
      part("grid").onclick = () => {
        view.grid = !view.grid;
        part("grid").setAttribute("aria-pressed", view.grid);
        this._explain();
        view.change(true);
      };
      screen.addEventListener("pointermove", event => {
        if (!view.grid || !view.latent) return;
        const { left, top, width, height } = canvas.getBoundingClientRect();
        view.point([(event.clientX - left) / width - 0.5, (event.clientY - top) / height - 0.5]);
      });
      screen.addEventListener("pointerleave", () => view.point(null));
    }

    /** Says what is lit. */
    _explain() {
      const { view: { grid, latent }, part } = this, cells = latent?.reach?.cells;
      part("lit").hidden = !grid;
      part("lit").textContent = !cells ? "Point at a cell: every pixel attends to all cells."
        : `Point at a cell: its coefficients act where it is lit, up to ${cells === 1 ? "one cell" : `${cells} cells`} from its centre.`;
    }
  }

  /** A magnification in words. */
  const times = zoom => `${(zoom < 100 ? +zoom.toPrecision(3) : Math.round(zoom)).toLocaleString("en")} ×`;

  Object.assign(R2ID, { Pane, imageOf });
})();
