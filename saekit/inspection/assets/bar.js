// The end of the bar of every page: the buttons for light or dark and for the panel of keys, and dialogs that a click beside them closes.

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  memory.set("theme", theme);
}

function applyTheme() {
  const theme = memory.get("theme", null);
  if (theme) document.documentElement.dataset.theme = theme;
}

function openHelp() {
  byId("help").showModal();
}

function prepareBar() {
  const button = (id, label, key, action, content, more = {}) => el("button",
    { type: "button", id, class: "button quiet icon", "aria-label": label, title: `${label} (${key})`, onclick: action, ...more }, content);
  document.querySelector(".bar-buttons").append(
    button("theme-button", "Switch between light and dark", "t", switchTheme, el("span", { class: "theme-icon", "aria-hidden": "true" })),
    button("help-button", "Keyboard shortcuts", "?", openHelp, "?", { "aria-haspopup": "dialog" }));
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
}
