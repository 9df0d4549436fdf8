// The server's load, asked for each second while somebody can see it.

import * as api from "./api.js";
import { Sparkline } from "./charts.js";
import { at } from "./dom.js";
import { parse } from "./metrics.js";

const EVERY_MS = 1000;

export class Load {
  #speed = new Sparkline("Tokens/s");
  #slots = new Sparkline("Slots in use");
  #queue = new Sparkline("Waiting");
  #before = null;
  #timer = null;
  #wanted = false;

  constructor() {
    at("charts").append(this.#speed.node, this.#slots.node, this.#queue.node);
    document.addEventListener("visibilitychange", () => this.#settle());
  }

  /** Whether the charts are on the screen, as far as the page decides it. */
  watch(wanted) {
    this.#wanted = wanted;
    this.#settle();
  }

  #settle() {
    const run = this.#wanted && document.visibilityState === "visible";
    if (run && this.#timer === null) {
      this.#before = null; // a rate over the time that nobody looked says nothing of now
      this.#timer = setTimeout(() => this.#tick(), 0);
    } else if (!run && this.#timer !== null) {
      clearTimeout(this.#timer);
      this.#timer = null;
    }
  }

  async #tick() {
    const timer = this.#timer;
    try {
      this.#show(parse(await api.metrics()), performance.now());
    } catch {
      this.#before = null;
      for (const chart of [this.#speed, this.#slots, this.#queue]) chart.push(null, "no answer");
    }
    if (this.#timer === timer) this.#timer = setTimeout(() => this.#tick(), EVERY_MS);
  }

  #show(values, now) {
    const value = (name) => values.get(`nemo_trt_${name}`) ?? 0;
    const tokens = value("generation_tokens_total");
    const before = this.#before;
    this.#before = { tokens, now };
    const rate = before && Math.max(0, ((tokens - before.tokens) * 1000) / (now - before.now));
    this.#speed.push(rate, rate === null ? "–" : rate.toFixed(rate < 10 ? 1 : 0));
    this.#slots.least = value("slots");
    this.#slots.push(value("requests_running"), `${value("requests_running")} of ${value("slots")}`);
    this.#queue.push(value("requests_waiting"), String(value("requests_waiting")));
  }
}
