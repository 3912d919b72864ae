// What view.js draws with a 2D canvas.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  /** A copy with this long side. */
  function reduced(canvas, side) {
    const scale = side / Math.max(canvas.width, canvas.height), copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height].map(v => Math.max(1, Math.round(v * scale)));
    copy.getContext("2d").drawImage(canvas, 0, 0, copy.width, copy.height);
    return copy;
  }

  /** A cell's bilinear weight within one cell around its centre, as opacity. */
  function tent(side = 64) {
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side }), pen = canvas.getContext("2d");
    const image = pen.createImageData(side, side), weight = n => 1 - Math.abs((n + 0.5) / side * 2 - 1);
    for (let n = 0; n < side * side; n++) image.data.set([109, 125, 255, 230 * weight(n % side) * weight(Math.floor(n / side))], 4 * n);
    pen.putImageData(image, 0, 0);
    return canvas;
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
  const enlarge = (small, window, width, height, background) => {
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

  R2ID.drawing = { enlarge, line, place, reduced, tent };
})();
