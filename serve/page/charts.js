// A small line of the last values.

import { make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 32;

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export class Sparkline {
  #values = [];
  #area = shape("path", { class: "area" });
  #line = shape("path", { class: "line" });
  #number = make("output", { textContent: "–" });
  #figure;

  /** `least` is what the whole height stands for at least; `count` is how many values are shown. */
  constructor(label, { least = 1, count = 60 } = {}) {
    this.label = label;
    this.least = least;
    this.count = count;
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
    const drawing = shape("svg", { ...box, "aria-hidden": "true" });
    drawing.append(this.#area, this.#line);
    const caption = make("figcaption", {}, make("span", {}, label), this.#number);
    this.#figure = make("figure", {}, caption, drawing);
  }

  get node() {
    return this.#figure;
  }

  /** Add a value, null where there is none; `words` say it. */
  push(value, words) {
    this.#values.push(value);
    if (this.#values.length > this.count) this.#values.shift();
    this.#number.textContent = words;
    this.#draw();
  }

  #draw() {
    const top = Math.max(this.least, ...this.#values.map((value) => value ?? 0)) || 1;
    const start = this.count - this.#values.length;
    let line = "";
    let area = "";
    let before = null;
    this.#values.forEach((value, index) => {
      if (value === null) {
        before = null;
        return;
      }
      const x = ((start + index) / (this.count - 1)) * WIDTH;
      const y = HEIGHT - 1 - (value / top) * (HEIGHT - 3);
      line += `${before === null ? "M" : "L"}${x.toFixed(2)} ${y.toFixed(2)}`;
      if (before) area += `M${before} V${HEIGHT} H${x.toFixed(2)} V${y.toFixed(2)} Z`;
      before = `${x.toFixed(2)} ${y.toFixed(2)}`;
    });
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", area);
  }
}
