// Where pixels and cells lie: r2id/position.py, local_basis.py and interpolation.py, one axis at a time.
// In double precision, since a zoom is finer than a shader's float32; shaders get the results and no coordinates.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const FITS = ["contain", "cover", "stretch"];
  const FULL = [0, 0, 1, 1];
  const MIN_REGION = 2 ** -20;
  const MAX_POINTS = 2 ** 20;  // of one pixel
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  /**
   * The window that an output shows of the plane of a frame: pixel i of an axis is at (i + ½ + origin) · pitch, in
   * absolute units, in which the frame is from -½ to ½.
   * @param {{height: number, width: number, fit: string, region?: number[]}} view  size in pixels; region: left, top,
   *   right, bottom in fractions of the whole image
   * @param {number} aspect  of the frame, width / height
   * @returns {{origin: number[], pitch: number[]}}  x, y each
   */
  function windowOf({ height, width, fit, region = FULL }, aspect) {
    const [left, top, right, bottom] = region;
    if (![height, width].every(side => Number.isInteger(side) && side >= 1)) {
      throw new Error(`size ${height} x ${width}: must be whole numbers from 1 on`);
    }
    if (!FITS.includes(fit)) throw new Error(`fit ${fit}: must be one of ${FITS.join(", ")}`);
    if (!(left >= 0 && top >= 0 && right <= 1 && bottom <= 1 && Math.min(right - left, bottom - top) >= MIN_REGION)) {
      throw new Error(`region ${region}: needs 0 <= left < right <= 1, top and bottom alike, 2^-20 or wider`);
    }
    const whole = [width / (right - left), height / (bottom - top)];
    let [frameWidth, frameHeight] = whole;
    if (fit !== "stretch") {
      frameHeight = Math[fit === "contain" ? "min" : "max"](whole[1], whole[0] / aspect);
      frameWidth = frameHeight * aspect;
    }
    return {
      origin: [left * whole[0] - whole[0] / 2, top * whole[1] - whole[1] / 2],
      pitch: [1 / frameWidth, 1 / frameHeight],
    };
  }

  /** How many points [across, down] a pixel is the mean of, so that nothing aliases. */
  function pointsPerPixel(window, aspect, decoderSize) {
    const shortSides = [Math.max(1, aspect), Math.max(1, 1 / aspect)];
    const points = window.pitch.map((pitch, axis) => {
      const density = 1 / (pitch * shortSides[axis]);
      return Math.max(1, Math.ceil(Math.min(decoderSize, 2 * Math.max(density, 256)) / density - 1e-9));
    });
    if (points[0] * points[1] > MAX_POINTS) {
      throw new Error(`${points[0] * points[1]} points a pixel, at most ${MAX_POINTS}: use a larger size`);
    }
    return points;
  }

  /** The same window with every pixel cut into factors = [across, down]. */
  const supersample = ({ origin, pitch }, factors) => ({
    origin: origin.map((o, axis) => o * factors[axis]),
    pitch: pitch.map((p, axis) => p / factors[axis]),
  });

  /** Absolute x (axis 0) or y (1) of the first `count` columns or rows, no further than `ends`, Float64Array (N). */
  const coordinates = (window, axis, count, ends = [-Infinity, Infinity]) =>
    Float64Array.from({ length: count }, (_, i) => clamp((i + 0.5 + window.origin[axis]) * window.pitch[axis], ...ends));

  /**
   * The part of a window that shows one of `count` frames side by side; those at the ends reach on beyond.
   * @returns {{left: number, right: number, window: object, ends: number[]}}  first and last + 1 column of the part, of
   *   those in `columns`; the frame's own window, in which `left` is column 0; the x at which its neighbours begin
   */
  function partOf({ origin, pitch }, index, count, columns) {
    const edge = i => clamp(Math.ceil((i / count - 0.5) / pitch[0] - origin[0] - 0.5), ...columns);
    const left = index ? edge(index) : columns[0], right = index < count - 1 ? edge(index + 1) : columns[1];
    const middle = ((index + 0.5) / count - 0.5) / pitch[0];
    return {
      left, right,
      window: { origin: [origin[0] + left - middle, origin[1]], pitch: [pitch[0] * count, pitch[1]] },
      ends: [index ? -0.5 : -Infinity, index < count - 1 ? 0.5 : Infinity],
    };
  }

  /** Texels that hold what a shader needs of a column or row: first cell, inside or not, basis of two cells. */
  const axisTexels = harmonics => Math.ceil((2 + 2 * (2 * harmonics + 1)) / 4);

  /**
   * `LocalBasis.evaluate` for the columns of a grid, or its rows.
   * @param {Float64Array} values  rising absolute coordinates (N)
   * @param {number} cells  of the frame along this axis
   * @param {object} config  of the model
   * @returns {{data: Float32Array, stride: number, low: number, count: number, inside: number[]}}  data (N, stride):
   *   the first of the two cells, 1 within the decoder's reach and 0 beyond, and the basis (2, F); low, count: the
   *   cells that any of them reads; inside: first and last + 1 of those within reach
   */
  function axisFeatures(values, cells, { border_rings: rings, decoder_harmonics: harmonics, base_frequency: turns }) {
    const lattice = cells + 2 * rings, reach = 0.5 + Math.max(0, rings - 0.5) / cells, F = 2 * harmonics + 1;
    const stride = 4 * axisTexels(harmonics), data = new Float32Array(values.length * stride), inside = [0, 0];
    values.forEach((value, n) => {
      const unclamped = (rings ? value : clamp(value, -0.5, 0.5)) * cells + (cells - 1) / 2 + rings;
      const inner = clamp(unclamped, 0, lattice - 1), place = rings ? inner : unclamped;
      const first = Math.min(Math.floor(inner), Math.max(0, lattice - 2)), far = inner - first, at = n * stride;
      data[at] = first;
      if (Math.abs(value) <= reach) {
        if (inside[0] === inside[1]) inside[0] = n;
        inside[1] = n + 1;
        data[at + 1] = 1;
      }
      for (const [cell, weight] of [1 - far, far].entries()) {
        const basis = at + 2 + cell * F, offset = place - first - cell;
        data[basis] = weight;
        for (let k = 1; k <= harmonics; k++) {
          const angle = offset * (2 * Math.PI * turns * k);
          data[basis + k] = weight * Math.sin(angle);
          data[basis + harmonics + k] = weight * Math.cos(angle);
        }
      }
    });
    const low = data[0], last = data[(values.length - 1) * stride];
    return { data, stride, low, count: last + 2 - low, inside };
  }

  /**
   * `interpolation.axis_weights`: antialiased bicubic weights (Keys, a = -½) of some pixels along one axis.
   * @returns {{data: Float32Array, taps: number}}  data (N, 2 + taps): the first cell, the share of the pixel within
   *   the frame, and the weights of the cells from the first on, zero beyond the last
   */
  function axisWeights(window, axis, count, cells) {
    const pitch = window.pitch[axis], widening = Math.max(1, pitch * cells);
    const taps = Math.min(cells, Math.ceil(4 * widening) + 1), data = new Float32Array(count * (2 + taps));
    for (let n = 0; n < count; n++) {
      const edge = (n + window.origin[axis]) * pitch + 0.5, at = n * (2 + taps);
      const centre = clamp(edge + pitch / 2, 0, 1) * cells;
      const first = clamp(Math.ceil(centre - 0.5 - 2 * widening), 0, cells - taps);
      const weights = Array.from({ length: taps }, (_, i) => cubic((first + i + 0.5 - centre) / widening));
      const total = weights.reduce((sum, weight) => sum + weight);
      data[at] = first;
      data[at + 1] = (clamp(edge + pitch, 0, 1) - clamp(edge, 0, 1)) / pitch;
      weights.forEach((weight, i) => { data[at + 2 + i] = weight / total; });
    }
    return { data, taps };
  }

  function cubic(x) {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x ** 2 + 1;
    return x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0;
  }

  Object.assign(R2ID, { windowOf, pointsPerPixel, supersample, coordinates, partOf, axisTexels, axisFeatures, axisWeights });
})();
