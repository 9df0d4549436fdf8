// Dark, light, or as the system has it. No module: it runs before the first paint.
(() => {
  const KEY = "nemo-trt:theme";
  const NAMES = { auto: "Auto", light: "Light", dark: "Dark" };

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off
    }
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (!button) return;
    button.querySelector("span").textContent = NAMES[theme];
    button.title = `Colours: ${NAMES[theme]}`;
    button.setAttribute("aria-label", button.title);
  }

  let theme = Object.hasOwn(NAMES, stored() ?? "") ? stored() : "auto";
  show(theme);
  document.addEventListener("DOMContentLoaded", () => {
    show(theme);
    document.getElementById("theme").addEventListener("click", () => {
      const names = Object.keys(NAMES);
      theme = names[(names.indexOf(theme) + 1) % names.length];
      show(theme);
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // It holds until the page is left.
      }
    });
  });
})();
