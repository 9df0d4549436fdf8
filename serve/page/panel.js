// The panel beside the conversation; on a narrow screen it lies over it.

import { at } from "./dom.js";
import { read, write } from "./storage.js";

const NAME = "panel";
const wide = matchMedia("(min-width: 60rem)");

export class Panel {
  #button = at("panel-toggle");
  #panel = at("panel");
  #onChange;

  /** `onChange(open)` is told of every change. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#button.addEventListener("click", () => {
      this.set(this.#panel.hidden);
      if (wide.matches) write(NAME, !this.#panel.hidden);
    });
    wide.addEventListener("change", () => this.#begin());
    this.#begin();
  }

  /** Whether the panel hides the conversation. */
  get covers() {
    return !wide.matches && !this.#panel.hidden;
  }

  set(open) {
    this.#panel.hidden = !open;
    this.#button.setAttribute("aria-expanded", String(open));
    at("chat").inert = this.covers;
    this.#onChange(open);
  }

  #begin() {
    this.set(wide.matches && read(NAME) !== false);
  }
}
