// The shader programs of decoder.js, and a model's weights as they take them.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  /** A shader program; `use` sets its uniforms and textures by name. */
  class Program {
    constructor(gl, fragment) {
      this.gl = gl;
      this.program = gl.createProgram();
      for (const [kind, source] of [[gl.VERTEX_SHADER, R2ID.shaders.VERTEX], [gl.FRAGMENT_SHADER, fragment]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, source);
        gl.compileShader(shader);
        gl.attachShader(this.program, shader);
        gl.deleteShader(shader);  // once the program is
      }
      gl.linkProgram(this.program);
    }

    /** Found at the first use, so that programs compile side by side. Name → [location, type]. */
    get uniforms() {
      if (this.known) return this.known;
      const { gl, program } = this;
      if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
        const shaders = gl.getAttachedShaders(program).map(shader => gl.getShaderInfoLog(shader));
        throw new Error(`shader: ${gl.getProgramInfoLog(program)} ${shaders.join(" ")}`);
      }
      this.known = {};
      for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
        const { name, type } = gl.getActiveUniform(program, i), location = gl.getUniformLocation(program, name);
        if (location) this.known[name] = [location, type];
      }
      return this.known;
    }

    use(values, textureOf) {
      const { gl } = this;
      let unit = 0;
      gl.useProgram(this.program);
      for (const [name, [location, type]] of Object.entries(this.uniforms)) {
        if (type === gl.SAMPLER_2D) {
          gl.activeTexture(gl.TEXTURE0 + unit);
          gl.bindTexture(gl.TEXTURE_2D, textureOf(name));
          gl.uniform1i(location, unit++);
        } else if (type === gl.INT_VEC2) gl.uniform2iv(location, values[name]);
        else if (type === gl.INT) gl.uniform1i(location, values[name]);
        else gl.uniform4fv(location, values[name]);
      }
    }
  }

  const fours = numbers => 4 * Math.ceil(numbers / 4);

  /** Rows (count, size) with zeros behind each, so that they fill texels. */
  function padded(data, count, size) {
    if (size % 4 === 0) return data;
    const result = new data.constructor(count * fours(size));
    for (let row = 0; row < count; row++) result.set(data.subarray(row * size, (row + 1) * size), row * fours(size));
    return result;
  }

  /** Weight (F·F·features, D) and bias of `coefficients_out` as texels (F·F·T, 4·D4 + 1): of four outputs, what each
   * input gives, and the bias last. */
  function coefficientTexels(weight, bias, { F, T, D, D4 }, { features }) {
    const stride = 4 * (4 * D4 + 1), texels = new weight.constructor(F * F * T * stride);
    for (let basis = 0; basis < F * F; basis++) {
      for (let feature = 0; feature < features; feature++) {
        const output = basis * features + feature, at = (basis * T + (feature >> 2)) * stride + (feature & 3);
        for (let d = 0; d < D; d++) texels[at + 4 * d] = weight[output * D + d];
        texels[at + 16 * D4] = bias[output];
      }
    }
    return texels;
  }

  /** The pixel MLP and the linear map beside it, as the shader `points` takes them. */
  function pixelMlpLiterals(tensors, { features, pixel_width: width }) {
    const of = (name, inputs) => R2ID.shaders.literals(tensors[`${name}.weight`].data, tensors[`${name}.bias`]?.data, inputs);
    return {
      mlp0: of("pixel_mlp.0", features), mlp2: of("pixel_mlp.2", width), mlp4: of("pixel_mlp.4", width),
      linear: of("pixel_linear", features),
    };
  }

  Object.assign(R2ID, { Program, padded, coefficientTexels, pixelMlpLiterals });
})();
