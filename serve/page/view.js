// Shows the conversation.

import { copyButton } from "./copy.js";
import { at, make } from "./dom.js";
import { render } from "./markdown.js";

const FINISHES = { length: "cut off at its length limit", stop: "" };

export class View {
  #box = at("exchanges");
  #shown = new Map();
  #on;

  /** `on` has retry() and edit(). */
  constructor(on) {
    this.#on = on;
  }

  /** Show all exchanges anew where needed. */
  showAll(exchanges) {
    at("empty").hidden = exchanges.length > 0;
    for (const [exchange, parts] of this.#shown) {
      if (exchanges.includes(exchange)) continue;
      parts.whole.remove();
      this.#shown.delete(exchange);
    }
    exchanges.forEach((exchange) => this.show(exchange, exchange === exchanges.at(-1)));
  }

  /** Show an exchange as it is now; returns the answer's blocks. */
  show(exchange, isLast) {
    const parts = this.#shown.get(exchange) ?? this.#add(exchange);
    const { answer } = exchange;
    render(parts.text, answer.text);
    parts.answer.setAttribute("aria-busy", String(answer.state === "running"));
    parts.answer.dataset.state = answer.state;
    parts.waiting.hidden = answer.state !== "running" || answer.text !== "";
    parts.stats.textContent = statsLine(answer);
    this.#showFailure(parts, answer, isLast);
    const idle = answer.state !== "running";
    parts.copy.hidden = !idle || !answer.text;
    parts.again.hidden = !idle || !isLast || Boolean(answer.failure);
    parts.edit.hidden = !idle || !isLast;
    for (const head of parts.text.querySelectorAll(".code-head:not(:has(button))")) {
      const code = head.nextElementSibling;
      head.append(copyButton("Copy code", () => code.textContent));
    }
    return [...parts.text.children];
  }

  #add(exchange) {
    const text = make("div", { className: "text" });
    const waiting = make("p", { className: "waiting" }, make("span", { className: "unseen" }, "Waiting for the first token"));
    const failure = make("div", { className: "failure", hidden: true });
    const stats = make("span", { className: "stats" });
    const copy = copyButton("Copy answer", () => exchange.answer.text);
    const again = make("button", { type: "button", className: "small" }, "Regenerate");
    const edit = make("button", { type: "button", className: "small" }, "Edit question");
    again.addEventListener("click", () => this.#on.retry());
    edit.addEventListener("click", () => this.#on.edit());
    const question = make("div", { className: "question" }, make("h3", { className: "unseen" }, "You"), make("p", {}, exchange.prompt));
    const answer = make(
      "article",
      { className: "answer" },
      make("h3", { className: "unseen" }, "Answer"),
      text,
      waiting,
      failure,
      make("div", { className: "foot" }, stats, make("div", { className: "actions" }, copy, again, edit)),
    );
    const whole = make("section", { className: "exchange" }, question, answer);
    this.#box.append(whole);
    const parts = { whole, answer, text, waiting, failure, stats, copy, again, edit };
    this.#shown.set(exchange, parts);
    return parts;
  }

  #showFailure(parts, answer, isLast) {
    const { failure } = answer;
    parts.failure.hidden = !failure;
    if (!failure) {
      parts.failure.replaceChildren();
    } else if (parts.failure.dataset.of !== JSON.stringify([failure, isLast])) {
      const words = [make("strong", {}, failure.title), make("p", {}, failure.detail)];
      parts.failure.replaceChildren(...words, ...(isLast ? [this.#retryButton(failure)] : []));
      parts.failure.setAttribute("role", "alert");
    }
    parts.failure.dataset.of = failure ? JSON.stringify([failure, isLast]) : "";
  }

  #retryButton(failure) {
    const button = make("button", { type: "button" }, "Retry");
    button.addEventListener("click", () => this.#on.retry());
    const free = failure.at ? failure.at + failure.retryAfterS * 1000 : 0;
    const count = () => {
      const left = Math.ceil((free - Date.now()) / 1000);
      button.disabled = left > 0;
      button.textContent = left > 0 ? `Retry in ${left} s` : "Retry";
      if (left > 0) setTimeout(count, 250);
    };
    count();
    return button;
  }
}

function statsLine({ state, finish, stats, text }) {
  const words = [];
  if (stats?.firstS !== null && stats?.tokens) {
    words.push(`${stats.exact ? "" : "about "}${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}`);
    if (stats.perS) words.push(`${stats.perS.toFixed(1)} tokens/s`);
    words.push(`first token after ${stats.firstS.toFixed(2)} s`);
  }
  if (state === "stopped") words.push("stopped");
  if (state !== "running" && !text && state !== "stopped" && state !== "failed") words.push("empty answer");
  if (FINISHES[finish]) words.push(FINISHES[finish]);
  return words.join(" · ");
}
