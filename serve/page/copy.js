// Buttons that copy a text.

import { make } from "./dom.js";

/** A button that copies what `text()` returns. */
export function copyButton(label, text) {
  const button = make("button", { type: "button", className: "small", title: label }, "Copy");
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not copied";
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedTheOldWay(text); // over plain HTTP there is no clipboard
  }
}

function copiedTheOldWay(text) {
  const before = document.activeElement;
  const area = make("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}
