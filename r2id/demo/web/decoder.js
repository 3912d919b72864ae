// Decodes latents in the browser's own GPU: r2id/resampler.py from the cells' tokens on, in WebGL2, without a library.
//
//   const model = await R2ID.unpack(bytes);  // of r2id/demo/web_decoder.py, pack_model
//   const decoder = R2ID.createDecoder(canvas, model, { onTrouble: reason => useTheServer(reason) });
//   decoder.setLatent(tokens, h, w, aspect);  // a row of pack_latent, or several side by side
//   decoder.render({ width: 256, height: 256, fit: "contain", region: [0.4, 0.4, 0.6, 0.6] });
//
// Needs decoder_axes.js, decoder_shaders.js and decoder_program.js. Shapes are written as in Python: h, w cells of the latent, D numbers of
// a token, F basis functions of an axis, N points.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const FULL = [0, 0, 1, 1];
  const TILE_POINTS = 2 ** 18;  // of a draw call: bounds memory, and the time for which it holds the GPU
  const LINE_TEXELS = 2 ** 20;
  const WATCHED = 3;  // frames after the first, whose shaders are still being compiled
  const { Program, padded, coefficientTexels, pixelMlpLiterals } = R2ID;

  /**
   * A file of web_decoder.py: gzip around safetensors.
   * @param {ArrayBuffer | Uint8Array} bytes
   * @returns {Promise<{metadata: object, tensors: Object<string, {shape: number[], data: Uint16Array | Float32Array}>}>}
   *   half floats as Uint16Array
   */
  async function unpack(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
    const { __metadata__: { r2id }, ...entries } = JSON.parse(new TextDecoder().decode(buffer.slice(8, start)));
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
      const data = buffer.slice(start + from, start + to);
      tensors[name] = { shape, data: dtype === "F16" ? new Uint16Array(data) : new Float32Array(data) };
    }
    return { metadata: JSON.parse(r2id), tensors };
  }

  /**
   * A decoder that draws into `canvas`, which must have no context yet.
   * @param {HTMLCanvasElement | OffscreenCanvas} canvas
   * @param {object} model  what `unpack` gave of a model
   * @param {{budget?: number, onTrouble?: (reason: "lost" | "slow") => void}} options  onTrouble: called once when the
   *   context is lost or when none of the first frames took less than `budget` milliseconds
   * @returns {Decoder}
   * @throws {Error} one line, where this browser cannot decode for this model
   */
  const createDecoder = (canvas, model, options) => new Decoder(canvas, model, options);

  class Decoder {
    constructor(canvas, { metadata: { config }, tensors }, { budget = 400, onTrouble = () => {} } = {}) {
      const how = { alpha: false, antialias: false, depth: false, preserveDrawingBuffer: true, powerPreference: "high-performance" };
      const gl = canvas.getContext("webgl2", how);
      if (!gl?.getExtension("EXT_color_buffer_float")) throw new Error("no WebGL2 with float textures here");
      Object.assign(this, { canvas, gl, config, budget, onTrouble, lost: false, slow: false });
      this.sizes = R2ID.shaders.sizesOf(config);
      this.maxSide = gl.getParameter(gl.MAX_TEXTURE_SIZE);
      this.background = this._colour(config.background);
      this.textures = new Map();  // by name; those of latents and views are replaced, never added to
      this.times = [];
      this._lose = event => { event.preventDefault(); this._trouble("lost"); };
      canvas.addEventListener("webglcontextlost", this._lose);
      this._upload(tensors);
    }

    /**
     * The latent that is shown from now on, or the latents: their frames lie side by side.
     * @param {Uint16Array | Float32Array} tokens  half or single floats (count, h, w, D)
     * @param {number} h  cells of one latent
     * @param {number} w
     * @param {number} aspect  of one frame, width / height
     * @param {number} [count]
     */
    setLatent(tokens, h, w, aspect, count = 1) {
      const { F, T, D, D4 } = this.sizes, shape = [...(count > 1 ? [count] : []), h, w];
      if (tokens.length !== count * h * w * D) throw new Error(`${tokens.length} numbers: must be ${[...shape, D].join(" x ")}`);
      if (Math.max(w * F * T, count * h * F, w * D4) > this.maxSide) {
        throw new Error(`${shape.join(" x ")} cells: too many for this GPU`);
      }
      if (this.lost) return;
      this.latent = { h, w, aspect, count };
      this.small = null;
      this._texture("token", w * D4, count * h, padded(tokens, count * h * w, D));
      this._coefficients("coefficient", "token", w, count * h);
    }

    /**
     * Draws the latent; the canvas gets this size in pixels.
     * @param {object} view
     * @param {number} view.width  pixels
     * @param {number} view.height
     * @param {"contain" | "cover" | "stretch"} [view.fit]  by default the model's own
     * @param {number[]} [view.region]  left, top, right, bottom in fractions of the whole image
     * @param {number[]} [view.columns]  first and last + 1 to draw; the others keep what the last call in this task drew
     * @param {number} [view.supersample]  points of a pixel along an axis; by default as many as it takes to not alias
     * @returns {{points: number, milliseconds: Promise<number>} | null}  points decoded, and how long the GPU took;
     *   null after the context was lost
     */
    render(view) {
      return this._frame(view, (asked, window) => {
        const factors = view.supersample ? [view.supersample, view.supersample] : null;
        return this._decode(this._screen(asked), asked, window, factors);
      });
    }

    /** The same view of a small image, enlarged bicubically: the decoded image with as many numbers as the latent has,
     * reduced by means. Its size is `smallSize`. */
    renderEnlarged(view) {
      return this._frame(view, (asked, window) => {
        this.small ??= this._decodeSmall();
        const [columns, rows] = ["width", "height"].map((side, axis) =>
          R2ID.axisWeights(window, axis, asked[side], this.smallSize[side]));
        for (const [name, { data, taps }, side] of [["column_weights", columns, "width"], ["row_weights", rows, "height"]]) {
          this._texture(name, 2 + taps, asked[side], data, this.gl.R32F);
        }
        const [left, right] = asked.columns, box = { left, right, top: 0, bottom: asked.height };
        const target = this._screen(asked);
        this._draw("enlarge", target, box, [0, 0], { taps: [columns.taps, rows.taps], background: this.background });
        return this.small.points;
      });
    }

    /** Height and width in pixels of the small image that has as many numbers as the latent; of several, side by side. */
    get smallSize() {
      const { h, w, aspect, count } = this.latent, { latent_channels: channels, channels: C } = this.config;
      const side = ratio => Math.max(1, Math.round(Math.sqrt(h * w * channels / C * ratio)));
      return { height: side(1 / aspect), width: count * side(aspect) };
    }

    /** What the last call in this task drew, RGBA (height, width, 4), rows from the top. */
    readPixels() {
      const { gl, canvas: { width, height } } = this, stride = 4 * width;
      const upward = new Uint8Array(height * stride), downward = new Uint8ClampedArray(height * stride);
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, upward);
      for (let y = 0; y < height; y++) {
        downward.set(upward.subarray(y * stride, (y + 1) * stride), (height - 1 - y) * stride);
      }
      return downward;
    }

    /** Frees everything; the decoder cannot be used any more. */
    dispose() {
      const { gl } = this;
      this.canvas.removeEventListener("webglcontextlost", this._lose);
      this.lost = true;
      for (const { texture, framebuffer } of this.textures.values()) {
        gl.deleteTexture(texture);
        gl.deleteFramebuffer(framebuffer);
      }
      for (const { program } of Object.values(this.programs)) gl.deleteProgram(program);
      this.textures.clear();
    }

    /** What is computed once for a model: programs, weights, and the coefficients of a border cell. */
    _upload(tensors) {
      const { gl, sizes, config } = this, { F, T, D, D4, C } = sizes, shaders = R2ID.shaders;
      if (Math.max(F * F * T, F * T, 4 * D4 + 1) > this.maxSide || C > 4) throw new Error("model too large for this GPU");
      const literals = pixelMlpLiterals(tensors, config);
      this.programs = Object.fromEntries(Object.entries({
        coefficients: shaders.coefficients(sizes),
        lines: shaders.linesOfRows(sizes),
        points: shaders.points(sizes, literals),
        means: shaders.means,
        enlarge: shaders.enlarge,
      }).map(([name, source]) => [name, new Program(gl, source)]));
      const { "coefficients_out.weight": weight, "coefficients_out.bias": bias, border_token: border } = tensors;
      this._texture("coefficients_out", 4 * D4 + 1, F * F * T, coefficientTexels(weight.data, bias.data, sizes, config));
      const token = border ? border.data : new Float32Array(D);
      this._texture("border_token", D4, 1, padded(token, 1, D));
      this._coefficients("border_coefficient", "border_token", 1, 1);
    }

    _coefficients(into, token, w, h) {
      const { F, T } = this.sizes;
      const target = this._target(into, w * F * T, h * F, this.gl.RGBA32F);
      this._draw("coefficients", target, target.box, [0, 0], {}, { token });
    }

    /** Checks a view, draws it and measures: draw(asked, window) → points. */
    _frame(view, draw) {
      if (this.lost) return null;
      if (!this.latent) throw new Error("no latent yet: call setLatent first");
      const asked = { fit: this.config.fit, region: FULL, columns: [0, view.width], ...view }, { canvas } = this;
      const window = R2ID.windowOf(asked, this._aspect), start = performance.now();
      if (canvas.width !== asked.width) canvas.width = asked.width;
      if (canvas.height !== asked.height) canvas.height = asked.height;
      const points = draw(asked, window);
      return { points, milliseconds: this._measure(start) };
    }

    /** Of all frames together. */
    get _aspect() { return this.latent.count * this.latent.aspect; }

    _screen = ({ width, height, columns }) => ({ framebuffer: null, width, height, columns });

    /** Decodes a window into a target, as far as the decoder reaches; beyond lies the background. Returns the number of
     * points. factors: points of a pixel [across, down], null for as many as it takes. */
    _decode(target, { width, height, columns = [0, width] }, window, factors) {
      const { aspect, count } = this.latent;
      this._clear(target, columns, height);
      let points = 0;
      for (let index = 0; index < count; index++) {
        const own = R2ID.partOf(window, index, count, columns);
        if (own.left >= own.right) continue;
        factors ??= R2ID.pointsPerPixel(own.window, aspect, this.config.decoder_size);
        points += this._decodePart(target, own, height, index, factors);
      }
      return points;
    }

    /** The same for the columns of one latent: its window, of which column 0 is column `first` of the target, and the
     * ends beyond which another latent begins. */
    _decodePart(target, { window, left: first, right: end, ends }, height, index, [across, down]) {
      const { gl, latent: { h, w }, config, sizes: { F, T } } = this, { border_rings: rings } = config;
      const fine = R2ID.supersample(window, [across, down]);
      const x = R2ID.axisFeatures(R2ID.coordinates(fine, 0, (end - first) * across, ends), w, config);
      const y = R2ID.axisFeatures(R2ID.coordinates(fine, 1, height * down), h, config);
      const [left, right, top, bottom] = [[x, across], [y, down]].flatMap(([{ inside }, points]) =>
        [Math.floor(inside[0] / points), Math.ceil(inside[1] / points)]);
      const widest = Math.max(1, Math.floor(Math.min(this.maxSide, TILE_POINTS / down) / across));
      const lines = Math.min(this.maxSide, Math.floor(LINE_TEXELS / (x.count * F * T)));
      if (x.count * F * T > this.maxSide || lines < down || across > this.maxSide) throw new Error("too many cells for this GPU");
      for (let l = left; l < right; l += widest) {
        const r = Math.min(l + widest, right);
        const tallest = Math.max(1, Math.floor(Math.min(lines, TILE_POINTS / ((r - l) * across)) / down));
        this._axis("column_features", x, l * across, r * across);
        for (let t = top; t < bottom; t += tallest) {
          const b = Math.min(t + tallest, bottom), rows = (b - t) * down;
          const box = { left: first + l, right: first + r, top: t, bottom: b };
          this._axis("row_features", y, t * down, b * down);
          const line = this._target("line", x.count * F * T, rows, gl.RGBA32F), { low } = x;
          this._draw("lines", line, line.box, [0, 0], { cells: [w, h], first_row: index * h, rings, low });
          const colours = { low, background: this.background };
          if (across * down === 1) {
            this._draw("points", target, box, [box.left, t], colours);
          } else {
            const point = this._target("point", (r - l) * across, rows, gl.RGBA16F);
            this._draw("points", point, point.box, [0, 0], colours);
            this._draw("means", target, box, [box.left, t], { points_per_pixel: [across, down] });
          }
        }
      }
      return Math.max(0, right - left) * Math.max(0, bottom - top) * across * down;
    }

    _decodeSmall() {
      const size = this.smallSize, window = R2ID.windowOf({ ...size, fit: "stretch" }, this._aspect);
      const target = this._target("small_image", size.width, size.height, this.gl.RGBA32F);
      return { points: this._decode(target, size, window, null) };
    }

    /** Runs a program on a box of a target: {left, right, top, bottom}, rows from the top. first: column and row of the
     * target that are number 0 for the program. */
    _draw(name, target, box, first, uniforms, textures = {}) {
      const { gl } = this, program = this.programs[name], upward = target.framebuffer === null;
      gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
      gl.viewport(box.left, upward ? target.height - box.bottom : box.top, box.right - box.left, box.bottom - box.top);
      program.use({
        origin: [-first[0], upward ? target.height - 1 - first[1] : -first[1]],
        direction: [1, upward ? -1 : 1],
        ...uniforms,
      }, sampler => this.textures.get(textures[sampler] ?? sampler).texture);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }

    _clear({ framebuffer }, [left, right], height) {
      const { gl } = this;
      gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(left, 0, right - left, height);
      gl.clearColor(...this.background);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.disable(gl.SCISSOR_TEST);
    }

    /** The features of some of an axis' points as a texture. */
    _axis(name, { data, stride }, from, to) {
      this._texture(name, this.sizes.A, to - from, data.subarray(from * stride, to * stride));
    }

    /** A texture with this content; half floats stay half floats. */
    _texture(name, width, height, data, kind = null) {
      const { gl } = this, half = data instanceof Uint16Array;
      this._allocate(name, width, height, kind ?? (half ? gl.RGBA16F : gl.RGBA32F));
      const format = kind === gl.R32F ? gl.RED : gl.RGBA;
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, format, half ? gl.HALF_FLOAT : gl.FLOAT, data);
    }

    /** A texture to draw into, of which this size is used. */
    _target(name, width, height, kind) {
      const entry = this._allocate(name, width, height, kind), { gl } = this;
      if (!entry.framebuffer) {
        entry.framebuffer = gl.createFramebuffer();
        gl.bindFramebuffer(gl.FRAMEBUFFER, entry.framebuffer);
        gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, entry.texture, 0);
      }
      return { framebuffer: entry.framebuffer, height, box: { left: 0, right: width, top: 0, bottom: height } };
    }

    /** Binds the texture of this name to unit 0; makes it anew where it is too small or of another kind. */
    _allocate(name, width, height, kind) {
      const { gl } = this, known = this.textures.get(name);
      gl.activeTexture(gl.TEXTURE0);
      if (known && known.width >= width && known.height >= height && known.kind === kind) {
        gl.bindTexture(gl.TEXTURE_2D, known.texture);
        return known;
      }
      gl.deleteTexture(known?.texture ?? null);
      gl.deleteFramebuffer(known?.framebuffer ?? null);
      const texture = gl.createTexture(), entry = { texture, framebuffer: null, width, height, kind };
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texStorage2D(gl.TEXTURE_2D, 1, kind, width, height);
      for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
      this.textures.set(name, entry);
      return entry;
    }

    /** Milliseconds from `start` until the GPU has done all that it was given. */
    async _measure(start) {
      const { gl } = this, sync = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
      gl.flush();
      while (!this.lost && gl.getSyncParameter(sync, gl.SYNC_STATUS) !== gl.SIGNALED) {
        await new Promise(done => setTimeout(done, 1));
      }
      gl.deleteSync(sync);
      const milliseconds = performance.now() - start;
      if (!this.lost && this.times.push(milliseconds) === 1 + WATCHED && Math.min(...this.times) > this.budget) {
        this._trouble("slow");
      }
      return milliseconds;
    }

    _trouble(reason) {
      if (this[reason]) return;
      this[reason] = true;
      this.onTrouble(reason);
    }

    /** A colour of 1 or 3 channels as RGBA. */
    _colour = channels => [...(channels.length === 1 ? [channels[0], channels[0], channels[0]] : channels), 1];
  }

  Object.assign(R2ID, { createDecoder, unpack });
})();
