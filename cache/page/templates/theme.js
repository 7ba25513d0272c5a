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
  // Paper is white and cannot be unfolded: the page is drawn for it while it prints.
  let before = null;
  let closed = [];
  window.addEventListener("beforeprint", () => {
    before = chosen;
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => (details.open = true));
    chosen = "light";
    show();
  });
  window.addEventListener("afterprint", () => {
    chosen = before;
    closed.forEach((details) => (details.open = false));
    show();
  });
  show();
})();
