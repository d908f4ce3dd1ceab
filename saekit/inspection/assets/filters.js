// Filters beside the search: which there are, which are set, their place in the address, and what each leaves out.

// Only the kinds that there are.
function prepareKinds() {
  view.starts = new Set(catalog.starts);
  byId("not-bos").closest("label").hidden = view.starts.size === 0;
  byId("least-score-label").hidden = !catalog.score.some((score) => score !== null);
  const known = new Set(["", "own", "none", ...catalog.meanings.map((meaning) => meaning?.[0])]);
  for (const option of [...byId("label-kind").options]) if (!known.has(option.value)) option.remove();
}

function hasLabelOf(latent, kind) {
  if (kind === "own") return names.has(latent);
  const meaning = catalog.meanings[latent]?.[0];
  return kind === "none" ? !meaning && !names.has(latent) : meaning === kind;
}

const FILTERS = { q: "search", sort: "sort", from: "density-low", to: "density-high", label: "label-kind", score: "least-score",
  dead: "hide-dead", paged: "only-paged", first: "paged-first", bos: "not-bos", favorites: "only-favorites", unmatched: "without-partner" };

// What differs from the page as it opens: "sort=max&score=0.5".
function filterText() {
  const given = new URLSearchParams();
  for (const [name, id] of Object.entries(FILTERS)) {
    const field = byId(id);
    if (field.type === "checkbox" ? field.checked : field.value !== view.initial[name]) given.set(name, field.type === "checkbox" ? "1" : field.value);
  }
  return given.toString();
}

// The address of what is shown, filters included.
function addressHash() {
  const filters = filterText();
  return `${location.hash.split("?")[0] || "#/"}${filters ? `?${filters}` : ""}`;
}

function keepFilters() {
  history.replaceState(null, "", addressHash());
}

// Within the page: to another address, with the filters that are set.
function go(hash) {
  const filters = filterText();
  location.hash = `${hash.split("?")[0]}${filters ? `?${filters}` : ""}`;
}

// Links have no filters in them, so that those in a list need not be drawn anew with each; a click adds them.
function followWithFilters(event) {
  if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const hash = event.target.closest("a[href^='#/']")?.getAttribute("href");
  if (!hash) return;
  event.preventDefault();
  go(hash);
}

// The filters of the address, which has all that are set; false: they are those that were set before.
function takeFilters() {
  view.initial ??= Object.fromEntries(Object.entries(FILTERS).map(([name, id]) => [name, byId(id).value]));
  const given = new URLSearchParams(location.hash.split("?")[1] ?? "");
  if (given.toString() === filterText()) return false;
  for (const [name, id] of Object.entries(FILTERS)) {
    const field = byId(id);
    if (field.type === "checkbox") field.checked = given.get(name) === "1";
    else field.value = given.get(name) ?? view.initial[name];
    if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = view.initial[name];
  }
  return true;
}

// --- what is set, and what it leaves out ------------------------------------------------------------------------------------

// { name, fields: their ids, passes } of every filter that is set, the search included.
function filtersSet() {
  const given = [];
  const add = (name, fields, passes) => given.push({ name, fields, passes });
  const checked = (id) => byId(id).checked;
  if (checked("hide-dead")) add("hide dead", ["hide-dead"], (latent) => catalog.max[latent] !== 0);
  if (checked("only-paged")) add("with page", ["only-paged"], (latent) => recordOf[latent] >= 0);
  if (checked("not-bos")) add("not BOS", ["not-bos"], (latent) => !view.starts.has(latent));
  if (checked("only-favorites")) add("favorites", ["only-favorites"], (latent) => favorites.has(latent));
  if (checked("without-partner") && catalog.beside) add("without a partner", ["without-partner"], lacksPartner);
  const kind = byId("label-kind");
  if (kind.value) add(`label ${kind.selectedOptions[0].textContent}`, ["label-kind"], (latent) => hasLabelOf(latent, kind.value));
  const least = Number(byId("least-score").value);
  if (least > 0) add(`score from ${least}`, ["least-score"], (latent) => catalog.score[latent] >= least);
  if (view.range && (view.range.low > 0 || view.range.high < Infinity)) {
    const { low, high } = view.range;
    add(`density from ${byId("low-label").textContent} to ${byId("high-label").textContent}`, ["density-low", "density-high"],
      (latent) => catalog.density[latent] >= low && catalog.density[latent] <= high);
  }
  if (view.answer) { const answering = new Set(view.answer.order); add("the search", ["search"], (latent) => answering.has(latent)); }
  if (view.matches) add("the search", ["search"], (latent) => view.matches.level[latent] > 0);
  return given;
}

// Where nothing is left: of each filter how many latents it leaves out, and how many there would be without it.
function drawNothing(filters) {
  const box = byId("nothing");
  const empty = view.order.length === 0 && filters.length > 0 && !view.answer?.pending;
  box.hidden = !empty;
  if (!empty) { box.replaceChildren(); return; }
  const out = filters.map(() => ({ all: 0, alone: 0 }));
  for (let latent = 0; latent < catalog.meta.latents; latent += 1) {
    const failing = filters.map((_, number) => number).filter((number) => !filters[number].passes(latent));
    for (const number of failing) out[number].all += 1;
    if (failing.length === 1) out[failing[0]].alone += 1;
  }
  const all = count(catalog.meta.latents);
  box.replaceChildren(el("p", {}, filters.length > 1 ? "No latent passes all of these:" : "No latent passes this:"), el("ul", {}, filters.map((filter, number) =>
    el("li", {}, el("span", {}, el("b", {}, filter.name), ` leaves out ${count(out[number].all)} of ${all}`,
      filters.length > 1 ? `; without it ${out[number].alone ? `${count(out[number].alone)} would be here` : "there is still none"}` : ""),
    el("button", { type: "button", class: "button small", onclick: () => dropFilter(filter) }, "Drop")))));
}

function dropFilter({ fields }) {
  for (const id of fields) {
    const field = byId(id);
    const name = Object.keys(FILTERS).find((key) => FILTERS[key] === id);
    if (field.type === "checkbox") field.checked = false;
    else field.value = view.initial[name];
  }
  updateList();
  keepFilters();
  byId("search").focus();
}
