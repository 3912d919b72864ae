// The large image: a view of a latent, decoded in this browser where there are its tokens, else put together from the
// server's images. While it moves it is drawn at once from what there is, and in full once it rests.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const REST = 120;  // milliseconds without a change until a view is drawn, or asked for, in full
  const SETTLED = 400;  // the same until others hear of it: what they do then takes longer than a frame
  const MOVING = 16;  // milliseconds that a frame may take while the view moves
  const PROBE = 2 ** 16;  // pixels of the first frames: what they take tells how fast the GPU is
  const MAX_DRAWN = 2048;  // pixels of a side; a screen shows hardly more
  const MAP = 96;  // pixels, long side
  const ACCENT = "#6d7dff";
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const { enlarge, line, place, reduced, tent } = R2ID.drawing;

  /** Left, top, right, bottom in fractions of the whole image. */
  function regionOf({ x, y, zoom }) {
    const half = 0.5 / zoom, centre = inside({ x, y, zoom });
    const [left, top] = [centre.x - half, centre.y - half];
    return [left, top, left + 2 * half, top + 2 * half].map(v => clamp(v, 0, 1));
  }

  /** The nearest centre with nothing beyond the image. */
  function inside({ x, y, zoom }) {
    const half = 0.5 / zoom;
    return { x: clamp(x, half, 1 - half), y: clamp(y, half, 1 - half) };
  }

  class View {
    /**
     * @param {{screen: HTMLElement, canvas: HTMLCanvasElement, marks: HTMLCanvasElement, map: HTMLCanvasElement}} parts
     * @param {object} hooks
     * @param {number} hooks.maxZoom
     * @param {(view: object) => void} hooks.ask  the server's image of this view is wanted
     * @param {(view: object) => void} [hooks.settled]  the view has not moved for a while
     * @param {(drawn: {width: number, height: number, milliseconds?: number}) => void} hooks.drawn  in full
     */
    constructor({ screen, canvas, marks, map }, hooks) {
      Object.assign(this, { screen, canvas, marks, map, hooks });
      this.view = null;  // side, ratio ("16:9" or a number), fit; x, y, zoom; as ViewRequest of request.py
      this.latent = null;  // id, cells, aspect, background and what else the server sends of it
      this.images = [];  // the server's, of this latent: { bitmap, view }
      this.decoder = this.tokens = null;
      this.kept = this.whole = null;  // what was decoded here last in full, as an image; the same of everything, small
      this.split = 0;  // share of the image, from the left, that shows the enlarged one
      this.grid = false;
      this.rate = 0;  // points a millisecond that the GPU decodes
      this.paint = canvas.getContext("2d");
    }

    /** Changes parts of the view. quiet: the server will send its image by itself. Returns whether anything changed. */
    set(changes, quiet = false) {
      const view = { ...this.view, ...changes };
      view.zoom = clamp(view.zoom, 1, this.hooks.maxZoom);
      if (this.view && Object.entries(view).every(([name, value]) => this.view[name] === value)) return false;
      this.view = view;
      this.screen.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
      this.change(quiet);
      return true;
    }

    zoom(factor, [x, y]) {
      const before = this.view.zoom, zoom = clamp(before * factor, 1, this.hooks.maxZoom), by = 1 / before - 1 / zoom;
      const centre = inside(this.view);
      this.set({ ...inside({ x: centre.x + x * by, y: centre.y + y * by, zoom }), zoom });
    }

    pan(dx, dy) {
      const { zoom } = this.view, { x, y } = inside(this.view);
      this.set(inside({ x: x - dx / zoom, y: y - dy / zoom, zoom }));
    }

    /** Takes over a latent; images of another are dropped. */
    show(latent, image) {
      if (latent.id !== this.latent?.id) [this.images, this.kept, this.whole] = [[], null, null];
      if (latent.id !== this.latent?.id || !latent.tokens) this.tokens = null;
      this.latent = latent;
      if (image) {
        this.images = [...this.images.filter(({ view }) => view.zoom === 1 && view.side >= 32).slice(-1), image];
        this.draw(true);
      }
    }

    /** The browser decodes the latent with this id from now on; the rest is what `Decoder.setLatent` takes. */
    decode(decoder, id, ...tokens) {
      if (id !== this.latent?.id || decoder.lost) return;
      decoder.setLatent(...tokens);
      Object.assign(this, { decoder, tokens: id });
      if (this.view) this.change(true);
    }

    /** The server decodes from now on. */
    forgetDecoder() {
      this.decoder = this.tokens = null;
      if (this.view) this.change();
    }

    /** Whether this browser decodes what is shown. */
    get own() { return Boolean(this.decoder && this.tokens !== null && this.tokens === this.latent?.id); }

    get size() {
      const [width, height] = R2ID.sizeOf(this.view.side, this.view.ratio);
      return { width, height };
    }

    change(quiet = false) {
      cancelAnimationFrame(this.due);
      clearTimeout(this.resting);
      clearTimeout(this.settling);
      this.quiet = quiet;
      this.due = requestAnimationFrame(() => this.draw(false));
      this.resting = setTimeout(() => this.rest(), REST);
      this.settling = setTimeout(() => this.hooks.settled?.(this.view), SETTLED);
    }

    rest() {
      cancelAnimationFrame(this.due);
      if (this.own) this.draw(true);
      else if (!this.quiet && !this.complete) this.hooks.ask({ ...this.view });
    }

    /** Whether the server's newest image is the view. */
    get complete() {
      const newest = this.images.at(-1)?.view;
      return Boolean(newest && this.view && Object.keys(this.view).every(name => newest[name] === this.view[name]));
    }

    draw(full) {
      if (!this.latent || !this.view || !this.screen.clientWidth) return;  // in a tab that is not open
      if (this.own) this._drawDecoded(full);
      else if (this.images.length) this._drawImages();
    }

    /** What lies around and over an image that was drawn. */
    _decorate() {
      this.canvas.hidden = false;
      this.canvas.style.setProperty("--ratio", this.canvas.width / this.canvas.height);
      this._drawMarks();
      this._drawMap();
    }

    _drawDecoded(full) {
      if (this.busy) {  // one frame at a time: the GPU is not given more than it can do
        this.again = (this.again ?? false) || full;
        return;
      }
      const { size, decoder, canvas, screen } = this, device = Math.min(devicePixelRatio, 2);
      const shown = Math.max(screen.clientWidth, screen.clientHeight) * device, long = Math.max(size.width, size.height);
      let scale = Math.min(1, Math.max(64, Math.min(shown, MAX_DRAWN)) / long), supersample;
      const pixels = size.width * size.height * scale ** 2;
      if (decoder.times.length < 4) scale *= Math.min(1, Math.sqrt(PROBE / pixels));
      else if (!full) [scale, supersample] = [scale * Math.min(1, Math.sqrt(Math.max(4096, this.rate * MOVING) / pixels)), 1];
      const exact = scale === 1, [width, height] = [size.width, size.height].map(v => Math.max(1, Math.round(v * scale)));
      const asked = { width, height, fit: this.view.fit, region: regionOf(this.view), supersample };
      const cut = Math.round(this.split * width), frames = [];
      try {
        if (cut < width) frames.push(decoder.render({ ...asked, columns: [cut, width] }));
        if (cut > 0) frames.push(decoder.renderEnlarged({ ...asked, columns: [0, cut] }));
      } catch (error) {  // more points than this GPU takes: the server can
        console.warn(error.message);
        return this.hooks.trouble("missing");
      }
      if (decoder.lost || frames.includes(null)) return;
      const drawn = { ...size, view: this.view, split: this.split, latent: this.latent.id, screen: { width, height } };
      this.busy = true;
      Promise.all(frames.map(frame => frame.milliseconds)).then(([milliseconds]) => {
        this.busy = false;
        const again = this.again;
        this.again = null;
        if (!this.own || decoder.lost) return;
        if (cut < width) this.rate = Math.max(this.rate * 0.9, frames[0].points / milliseconds);
        const current = decoder === this.decoder && drawn.latent === this.latent.id;
        if (current) {
          this._present(drawn, full || exact ? 0 : Math.min(1024, shown) / Math.max(width, height));
          this._harden(exact || long * scale > 0.7 * shown);
        }
        if (again != null) this.draw(again);
        else if (current && full && decoder.times.length < 5 && !exact) this.draw(true);
        else if (current && full) this.hooks.drawn({ ...drawn, milliseconds });
      });
    }

    /** Shows what the decoder drew. rough: how many times larger the canvas is than what was drawn, where the GPU does
     * not keep up with a moving view: then the last image that was drawn in full lies over it as far as it is finer. */
    _present({ view, split, screen: { width, height } }, rough) {
      const { canvas, paint, kept } = this, larger = Math.max(1, rough);
      [canvas.width, canvas.height] = [width, height].map(v => Math.round(v * larger));
      paint.drawImage(this.decoder.canvas, 0, 0, canvas.width, canvas.height);
      if (!rough) {
        this.kept ??= { bitmap: document.createElement("canvas") };
        Object.assign(this.kept, { view, split });
        Object.assign(this.kept.bitmap, { width, height });
        this.kept.bitmap.getContext("2d").drawImage(canvas, 0, 0);
        if (view.zoom === 1 && !split) this.whole = { view, bitmap: reduced(canvas, MAP) };
      } else if (kept && !split && !kept.split && kept.view.ratio === view.ratio && kept.view.fit === view.fit
        && kept.bitmap.width * kept.view.zoom / view.zoom > width) {
        place(paint, kept.bitmap, regionOf(kept.view), regionOf(view));
      }
      this._decorate();
    }

    /** Puts the view together from the server's images: exactly the newest, or enlarged and moved. */
    _drawImages() {
      const { images, canvas, paint, screen } = this, newest = images.at(-1);
      let { naturalWidth: width, naturalHeight: height } = newest.bitmap;
      const whole = this.complete || newest.preview;
      if (!whole) {
        const scale = Math.min(screen.clientWidth / width, screen.clientHeight / height, 1024 / width, 1024 / height);
        [width, height] = [width, height].map(v => Math.max(1, Math.round(v * scale)));
      }
      [canvas.width, canvas.height] = [width, height];
      paint.fillStyle = this.latent.background;
      paint.fillRect(0, 0, width, height);
      const look = whole ? newest.view : { ...newest.view, x: this.view.x, y: this.view.y, zoom: this.view.zoom };
      for (const { bitmap, view } of images) {
        if (view.ratio === look.ratio && view.fit === look.fit) place(paint, bitmap, regionOf(view), regionOf(look));
      }
      if (this.split && this.small?.of === this.latent.id) this._drawEnlarged(look);
      this._harden(true);
      this._decorate();
      if (whole) this.hooks.drawn({ width, height });
    }

    _drawEnlarged({ fit, ...look }) {
      const { width, height } = this.canvas, cut = Math.round(this.split * width);
      const window = R2ID.windowOf({ width, height, fit, region: regionOf(look) }, this.latent.aspect);
      if (cut) this.paint.putImageData(enlarge(this.small, window, cut, height, this.latent.background), 0, 0);
    }

    /** Images far enough enlarged show their pixels as squares. exact: the canvas holds the pixels that were asked for. */
    _harden(exact) {
      const { canvas } = this;
      canvas.classList.toggle("hard", exact && canvas.clientWidth > 1.5 * canvas.width);
    }

    /** The frame's box in fractions of what is visible: left, top, width, height. */
    frame(region = regionOf(this.view), size = this.own ? this.size : this.canvas) {
      const { width, height } = size;
      const { origin, pitch } = R2ID.windowOf({ width, height, fit: this.view.fit, region }, this.latent.aspect);
      const [left, top] = [0, 1].map(axis => (-0.5 / pitch[axis] - origin[axis]) / [width, height][axis]);
      return [left, top, 1 / pitch[0] / width, 1 / pitch[1] / height];
    }

    /** The latent's cells, over the image, and where the one that is pointed at acts. */
    _drawMarks() {
      const { marks, canvas } = this;
      marks.hidden = !this.grid;
      if (!this.grid) return;
      const { clientWidth, clientHeight } = canvas, [h, w] = this.latent.cells, [left, top, width, height] = this.frame();
      Object.assign(marks.style, { width: `${clientWidth}px`, height: `${clientHeight}px` });
      [marks.width, marks.height] = [clientWidth * devicePixelRatio, clientHeight * devicePixelRatio];
      const pen = marks.getContext("2d");
      pen.scale(marks.width, marks.height);
      if (this.pointed) this._light(pen, [left, top, width, height]);
      pen.strokeStyle = ACCENT;
      pen.lineWidth = 1 / clientWidth;
      pen.beginPath();
      for (let i = 0; i <= w; i++) line(pen, left + i * width / w, Math.max(0, top), left + i * width / w, Math.min(1, top + height));
      for (let j = 0; j <= h; j++) line(pen, Math.max(0, left), top + j * height / h, Math.min(1, left + width), top + j * height / h);
      pen.stroke();
    }

    /** The part of the plane that the coefficients of a cell [column, row] act on, in cells of the frame: left, top,
     * right, bottom. It ends where the frame of another latent begins, and without a border at the frame's own edge. */
    lit(cell = this.pointed) {
      const { cells: [h, w], count = 1, reach: { cells, beyond } } = this.latent, own = w / count;
      const first = cell[0] - cell[0] % own, last = first + own;
      const low = [first || !beyond ? first : -cells, beyond ? -cells : 0];
      const high = [last < w || !beyond ? last : w + cells, beyond ? h + cells : h];
      const ends = cell.map(c => [c + 0.5 - cells, c + 0.5 + cells]);
      return [...ends.map(([end], axis) => Math.max(low[axis], end)), ...ends.map(([, end], axis) => Math.min(high[axis], end))];
    }

    /** Lights it: the nearer to the cell's centre, the more its coefficients weigh. */
    _light(pen, [left, top, width, height]) {
      const { cells: [h, w], reach } = this.latent, [i, j] = this.pointed;
      pen.save();
      pen.fillStyle = "#6d7dff66";
      if (!reach) pen.fillRect(0, 0, 1, 1);
      else {
        const [x0, y0, x1, y1] = this.lit(), { cells } = reach;
        pen.translate(left, top);
        pen.scale(width / w, height / h);
        pen.beginPath();
        pen.rect(x0, y0, x1 - x0, y1 - y0);
        pen.clip();
        this.tent ??= tent();
        pen.drawImage(this.tent, i + 0.5 - cells, j + 0.5 - cells, 2 * cells, 2 * cells);
      }
      pen.restore();
    }

    /** Points at what is visible there, at nothing without it. */
    point(at) {
      this.pointed = at && this.cell(at);
      if (this.grid && this.latent) this._drawMarks();
    }

    /** The cell at a point of what is visible, [column, row]; null beyond the frame. */
    cell([x, y]) {
      const [h, w] = this.latent.cells, [left, top, width, height] = this.frame();
      const at = [Math.floor((x + 0.5 - left) / width * w), Math.floor((y + 0.5 - top) / height * h)];
      return at[0] >= 0 && at[1] >= 0 && at[0] < w && at[1] < h ? at : null;
    }

    /** What was drawn here last of everything, if it still looks like that. */
    _whole() {
      const { whole, view } = this;
      return whole?.view.ratio === view.ratio && whole.view.fit === view.fit ? whole.bitmap : null;
    }

    /** Where one is, small, while not everything is visible. */
    _drawMap() {
      const { map, view, canvas } = this;
      map.hidden = view.zoom <= 1;
      if (map.hidden) return;
      const ratio = canvas.width / canvas.height, pen = map.getContext("2d");
      [map.width, map.height] = [Math.round(MAP * Math.min(1, ratio)), Math.round(MAP / Math.max(1, ratio))];
      pen.fillStyle = this.latent.background;
      pen.fillRect(0, 0, map.width, map.height);
      const whole = this.images.find(image => image.view.zoom === 1)?.bitmap ?? this._whole() ?? this.latent.thumb;
      if (whole === this.latent.thumb && whole?.naturalWidth) {
        const [left, top, width, height] = this.frame([0, 0, 1, 1]);
        pen.drawImage(whole, left * map.width, top * map.height, width * map.width, height * map.height);
      } else if (whole) pen.drawImage(whole, 0, 0, map.width, map.height);
      const [left, top, right, bottom] = regionOf(view), [W, H] = [map.width, map.height];
      const [width, height] = [Math.max(5, (right - left) * W), Math.max(5, (bottom - top) * H)];
      pen.strokeStyle = ACCENT;
      pen.lineWidth = 2;
      pen.strokeRect(clamp((left + right) / 2 * W - width / 2, 1, W - 1 - width), clamp((top + bottom) / 2 * H - height / 2, 1, H - 1 - height), width, height);
    }
  }

  /** Long side and ratio → [width, height] in pixels, as `sides` of request.py. */
  R2ID.sizeOf = (side, ratio) => {
    const aspect = +`${ratio}`.split(":").reduce((w, h) => w / h);
    return [Math.max(1, Math.round(side * Math.min(1, aspect))), Math.max(1, Math.round(side * Math.min(1, 1 / aspect)))];
  };
  Object.assign(R2ID, { View, regionOf });
})();
