// The shaders of decoder.js, generated for the sizes in a model's configuration. Their tensors have the names of
// r2id/resampler.py; four numbers a texel.
//
// A feature is Σ over the 2 × 2 cells beside a point and F × F basis functions of b_i(y) · b_j(x) · coefficient. The sum
// over i is taken once for each row and cell (`line`), then the sum over j for each point, as in r2id/fast_decode.py.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
`;
  const VERTEX = `${HEAD}
void main() {  // one triangle that covers everything
  gl_Position = vec4(gl_VertexID == 1 ? 3. : -1., gl_VertexID == 2 ? 3. : -1., 0., 1.);
}`;

  const lines = (count, text) => Array.from({ length: count }, (_, index) => text(index)).join("\n  ");
  const sum = (count, text) => Array.from({ length: count }, (_, index) => text(index)).join(" + ");
  const texels = numbers => Math.ceil(numbers / 4);

  /** Sizes that shaders and textures share: F basis functions of an axis, D numbers of a token, and in texels D4 of a
   * token, T of features, P of the pixel MLP's width, A of a row's or column's own numbers. */
  function sizesOf(config) {
    const D = config.width + (config.linear_codec ? config.latent_channels : 0);
    return {
      F: 2 * config.decoder_harmonics + 1, D, D4: texels(D), T: texels(config.features),
      P: texels(config.pixel_width), A: R2ID.axisTexels(config.decoder_harmonics), C: config.channels,
    };
  }

  /** Component n of the texels `name`0, `name`1, … */
  const component = (name, n) => `${name}${n >> 2}.${"xyzw"[n & 3]}`;
  const fetchAxis = (name, sampler, at, A) =>
    lines(A, n => `vec4 ${name}${n} = texelFetch(${sampler}, ivec2(${n}, ${at}), 0);`);

  /** Tokens (h, w, D) → coefficients, texel (row · F + i, column · F·T + j·T + t): `R2IR.coefficients_out`. */
  const coefficients = ({ F, T, D4 }) => `${HEAD}
uniform sampler2D token, coefficients_out;
out vec4 coefficient;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  ivec2 cell = at / ivec2(${F * T}, ${F}), j_i = at % ivec2(${F * T}, ${F});
  int o = j_i.y * ${F * T} + j_i.x;
  coefficient = texelFetch(coefficients_out, ivec2(${4 * D4}, o), 0);  // the bias
  for (int d = 0; d < ${D4}; d++) {
    coefficient += mat4(
      texelFetch(coefficients_out, ivec2(4 * d, o), 0), texelFetch(coefficients_out, ivec2(4 * d + 1, o), 0),
      texelFetch(coefficients_out, ivec2(4 * d + 2, o), 0), texelFetch(coefficients_out, ivec2(4 * d + 3, o), 0)
    ) * texelFetch(token, ivec2(cell.x * ${D4} + d, cell.y), 0);
  }
}`;

  /** Coefficients and rows → lines, texel (row, (cell - low) · F·T + j·T + t): Σ over two cells and i of b_i(y) · c. */
  const linesOfRows = ({ F, T, A }) => `${HEAD}
uniform sampler2D coefficient, border_coefficient, row_features;
uniform ivec2 cells;  // x, y, without the border
uniform int first_row, rings, low;  // first_row: of cells, of the latents one below the other
out vec4 line;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  ${fetchAxis("row", "row_features", "at.y", A)}
  int x = min(low + at.x / ${F * T}, cells.x + 2 * rings - 1) - rings, j_t = at.x % ${F * T}, y;
  line = vec4(0.);
  ${lines(2, cell => `y = min(int(row0.x) + ${cell}, cells.y + 2 * rings - 1) - rings;
  if (x < 0 || y < 0 || x >= cells.x || y >= cells.y) {
    ${lines(F, i => `line += ${component("row", 2 + cell * F + i)} * texelFetch(border_coefficient, ivec2(j_t, ${i}), 0);`)}
  } else {
    int c = x * ${F * T} + j_t, r = (first_row + y) * ${F};
    ${lines(F, i => `line += ${component("row", 2 + cell * F + i)} * texelFetch(coefficient, ivec2(c, r + ${i}), 0);`)}
  }`)}
}`;

  /**
   * Lines and columns → points: Σ over two cells and j of b_j(x) · line gives the features, `R2IR.colour` the colour. The
   * weights of the pixel MLP are literals: rendered in software, that is seven times as fast as a uniform block.
   */
  const points = ({ F, T, P, A, C }, { mlp0, mlp2, mlp4, linear }) => `${HEAD}
uniform sampler2D line, row_features, column_features;
uniform ivec2 origin, direction;  // of the fragment's own coordinates: column, row = origin + direction * those
uniform int low;
uniform vec4 background;
out vec4 point;
vec4 silu(vec4 x) { return x / (1. + exp(-x)); }
void main() {
  ivec2 at = origin + direction * ivec2(gl_FragCoord.xy);
  ${fetchAxis("column", "column_features", "at.x", A)}
  if (column0.y * texelFetch(row_features, ivec2(0, at.y), 0).y == 0.) { point = background; return; }
  int c = (int(column0.x) - low) * ${F * T};
  ${lines(T, t => `vec4 feature${t} = ${sum(2 * F, j =>
    `${component("column", 2 + j)} * texelFetch(line, ivec2(c + ${j * T + t}, at.y), 0)`)};`)}
  ${lines(P, p => `vec4 hidden${p} = silu(${mlp0.bias(p)} + ${sum(T, t => `${mlp0.matrix(p, t)} * feature${t}`)});`)}
  ${lines(P, p => `vec4 second${p} = silu(${mlp2.bias(p)} + ${sum(P, q => `${mlp2.matrix(p, q)} * hidden${q}`)});`)}
  vec4 colour = ${mlp4.bias(0)};
  ${lines(C, k => `colour[${k}] += ${sum(P, p => `dot(${mlp4.row(k, p)}, second${p})`)};
  colour[${k}] += ${sum(T, t => `dot(${linear.row(k, t)}, feature${t})`)};`)}
  colour = clamp(colour, -1., 1.) * .5 + .5;
  point = vec4(colour.${C === 1 ? "xxx" : "rgb"}, 1.);
}`;

  /** A linear map's literals, four numbers at a time: `matrix(o, i)` and `row(o, i)` of its weight, `bias(o)`. */
  function literals(weight, bias, inputs) {
    const number = value => {
      const text = (value ?? 0).toPrecision(9);  // exact for single floats
      return /[.e]/.test(text) ? text : `${text}.`;
    };
    const at = (o, i) => (i < inputs ? weight[o * inputs + i] : 0);
    const four = value => [0, 1, 2, 3].map(value);
    return {
      matrix: (o, i) => `mat4(${four(k => four(n => number(at(4 * o + n, 4 * i + k)))).join()})`,
      row: (o, i) => `vec4(${four(k => number(at(o, 4 * i + k))).join()})`,
      bias: o => `vec4(${four(n => number(bias?.[4 * o + n])).join()})`,
    };
  }

  /** Points → pixels, each the mean of its own. */
  const means = `${HEAD}
uniform sampler2D point;
uniform ivec2 origin, direction, points_per_pixel;
out vec4 colour;
void main() {
  ivec2 first = (origin + direction * ivec2(gl_FragCoord.xy)) * points_per_pixel;
  colour = vec4(0.);
  for (int y = 0; y < points_per_pixel.y; y++) {
    vec4 row = vec4(0.);
    for (int x = 0; x < points_per_pixel.x; x++) row += texelFetch(point, first + ivec2(x, y), 0);
    colour += row;
  }
  colour /= float(points_per_pixel.x * points_per_pixel.y);
}`;

  /** A small image → pixels of its bicubic enlargement: `interpolation.interpolate_tiles`. */
  const enlarge = `${HEAD}
uniform sampler2D small_image, row_weights, column_weights;
uniform ivec2 origin, direction, taps;
uniform vec4 background;
out vec4 colour;
void main() {
  ivec2 at = origin + direction * ivec2(gl_FragCoord.xy);
  ivec2 first = ivec2(texelFetch(column_weights, ivec2(0, at.x), 0).x, texelFetch(row_weights, ivec2(0, at.y), 0).x);
  float inside = texelFetch(column_weights, ivec2(1, at.x), 0).x * texelFetch(row_weights, ivec2(1, at.y), 0).x;
  colour = vec4(0.);
  for (int y = 0; y < taps.y; y++) {
    vec4 row = vec4(0.);
    for (int x = 0; x < taps.x; x++) {
      row += texelFetch(column_weights, ivec2(2 + x, at.x), 0).x * texelFetch(small_image, first + ivec2(x, y), 0);
    }
    colour += texelFetch(row_weights, ivec2(2 + y, at.y), 0).x * row;
  }
  colour = mix(background, clamp(colour, 0., 1.), inside);
}`;

  R2ID.shaders = { VERTEX, sizesOf, literals, coefficients, linesOfRows, points, means, enlarge };
})();
