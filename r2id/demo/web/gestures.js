// Zooming and panning like a map: wheel, trackpad, pinch, drag with inertia, double click and keys.
"use strict";
globalThis.R2ID = globalThis.R2ID ?? {};
(() => {
  const FRICTION = 0.3;  // seconds after which a released image has a third of its speed left
  const SLOWEST = 0.02;  // of the image a second; below, it stands
  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  /**
   * @param {HTMLElement} element
   * @param {object} act
   * @param {() => DOMRect} act.box  where the image lies in the window
   * @param {() => number} act.magnification  the present one, 1 shows everything
   * @param {(factor: number, at: number[]) => void} act.zoom  what lies at `at` stays there; 0 shows everything
   * @param {(dx: number, dy: number) => void} act.pan  the image moves along, in fractions of what is visible
   * @param {(target: Element) => boolean} [act.own]  whether a part of the element has gestures of its own
   */
  R2ID.gestures = (element, { box, magnification, zoom, pan, own = () => false }) => {
    const pointers = new Map();
    let speed = [0, 0], moved = 0, gliding = 0;

    /** From the middle of the image, in fractions of what is visible. */
    const place = ({ clientX, clientY }) => {
      const { left, top, width, height } = box();
      return [(clientX - left) / width - 0.5, (clientY - top) / height - 0.5];
    };
    const middle = () => [0, 1].map(axis => [...pointers.values()].reduce((sum, at) => sum + at[axis], 0) / pointers.size);
    const spread = () => {
      const [a, b] = [...pointers.values()], { width, height } = box();
      return b ? Math.hypot((a[0] - b[0]) * width, (a[1] - b[1]) * height) : 0;
    };
    const halt = () => { cancelAnimationFrame(gliding); speed = [0, 0]; };

    function glide(before) {
      gliding = requestAnimationFrame(now => {
        const seconds = Math.min(0.05, (now - before) / 1000);
        pan(speed[0] * seconds, speed[1] * seconds);
        speed = speed.map(v => v * Math.exp(-seconds / FRICTION));
        if (Math.hypot(...speed) > SLOWEST) glide(now);
      });
    }

    element.addEventListener("pointerdown", event => {
      if (own(event.target) || event.button) return;
      halt();
      element.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
      moved = event.timeStamp;
    });
    element.addEventListener("pointermove", event => {
      if (!pointers.has(event.pointerId)) return;
      const before = middle(), wide = spread();
      pointers.set(event.pointerId, place(event));
      const after = middle(), by = [after[0] - before[0], after[1] - before[1]];
      const seconds = Math.max(0.001, (event.timeStamp - moved) / 1000);
      moved = event.timeStamp;
      speed = pointers.size > 1 ? [0, 0] : speed.map((v, axis) => 0.5 * v + 0.5 * by[axis] / seconds);
      pan(...by);
      if (wide && spread()) zoom(spread() / wide, after);
    });
    const release = event => {
      if (!pointers.delete(event.pointerId) || pointers.size) return;
      if (event.type === "pointerup" && event.timeStamp - moved < 60 && magnification() > 1 && !still()) {
        glide(performance.now());
      }
    };
    element.addEventListener("pointerup", release);
    element.addEventListener("pointercancel", release);
    element.addEventListener("wheel", event => {
      if (own(event.target)) return;
      const lines = event.deltaMode ? 16 : 1, finer = event.ctrlKey ? 40 : 200;  // a trackpad's pinch comes with ctrl
      if (event.deltaY > 0 && magnification() <= 1 && !event.ctrlKey) return;  // nothing to zoom out of: the page scrolls
      event.preventDefault();
      halt();
      zoom(2 ** (-event.deltaY * lines / finer), place(event));
    }, { passive: false });
    element.addEventListener("dblclick", event => {
      if (!own(event.target)) zoom(event.shiftKey ? 0.5 : 2, place(event));
    });
    element.addEventListener("keydown", event => {
      if (own(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        "+": () => zoom(2, [0, 0]), "=": () => zoom(2, [0, 0]), "-": () => zoom(0.5, [0, 0]), "0": () => zoom(0, [0, 0]),
        ArrowLeft: () => pan(0.2, 0), ArrowRight: () => pan(-0.2, 0), ArrowUp: () => pan(0, 0.2), ArrowDown: () => pan(0, -0.2),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      halt();
      act();
    });
  };
})();
