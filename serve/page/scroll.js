// Keeps the end of the conversation in sight, unless the user has scrolled up to read.

import { at } from "./dom.js";

const NEAR_PX = 48;

export class Scroll {
  #box = at("scroll");
  #button = at("latest");
  #follows = true;

  constructor() {
    this.#box.addEventListener("scroll", () => this.#look(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(this.#box);
    this.#button.addEventListener("click", () => {
      this.toEnd();
      at("question").focus();
    });
  }

  /** The content grew. */
  follow() {
    if (this.#follows) this.#box.scrollTop = this.#box.scrollHeight;
    this.#button.hidden = this.#follows;
  }

  /** Go to the end, and stay there. */
  toEnd() {
    this.#follows = true;
    this.follow();
  }

  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.#button.hidden = this.#follows;
  }
}
