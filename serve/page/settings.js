// The system prompt and how tokens are chosen. Only what differs from the server's own defaults is sent.

import { at, make } from "./dom.js";
import { read, write } from "./storage.js";

const NAME = "settings";

/** Fields of the request; `value` is the server's default, null where it decides by itself. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", value: 1, min: 0, max: 2, step: 0.05, hint: "0 takes the likeliest token." },
  { name: "top_p", label: "Top p", value: 1, min: 0.01, max: 1, step: 0.01, hint: "Share of probability that is kept." },
  { name: "top_k", label: "Top k", value: 0, min: 0, hint: "Tokens that are kept; 0 keeps all." },
  { name: "min_p", label: "Min p", value: 0, min: 0, max: 1, step: 0.01, hint: "Least likelihood beside the likeliest token." },
  { name: "repetition_penalty", label: "Repetition penalty", value: 1, min: 0.5, max: 2, step: 0.05, hint: "1 is none." },
  { name: "max_tokens", label: "Max tokens", value: null, min: 1, hint: "Of the answer. Empty: what the context has room for." },
  { name: "seed", label: "Seed", value: null, min: 0, max: Number.MAX_SAFE_INTEGER, hint: "Empty: a new one for each answer." },
];

export class Settings {
  #inputs = new Map();
  #form = at("settings");
  #system = at("system");

  constructor() {
    for (const field of FIELDS) {
      const { name, label, hint } = field;
      const id = `${name}-hint`;
      const input = inputOf(field);
      input.setAttribute("aria-describedby", id);
      this.#inputs.set(name, input);
      const head = make("div", { className: "head" }, make("label", { htmlFor: name }, label));
      if (field.step) head.append(make("output", { for: name }));
      const below = make("p", { className: "hint", id }, hint);
      at("sampling").append(make("div", { className: "field" }, head, input, below));
    }
    const kept = read(NAME);
    this.#fill(kept !== null && typeof kept === "object" ? kept : {});
    this.#form.addEventListener("input", () => this.#changed());
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    at("defaults").addEventListener("click", () => {
      this.#fill({ system: this.system });
      this.#changed();
    });
    this.#mark();
  }

  /** What the model is told beforehand. */
  get system() {
    return this.#system.value;
  }

  /** Whether every field holds what the server takes. */
  get valid() {
    return this.#form.checkValidity();
  }

  /** Lead the user to the field that does not. */
  complain() {
    this.#form.reportValidity();
  }

  /** Fields for the request. */
  get fields() {
    const found = FIELDS.map(({ name, value }) => {
      const given = this.#inputs.get(name).value.trim();
      return [name, given === "" ? value : Number(given), value];
    });
    return Object.fromEntries(
      found.filter(([, given, value]) => given !== value).map(([name, given]) => [name, given]),
    );
  }

  #fill(kept) {
    this.#system.value = typeof kept.system === "string" ? kept.system : "";
    for (const { name, value } of FIELDS) this.#inputs.get(name).value = kept[name] ?? value ?? "";
  }

  #changed() {
    if (this.valid) write(NAME, { system: this.system, ...this.fields });
    this.#mark();
  }

  #mark() {
    const given = this.fields;
    for (const [name, input] of this.#inputs) {
      const field = input.closest(".field");
      field.classList.toggle("changed", name in given);
      const number = field.querySelector("output");
      if (number) number.textContent = Number(input.value).toFixed(2);
      if (input.validity.valid) input.removeAttribute("aria-invalid");
      else input.setAttribute("aria-invalid", "true");
    }
    at("defaults").hidden = Object.keys(given).length === 0;
  }
}

/** A slider for what has steps, a box for whole numbers. */
function inputOf({ name, min, max, step }) {
  const input = make("input", { id: name, name, type: step ? "range" : "number" });
  Object.assign(input, { min, step: step ?? 1 });
  if (max !== undefined) input.max = max;
  if (!step) input.inputMode = "numeric";
  return input;
}
