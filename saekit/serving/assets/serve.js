// The start, the forms and the keys.

let served = null; // what the server says about itself
let reading = null; // AbortController of the question that is on its way

async function read() {
  reading?.abort();
  const mine = reading = new AbortController();
  const status = byId("read-status");
  const say = (text) => { if (reading === mine) status.textContent = text; };
  say("Reading");
  const isText = served.modality === "text";
  try {
    const body = isText ? { text: byId("text").value } : { image: dropped.base64 };
    const answer = await ask(isText ? "text" : "image", { body, signal: mine.signal, waiting: say });
    if (reading !== mine) return;
    take(answer);
    const rows = answer.contexts.reduce((sum, context) => sum + context.rows.length, 0);
    say(`${count(rows)} ${isText ? "tokens" : "patches"}, ${count(Object.keys(answer.latents).length)} latents`);
    if (isText && byId("prompt").value === "") byId("prompt").value = byId("text").value;
  } catch (error) {
    if (error.name !== "AbortError" && reading === mine) readFailed(error);
  }
}

// What was read before stays, gray and named so.
function readFailed(error) {
  byId("read-status").textContent = error.message;
  if (input.answer === null) return;
  input.stale = true;
  markStale(byId("shown"), `The ${served.modality} before`);
  listInput();
}

// The latent that shades stays; at first it is the strongest.
function take(answer) {
  const first = input.answer === null;
  Object.assign(input, { answer, kept: null, stale: false });
  freshen(byId("shown"));
  freshen(byId("detail"));
  panel.searching = false;
  find.number += 1; // what was asked before is not shown any more
  byId("search").value = "";
  byId("back").hidden = true;
  drawInput();
  listInput();
  if (first && input.chosen === null && answer.ranked.length) choose(rankedInInput()[0][0]);
}

async function readImage(file) {
  try {
    await takeImage(file);
    if (file) await read();
  } catch (error) {
    readFailed(error);
  }
}

const KEYS = {
  "/": () => { byId("search").focus(); byId("search").select(); },
  "?": openHelp,
  t: switchTheme,
};

function onKey(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") { onEscape(event); return; }
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || event.target.matches("input, select, textarea")) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function onEscape(event) {
  if (running) stop();
  else if (event.target === byId("search")) { byId("search").value = ""; byId("search").blur(); listWords(""); }
  else if (input.kept) keep(input.kept.context, input.kept.at);
}

function submitsWithEnter(field, action) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    action();
  });
}

function onSubmit(form, action) {
  byId(form).addEventListener("submit", (event) => { event.preventDefault(); action(); });
}

function listen() {
  onSubmit("text-form", read);
  onSubmit("steer-form", run);
  submitsWithEnter(byId("text"), read);
  submitsWithEnter(byId("prompt"), run);
  byId("stop").addEventListener("click", stop);
  listenForSearch();
  prepareBar();
  addEventListener("keydown", onKey);
  addEventListener("scroll", hideTip, { passive: true, capture: true });
  listenForExplanations();
  if (served.modality === "image") listenForImages();
}

function listenForImages() {
  const drop = byId("drop");
  byId("file").addEventListener("change", (event) => { readImage(event.target.files[0]); event.target.value = ""; });
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (event.relatedTarget === null) drop.classList.remove("over"); });
  addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); readImage(event.dataTransfer.files[0]); });
  addEventListener("paste", (event) => { if (event.clipboardData?.files.length) readImage(event.clipboardData.files[0]); });
}

async function start() {
  applyTheme();
  served = await ask("about");
  if (served.orders.includes("relative")) input.order = "relative"; // by size alone latents that are large everywhere come first
  // what the drawing functions of the explorer read
  catalog = { meta: { modality: served.modality, latents: served.latents, rows: served.rows }, single_file: false, patches: false };
  contextPlace = new Map();
  setOverlay(Object.hasOwn(OVERLAYS, memory.get("overlay", "")) ? memory.get("overlay", "") : "spotlight");
  document.body.dataset.modality = served.modality;
  byId("text-form").hidden = served.modality !== "text";
  byId("drop").hidden = served.modality !== "image";
  byId("page-link").hidden = !served.page;
  byId("facts").replaceChildren(...[["latents", count(served.latents)], ["rows scanned", served.rows === null ? null : count(served.rows)]]
    .filter(([, value]) => value !== null).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  prepareSteering();
  listen();
  await listWords("");
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => { byId("read-status").textContent = error.message; });
