"use strict";
(() => {
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const isDark = () => (chosen === null ? dark.matches : chosen === "dark");
  const show = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    document.dispatchEvent(new Event("themechange"));
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  // Paper is white: figures are drawn for it while the page prints.
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = chosen;
    chosen = "light";
    show();
  });
  window.addEventListener("afterprint", () => {
    chosen = before;
    show();
  });
  show();
})();
