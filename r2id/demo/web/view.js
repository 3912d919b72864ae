// The large image: a view of a latent, decoded in this browser where there are its tokens, else put together from the
// server's images. While it moves it is drawn at once from what there is, and in full once it rests.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const REST = 120;  // milliseconds without a change until a view is drawn, or asked for, in full
  const MOVING = 16;  // milliseconds that a frame may take while the view moves
  const PROBE = 2 ** 16;  // pixels of the first frames: what they take tells how fast the GPU is
  const MAX_DRAWN = 2048;  // pixels of a side; a screen shows hardly more
  const MAP = 96;  // pixels, long side
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

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
     * @param {(view: object) => void} hooks.rested  the view has come to rest
     * @param {(drawn: {width: number, height: number, milliseconds?: number}) => void} hooks.drawn  in full
     */
    constructor({ screen, canvas, marks, map }, hooks) {
      Object.assign(this, { screen, canvas, marks, map, hooks });
      this.view = null;  // side, ratio ("16:9" or a number), fit; x, y, zoom; as ViewRequest of request.py
      this.latent = null;  // h, w, aspect, background and what the server sends of it
      this.images = [];  // the server's, of this latent: { bitmap, view }
      this.decoder = this.tokens = this.kept = null;  // kept: what was decoded here last in full, as an image
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
      if (latent.id !== this.latent?.id) [this.images, this.kept] = [[], null];
      if (latent.id !== this.latent?.id || !latent.tokens) this.tokens = null;
      this.latent = latent;
      if (image) {
        this.images = [...this.images.filter(({ view }) => view.zoom === 1 && view.side >= 32).slice(-1), image];
        this.draw(true);
      }
    }

    /** The browser decodes this latent from now on. token: (h, w, D) of the latent with this id. */
    decode(decoder, id, token, [h, w], aspect) {
      if (id !== this.latent?.id || decoder.lost) return;
      decoder.setLatent(token, h, w, aspect);
      Object.assign(this, { decoder, tokens: id });
      this.smallMap = null;
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
      this.quiet = quiet;
      this.due = requestAnimationFrame(() => this.draw(false));
      this.resting = setTimeout(() => this.rest(), REST);
    }

    rest() {
      cancelAnimationFrame(this.due);
      if (this.own) this.draw(true);
      else if (!this.quiet && !this.complete) this.hooks.ask({ ...this.view });
      this.hooks.rested(this.view);
    }

    /** Whether the server's newest image is the view. */
    get complete() {
      const newest = this.images.at(-1)?.view;
      return Boolean(newest && this.view && Object.keys(this.view).every(name => newest[name] === this.view[name]));
    }

    draw(full) {
      if (!this.latent || !this.view) return;
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
      if (this.split && this.small) this._drawEnlarged(look);
      this._harden(true);
      this._decorate();
      if (whole) this.hooks.drawn({ width, height });
    }

    _drawEnlarged({ fit, ...look }) {
      const { width, height } = this.canvas, cut = Math.round(this.split * width);
      const window = R2ID.windowOf({ width, height, fit, region: regionOf(look) }, this.latent.aspect);
      if (cut) this.paint.putImageData(R2ID.enlarge(this.small, window, cut, height, this.latent.background), 0, 0);
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

    /** The latent's cells, over the image. */
    _drawMarks() {
      const { marks, canvas } = this;
      marks.hidden = !this.grid;
      if (!this.grid) return;
      const { clientWidth, clientHeight } = canvas, [h, w] = this.latent.cells, [left, top, width, height] = this.frame();
      Object.assign(marks.style, { width: `${clientWidth}px`, height: `${clientHeight}px` });
      [marks.width, marks.height] = [clientWidth * devicePixelRatio, clientHeight * devicePixelRatio];
      const pen = marks.getContext("2d");
      pen.scale(marks.width, marks.height);
      pen.strokeStyle = "#6d7dff";
      pen.lineWidth = 1 / clientWidth;
      pen.beginPath();
      for (let i = 0; i <= w; i++) line(pen, left + i * width / w, Math.max(0, top), left + i * width / w, Math.min(1, top + height));
      for (let j = 0; j <= h; j++) line(pen, Math.max(0, left), top + j * height / h, Math.min(1, left + width), top + j * height / h);
      pen.stroke();
      if (this.pointed) {
        const [i, j] = this.pointed, reach = 1;  // a pixel is decoded from the 2 x 2 cells around it
        pen.fillStyle = "#6d7dff44";
        pen.fillRect(left + (i - reach / 2) * width / w, top + (j - reach / 2) * height / h, (1 + reach) * width / w, (1 + reach) * height / h);
        pen.fillStyle = "#6d7dff66";
        pen.fillRect(left + i * width / w, top + j * height / h, width / w, height / h);
      }
    }

    /** The cell at a point of what is visible, [column, row]; null beyond the frame. */
    cell([x, y]) {
      const [h, w] = this.latent.cells, [left, top, width, height] = this.frame();
      const at = [Math.floor((x + 0.5 - left) / width * w), Math.floor((y + 0.5 - top) / height * h)];
      return at[0] >= 0 && at[1] >= 0 && at[0] < w && at[1] < h ? at : null;
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
      const whole = this.images.find(image => image.view.zoom === 1)?.bitmap ?? this.latent.thumb;
      if (whole === this.latent.thumb && whole?.naturalWidth) {
        const [left, top, width, height] = this.frame([0, 0, 1, 1]);
        pen.drawImage(whole, left * map.width, top * map.height, width * map.width, height * map.height);
      } else if (whole) pen.drawImage(whole, 0, 0, map.width, map.height);
      const [left, top, right, bottom] = regionOf(view), [W, H] = [map.width, map.height];
      const [width, height] = [Math.max(5, (right - left) * W), Math.max(5, (bottom - top) * H)];
      pen.strokeStyle = "#6d7dff";
      pen.lineWidth = 2;
      pen.strokeRect(clamp((left + right) / 2 * W - width / 2, 1, W - 1 - width), clamp((top + bottom) / 2 * H - height / 2, 1, H - 1 - height), width, height);
    }
  }

  function line(pen, x0, y0, x1, y1) {
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
  }

  /** Draws the part of an image of the region `from` that lies in the region `to`, which fills the canvas. */
  function place(paint, bitmap, from, to) {
    const box = [Math.max(from[0], to[0]), Math.max(from[1], to[1]), Math.min(from[2], to[2]), Math.min(from[3], to[3])];
    if (box[0] >= box[2] || box[1] >= box[3]) return;
    const cut = (region, [width, height]) => box.map((v, i) =>
      (v - region[i % 2]) / (region[2 + i % 2] - region[i % 2]) * (i % 2 ? height : width));
    const s = cut(from, [bitmap.naturalWidth ?? bitmap.width, bitmap.naturalHeight ?? bitmap.height]);
    const d = cut(to, [paint.canvas.width, paint.canvas.height]);
    paint.drawImage(bitmap, s[0], s[1], s[2] - s[0], s[3] - s[1], d[0], d[1], d[2] - d[0], d[3] - d[1]);
  }

  /** `enlarge` of decoder_shaders.js without a GPU: the first columns of a small image's bicubic enlargement. */
  R2ID.enlarge = (small, window, width, height, background) => {
    const { width: w, height: h, data } = small, result = new ImageData(width, height);
    const x = R2ID.axisWeights(window, 0, width, w), y = R2ID.axisWeights(window, 1, height, h);
    const ground = background.match(/\d+/g).map(Number), line = new Float32Array(3 * width * h);
    for (let row = 0; row < h; row++) {
      for (let column = 0, at = 0; column < width; column++, at += 2 + x.taps) {
        for (let tap = 0; tap < x.taps && x.data[at] + tap < w; tap++) {
          const weight = x.data[at + 2 + tap], from = 4 * (row * w + x.data[at] + tap), to = 3 * (row * width + column);
          for (let c = 0; c < 3; c++) line[to + c] += weight * data[from + c];
        }
      }
    }
    for (let row = 0, at = 0; row < height; row++, at += 2 + y.taps) {
      for (let column = 0; column < width; column++) {
        const inside = x.data[column * (2 + x.taps) + 1] * y.data[at + 1], to = 4 * (row * width + column);
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let tap = 0; tap < y.taps && y.data[at] + tap < h; tap++) {
            sum += y.data[at + 2 + tap] * line[3 * ((y.data[at] + tap) * width + column) + c];
          }
          result.data[to + c] = inside * clamp(sum, 0, 255) + (1 - inside) * ground[c];
        }
        result.data[to + 3] = 255;
      }
    }
    return result;
  };

  /** Long side and ratio → [width, height] in pixels, as `sides` of request.py. */
  R2ID.sizeOf = (side, ratio) => {
    const aspect = +`${ratio}`.split(":").reduce((w, h) => w / h);
    return [Math.max(1, Math.round(side * Math.min(1, aspect))), Math.max(1, Math.round(side * Math.min(1, 1 / aspect)))];
  };
  Object.assign(R2ID, { View, regionOf });
})();
