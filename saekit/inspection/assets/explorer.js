// What is open, what the keys do, and the start.

const state = { latent: null };
const main = byId("feature");

function currentLatent() {
  return state.latent;
}

function latentInAddress() {
  // #/f/123 is what links have; #123 is what people type
  const found = /^#(?:\/f\/|(?=\d))([^?]*)/.exec(location.hash);
  return found ? found[1] : null;
}

async function route() {
  if (catalog && takeFilters()) updateList();
  const given = viewInAddress();
  if (given) {
    await routeToView(given);
    return;
  }
  const text = latentInAddress();
  if (text === null) {
    await routeToGallery();
    return;
  }
  const latent = /^\d+$/.test(text) ? Number(text) : -1;
  const known = latent >= 0 && latent < catalog.meta.latents;
  state.latent = known ? latent : null;
  markCurrentRow();
  scrollToCurrent();
  closeList();
  document.title = known ? `#${latent} · ${catalog.meta.title}` : catalog.meta.title;
  if (!known) show(noSuchLatent(text));
  else if (recordOf[latent] < 0) await openPageless(latent);
  else await openRecord(latent);
}

async function routeToGallery() {
  state.latent = null;
  markCurrentRow();
  closeList();
  document.title = catalog.meta.title;
  const unknown = noSuchAddress();
  if (unknown) show(unknown);
  else await openGallery();
}

function closeList() {
  document.body.classList.remove("list-open");
  byId("open-list").setAttribute("aria-expanded", "false");
}

async function openRecord(latent) {
  main.setAttribute("aria-busy", "true");
  try {
    const record = await loadRecord(latent);
    if (state.latent !== latent || viewInAddress()) return; // another was asked for meanwhile
    show(featurePage(record));
    for (const direction of [1, -1]) {
      const near = neighbourInList(latent, direction);
      if (near !== null) loadRecord(near).catch(() => {}); // read ahead; an error is shown when it is opened
    }
  } catch (error) {
    if (state.latent === latent) show([featureHeader(latent, null, null), section("hint", "Cannot show it", null, el("p", {}, error.message))]);
  }
}

function show(nodes) {
  forget();
  const focused = document.activeElement?.id; // prev and next are drawn anew: keep the focus on them
  main.replaceChildren(...nodes);
  main.removeAttribute("aria-busy");
  main.scrollTop = 0;
  window.scrollTo(0, 0);
  if (["previous", "next"].includes(focused)) byId(focused)?.focus({ preventScroll: true });
  byId("previous")?.toggleAttribute("disabled", neighbourInList(state.latent, -1) === null);
  byId("next")?.toggleAttribute("disabled", neighbourInList(state.latent, 1) === null);
  main.dataset.latent = state.latent ?? "";
}

function step(direction) {
  const near = neighbourInList(state.latent, direction);
  if (near !== null) go(`#/f/${near}`);
}

async function copyLink() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(new URL(addressHash(), location.href).href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => { button.textContent = "Copy link"; }, 1600);
}

// --- header, panels -------------------------------------------------------------------------------------------------

function drawHeader() {
  const { metrics } = catalog.meta;
  // held-out rows are few, and a rare latent is silent there: of the two shares, that of training where it is known
  const left = metrics.some(({ name }) => name === "dead_train") ? "dead" : "";
  byId("metrics").replaceChildren(...metrics.filter(({ name }) => name !== left).map(({ name, text, meaning }) =>
    about(el("div", {}, about(el("dt", {}, el("span", {}, name)), meaning, true), el("dd", {}, text)), meaning)));
  new ResizeObserver(hideSecondLine).observe(byId("metrics"));
}

// What the style sheet clips is no stop of Tab either.
function hideSecondLine() {
  const figures = [...byId("metrics").children];
  for (const each of figures) each.style.visibility = each.offsetTop > figures[0].offsetTop ? "hidden" : "visible";
}

function drawAbout() {
  const { meta } = catalog;
  const left = meta.metrics.some(({ name }) => name === "dead_train") ? "dead" : "";
  const facts = [["Model", meta.model], ["Hook", meta.hook], ["Data", meta.dataset], ["Checkpoint", meta.checkpoint],
    ["Width", count(meta.d_in)], ["Latents", count(meta.latents)], ["Sparsity", meta.sparsity], ["Rows scanned", count(meta.rows)],
    ["With a page", count(catalog.records.length)],
    ...meta.metrics.map(({ name, text, meaning }) => [name, text, name === left ? "dead" : meaning])];
  byId("about-facts").replaceChildren(...facts.filter(([, value]) => value !== null).map(([name, value, meaning]) => {
    const title = el("dt", {}, el("span", {}, name));
    return el("div", {}, meaning ? about(title, meaning, true) : title, el("dd", {}, value));
  }));
  const terms = [["Score", "score"], ["Automatic label", "label"], ["Interval examples", "intervals"], ["Output tokens", "outputTokens"], ["Near-duplicates", "twins"]];
  byId("about-notes").replaceChildren(...terms.filter(([name]) => name !== "Output tokens" || catalog.meta.modality === "text").map(([name, key]) =>
    el("p", { class: "note" }, el("b", {}, `${name}. `), MEANING[key]())), ...meta.notes.map((note) => el("p", { class: "note" }, note)),
    el("p", { class: "note" }, catalog.jsonl ? "Figures are rounded to 4 significant digits; features.jsonl beside this page holds them in full."
      : "Figures are rounded to 4 significant digits. saekit inspect --jsonl writes them in full, to features.jsonl."));
}

function openAbout() {
  const panel = byId("about");
  panel.showModal();
  panel.append(tip); // what is modal covers all else
  panel.addEventListener("close", () => { hideTip(); document.body.append(tip); }, { once: true });
  panel.scrollTop = 0;
}

function toggleList() {
  const open = document.body.classList.toggle("list-open");
  byId("open-list").setAttribute("aria-expanded", String(open));
  if (open) { drawRows(); scrollToCurrent(); }
}

// --- keyboard -------------------------------------------------------------------------------------------------------

const KEYS = {
  "/": () => { if (getComputedStyle(byId("sidebar")).display === "none") toggleList(); byId("search").focus(); byId("search").select(); },
  "?": openHelp,
  h: toggleHeat,
  g: () => go("#/"),
  m: () => openView("map"),
  b: () => openView("beside"),
  l: () => byId("log-axis")?.click(),
  t: switchTheme,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
};

const SEARCH_KEYS = {
  Escape: () => { byId("search").value = ""; byId("search").blur(); updateList(); keepFilters(); },
  ArrowDown: () => { list.scrollTop = 0; drawRows(); focusRow(view.order[0]); },
};

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.target === byId("search") && SEARCH_KEYS[event.key]) { event.preventDefault(); SEARCH_KEYS[event.key](); return; }
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  if (event.key === "Escape" && document.body.classList.contains("list-open")) toggleList();
  if (list.contains(event.target) && ["ArrowUp", "ArrowDown"].includes(event.key)) {
    event.preventDefault();
    stepInList(event.key === "ArrowDown" ? 1 : -1);
    return;
  }
  if (TOWARDS[event.key] && isMapShown()) { chart.canvas.focus({ preventScroll: true }); onMapKey(event); return; }
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

// Up and down in the list stop at every latent, with a page or without; above the first is the search box.
function stepInList(direction) {
  const at = document.activeElement.closest("[data-latent]")?.dataset.latent ?? state.latent ?? -1;
  const place = (view.place.get(Number(at)) ?? -1) + direction;
  if (place < 0) { byId("search").focus(); return; }
  const latent = view.order[place];
  if (latent === undefined) return;
  go(`#/f/${latent}`);
  state.latent = latent;
  scrollToCurrent();
  focusRow(latent);
}

function focusRow(latent) {
  rows.querySelector(`[data-latent="${latent}"]`)?.focus({ preventScroll: true });
}

// --- start ----------------------------------------------------------------------------------------------------------

function applyMemory() {
  applyTheme();
  const overlay = memory.get("overlay", "spotlight");
  document.body.dataset.overlay = OVERLAYS[overlay] ? overlay : "spotlight";
}

function listen() {
  addEventListener("hashchange", route);
  addEventListener("click", followWithFilters);
  listenForExplanations();
  listenForNames();
  addEventListener("keydown", onKey);
  addEventListener("scroll", () => { if (!main.querySelector(".reading")) hideTip(); }, { passive: true, capture: true });
  prepareBar();
  byId("about-button").addEventListener("click", () => openAbout());
  byId("open-list").addEventListener("click", toggleList);
  for (const link of document.querySelectorAll(".thumb-bar a")) link.addEventListener("click", closeList);
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
}

async function start() {
  applyMemory();
  await loadCatalog();
  document.body.dataset.modality = catalog.meta.modality;
  drawHeader();
  drawAbout();
  loadNames();
  prepareList();
  prepareViews();
  listen();
  await route();
  document.documentElement.dataset.ready = "yes";
  readAhead();
}

// Rows of latents without a page show their tokens or labels, once the page is there.
function readAhead() {
  if (catalog.records.length === catalog.meta.latents) return;
  const part = ["tokens", "labels"].find(hasLookup);
  if (!part) return;
  (window.requestIdleCallback ?? setTimeout)(() => loadLookup(part).then(redrawRows).catch(() => {}));
}

start().catch((error) => {
  main.replaceChildren(el("p", { class: "notice" }, `This page could not be read: ${error.message}`));
});
