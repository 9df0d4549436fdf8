// Reads an answer to those who hear the page: each block once, when it is complete.

import { at, make } from "./dom.js";

export class Announcer {
  #box = at("announcer");
  #said = 0;

  /** Say something, and forget what was said. */
  say(words) {
    this.#said = 0;
    this.#box.replaceChildren(make("p", {}, words));
  }

  /** Say the blocks of an answer that were not said yet; the last one is still growing. */
  follow(blocks, complete) {
    const end = complete ? blocks.length : blocks.length - 1;
    for (; this.#said < end; this.#said += 1) {
      this.#box.append(make("p", {}, blocks[this.#said].textContent));
    }
  }
}
