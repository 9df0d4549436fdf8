// What was asked and answered, kept over a reload.
//
// An exchange is {prompt, answer}; an answer {text, state, finish, stats, failure}. Its state is
// "running", "done", "stopped" or "failed".

import { read, write } from "./storage.js";

const NAME = "conversation";
const STATES = ["running", "done", "stopped", "failed"];

function fresh() {
  return { text: "", state: "running", finish: null, stats: null, failure: null };
}

function isExchange(found) {
  const { prompt, answer } = found ?? {};
  return (
    typeof prompt === "string" && typeof answer?.text === "string" && STATES.includes(answer.state)
  );
}

export class Conversation {
  exchanges = [];

  constructor() {
    const found = read(NAME);
    if (!Array.isArray(found) || !found.every(isExchange)) return;
    this.exchanges = found;
    for (const { answer } of found) if (answer.state === "running") answer.state = "stopped";
  }

  /** The last exchange, or undefined. */
  get last() {
    return this.exchanges.at(-1);
  }

  /** Begin an exchange. */
  ask(prompt) {
    this.exchanges.push({ prompt, answer: fresh() });
    this.save();
    return this.last;
  }

  /** Forget the last answer, to have another. */
  askAgain() {
    this.last.answer = fresh();
    this.save();
    return this.last;
  }

  /** Take the last exchange out; returns its prompt. */
  takeBack() {
    const { prompt } = this.exchanges.pop();
    this.save();
    return prompt;
  }

  /** Begin anew. */
  clear() {
    this.exchanges = [];
    this.save();
  }

  /** OpenAI's messages up to the last question. What got no answer is left out. */
  messages(system) {
    const messages = system.trim() ? [{ role: "system", content: system }] : [];
    for (const { prompt, answer } of this.exchanges) {
      if (answer !== this.last.answer && !answer.text) continue;
      messages.push({ role: "user", content: prompt });
      if (answer !== this.last.answer) messages.push({ role: "assistant", content: answer.text });
    }
    return messages;
  }

  save() {
    write(NAME, this.exchanges.length ? this.exchanges : null);
  }
}
