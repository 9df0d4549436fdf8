// The API key: asked for when the server wants one, kept for this tab alone.

import { at } from "./dom.js";
import { read, write } from "./storage.js";

const NAME = "api-key";
let current = read(NAME, "sessionStorage");

/** The header that carries the key, if there is one. */
export function header() {
  return current ? { Authorization: `Bearer ${current}` } : {};
}

/** Ask the user for a key; false if none was given. */
export function ask(signal) {
  const dialog = at("key");
  const input = at("key-value");
  at("key-words").textContent = current
    ? "The server did not accept this key."
    : "This server answers only those who have a key.";
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  signal?.addEventListener("abort", () => dialog.close(), { once: true });
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "given" ? input.value.trim() : "";
        input.value = "";
        if (given) {
          current = given;
          write(NAME, given, "sessionStorage");
        }
        resolve(Boolean(given));
      },
      { once: true },
    );
  });
}

at("key").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = at("key-value");
  const sendable = /^[!-~]+$/.test(input.value.trim()); // a header holds nothing else
  input.setCustomValidity(sendable ? "" : "A key is made of letters, digits and signs.");
  if (input.reportValidity()) at("key").close("given");
});
at("key-value").addEventListener("input", () => at("key-value").setCustomValidity(""));
at("key-cancel").addEventListener("click", () => at("key").close());
