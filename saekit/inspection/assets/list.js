// The list of all latents. Only the rows in view exist; 24,576 of them are one array of numbers.

const list = byId("list");
const rows = byId("rows");
const SPREAD_BINS = 48;
const OVERSCAN = 6;

const view = { order: [], place: new Map(), sort: "density", range: null, axis: null, needle: null, height: 44, drawn: new Map() };

function prepareList() {
  const images = catalog.thumbnails.some(Boolean);
  view.height = images ? 52 : 44;
  list.classList.toggle("with-images", images);
  if (catalog.meta.modality === "image") {
    byId("search").placeholder = "Index or label";
    byId("search").previousElementSibling.textContent = "Search by index or label";
  }
  view.search = catalog.records.map((_, record) => searchText(record));
  prepareDensity();
  if (catalog.records.length === catalog.meta.latents) byId("only-paged").closest("label").hidden = true;
  prepareScore();
  prepareKinds();
  takeFilters();
  about(byId("not-bos").closest("label"), "notBos");
  about(byId("density-filter"), "densityFilter");
  byId("filters").addEventListener("submit", (event) => { event.preventDefault(); openFirst(); });
  byId("filters").addEventListener("input", () => { updateList(); keepFilters(); });
  list.addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  new ResizeObserver(drawRows).observe(list);
  updateList();
}

function searchText(record) {
  const words = [...catalog.previews[record], ...catalog.data_labels[record]];
  if (catalog.labels[record]) words.push(catalog.labels[record]);
  return words.join("\n").toLowerCase();
}

// Best scored first, where there are scores, and the first of each label before its second.
function prepareScore() {
  if (catalog.score.some((score) => score !== null)) {
    byId("sort").value = "varied";
    catalog.varied = variedScores();
  } else for (const option of byId("sort").querySelectorAll("[value=score], [value=varied]")) option.remove();
}

// The score over the latent's place among those with the same automatic label: of a hundred that fire on flags, the second counts half.
function variedScores() {
  const places = new Map();
  const varied = [...catalog.score];
  const best = varied.map((_, latent) => latent).sort((a, b) => (catalog.score[b] ?? -1) - (catalog.score[a] ?? -1) || a - b);
  for (const latent of best) {
    const word = catalog.meanings[latent]?.[1].trim().toLowerCase();
    if (word === undefined || varied[latent] === null) continue;
    places.set(word, (places.get(word) ?? 0) + 1);
    varied[latent] /= places.get(word);
  }
  return varied;
}

// --- density filter -------------------------------------------------------------------------------------------------

function prepareDensity() {
  const positive = catalog.density.filter((density) => density > 0);
  const applies = positive.length > 0;
  byId("density-filter").hidden = !applies;
  if (!applies) {
    view.sort = byId("sort").value = "max";
    byId("sort").querySelector("[value=density]").disabled = true;
    return;
  }
  const low = Math.floor(Math.log10(positive.reduce((a, b) => Math.min(a, b))));
  view.axis = [Math.min(low, -1), 0];
  for (const [id, end] of [["density-low", 0], ["density-high", 1]]) {
    Object.assign(byId(id), { min: view.axis[0], max: view.axis[1], step: 0.05 });
    byId(id).value = view.axis[end];
  }
  drawSpread(positive);
}

function drawSpread(positive) {
  const counts = new Array(SPREAD_BINS).fill(0);
  for (const density of positive) counts[Math.min(SPREAD_BINS - 1, Math.floor(onAxis(density) * SPREAD_BINS))] += 1;
  const top = Math.max(...counts);
  byId("density-spread").replaceChildren(...counts.map((n, bin) => el("svg:rect", {
    x: bin + 0.1, width: 0.8, height: n ? Math.max(3, n / top * 100) : 0, y: 100 - (n ? Math.max(3, n / top * 100) : 0) })));
}

// 0 to 1 along the logarithmic axis of densities.
function onAxis(density) {
  return clamp01((Math.log10(density) - view.axis[0]) / (view.axis[1] - view.axis[0]));
}

function readRange() {
  if (!view.axis) return null;
  const ends = [Number(byId("density-low").value), Number(byId("density-high").value)];
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  byId("low-label").textContent = shortPercent(10 ** low);
  byId("high-label").textContent = shortPercent(10 ** high);
  const span = view.axis[1] - view.axis[0];
  byId("density-spread").querySelectorAll("rect").forEach((rect, bin) => {
    const middle = view.axis[0] + (bin + 0.5) / SPREAD_BINS * span;
    rect.classList.toggle("out", middle < low || middle > high);
  });
  // At its end a slider restricts nothing: the least density on the axis need not be a round power.
  return { low: low <= view.axis[0] ? 0 : 10 ** low, high: high >= view.axis[1] ? Infinity : 10 ** high };
}

// --- which latents, in which order ----------------------------------------------------------------------------------

function updateList() {
  view.sort = byId("sort").value;
  view.range = readRange();
  view.answer = answerFromPage(byId("search").value, updateList);
  view.needle = view.answer ? "" : byId("search").value.trim().toLowerCase();
  const answering = view.answer && new Set(view.answer.order);
  if (view.needle && !words) loadWords().then(updateList).catch(() => {}); // without them, the strongest examples are searched
  view.on = view.needle ? latentsOn(view.needle) : null;
  const hideDead = byId("hide-dead").checked;
  const onlyPaged = byId("only-paged").checked;
  const kind = byId("label-kind").value;
  const leastScore = Number(byId("least-score").value);
  const notBos = byId("not-bos").checked;
  const onlyFavorites = byId("only-favorites").checked;
  const withoutPartner = byId("without-partner").checked && catalog.beside;
  const kept = [];
  for (let latent = 0; latent < catalog.meta.latents; latent += 1) {
    if (hideDead && catalog.max[latent] === 0) continue;
    if (onlyPaged && recordOf[latent] < 0) continue;
    if (view.range && (catalog.density[latent] < view.range.low || catalog.density[latent] > view.range.high)) continue;
    if (kind && !hasLabelOf(latent, kind)) continue;
    if (leastScore > 0 && !(catalog.score[latent] >= leastScore)) continue;
    if (notBos && view.starts.has(latent)) continue;
    if (onlyFavorites && !favorites.has(latent)) continue;
    if (withoutPartner && !lacksPartner(latent)) continue;
    if (answering && !answering.has(latent)) continue;
    if (view.needle && !matches(latent, view.needle)) continue;
    kept.push(latent);
  }
  view.order = inOrder(kept);
  view.place = new Map(view.order.map((latent, place) => [latent, place]));
  rows.style.height = `${view.order.length * view.height}px`;
  byId("found").textContent = foundText();
  redrawRows();
  scrollToCurrent();
  listChanged();
}

// A page knows tokens and labels of examples only of the latents that it shows: `asked` of the answer says so.
function foundText() {
  const [all, paged] = [catalog.meta.latents, catalog.records.length];
  if (view.order.length === all) return `${count(all)} latents, ${count(paged)} with a page`;
  const { note, asked, verb } = view.answer ?? {};
  const of = asked === "paged" && paged < all ? `the ${count(paged)} latents with a page` : `${count(all)} latents`;
  const rest = !asked || paged === all ? "" : asked === "paged" ? `. ${verb} asks all.`
    : `. Without a page, a latent is asked only for its automatic label; ${verb} asks all.`;
  return `${count(view.order.length)} of ${of}${note ? `, ${note}` : ""}${rest}`;
}

// "81" finds 81, 810, 8123 and every token with 81 in it; "#81" only the numbers.
function matches(latent, needle) {
  const digits = needle.startsWith("#") ? needle.slice(1) : needle;
  if (/^\d+$/.test(digits) && String(latent).startsWith(digits)) return true;
  if (names.get(latent)?.toLowerCase().includes(needle) || catalog.meanings[latent]?.[1].toLowerCase().includes(needle)) return true;
  if (view.on?.has(latent)) return true;
  return recordOf[latent] >= 0 && view.search[recordOf[latent]].includes(needle);
}

function inOrder(latents) {
  if (view.answer?.figures) return view.answer.order.filter((latent) => latents.includes(latent));
  const key = view.sort === "index" ? null : catalog[view.sort];
  if (key) latents.sort((a, b) => (key[b] ?? -1) - (key[a] ?? -1) || a - b);
  const exact = Number(view.needle.replace("#", "") || NaN);
  const at = latents.indexOf(exact);
  if (at > 0) latents.unshift(...latents.splice(at, 1));
  return latents;
}

function openFirst() {
  if (view.order.length) location.hash = `#/f/${view.order[0]}`;
}

// The next latent in the list's order that has a page; from one that the filters hide, the first that they show.
function neighbourInList(latent, direction) {
  const paged = (place) => recordOf[view.order[place]] >= 0;
  let place = view.place.has(latent) ? view.place.get(latent) + direction : direction > 0 ? 0 : view.order.length - 1;
  while (place >= 0 && place < view.order.length && !paged(place)) place += direction;
  return view.order[place] ?? null;
}

// --- filters beside the search, and their place in the address ------------------------------------------------------------

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
  dead: "hide-dead", paged: "only-paged", bos: "not-bos", favorites: "only-favorites", unmatched: "without-partner" };

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

// The filters of the address, where it has any.
function takeFilters() {
  view.initial ??= Object.fromEntries(Object.entries(FILTERS).map(([name, id]) => [name, byId(id).value]));
  const query = location.hash.split("?")[1];
  if (!query) return false;
  const given = new URLSearchParams(query);
  for (const [name, id] of Object.entries(FILTERS)) {
    const field = byId(id);
    if (field.type === "checkbox") field.checked = given.get(name) === "1";
    else field.value = given.get(name) ?? view.initial[name];
    if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = view.initial[name];
  }
  return true;
}

// --- drawing --------------------------------------------------------------------------------------------------------

function redrawRows() {
  view.drawn.clear();
  rows.replaceChildren();
  drawRows();
}

function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / view.height) - OVERSCAN);
  const last = Math.min(view.order.length, Math.ceil((list.scrollTop + list.clientHeight) / view.height) + OVERSCAN);
  for (const [place, row] of view.drawn) {
    if (place < first || place >= last) { row.remove(); view.drawn.delete(place); }
  }
  for (let place = first; place < last; place += 1) {
    if (!view.drawn.has(place)) {
      const row = listRow(view.order[place], place);
      view.drawn.set(place, row);
      rows.append(row);
    }
  }
}

function listRow(latent, place) {
  const density = catalog.density[latent];
  const current = latent === currentLatent();
  const measure = view.answer?.figures?.get(latent) ?? (view.axis ? shortPercent(density) : figure(catalog.max[latent], 3));
  const row = el("a", {
    class: `row${recordOf[latent] < 0 ? " pageless" : ""}`, href: `#/f/${latent}`, "data-latent": latent,
    tabindex: current ? "0" : "-1", "aria-current": current ? "page" : null, "aria-label": rowLabel(latent),
    style: { transform: `translateY(${place * view.height}px)`, height: `${view.height}px` },
  }, el("span", { class: "number" }, String(latent), favorites.has(latent) ? el("span", { class: "star", "aria-hidden": "true" }, " ★") : null), previewOf(latent),
  about(el("span", { class: "density" }, view.axis ? bar(density > 0 ? onAxis(density) : 0) : null, el("span", {}, measure)), view.axis ? "density" : "max"));
  return recordOf[latent] < 0 && catalog.max[latent] !== 0 ? about(row, "Its examples are not on this page; opening it shows the command that adds them.") : row;
}

function rowLabel(latent) {
  const record = recordOf[latent];
  const meaning = meaningOf(latent);
  const common = meaning && `${KIND[catalog.meta.modality]?.[meaning.kind] ?? ""} ${tokenText(meaning.text)}${liftText(meaning)}`.trim();
  const words = record < 0 ? [common] : [names.get(latent), catalog.labels[record], common, ...catalog.previews[record].map(tokenText), ...catalog.data_labels[record]];
  const density = catalog.density[latent];
  return [`feature ${latent}`, favorites.has(latent) ? "favorite" : null, ...words.filter(Boolean), density === null ? null : density === 0 ? "dead" : `density ${percent(density, 2)}`]
    .filter(Boolean).join(", ");
}

function markCurrentRow() {
  for (const row of view.drawn.values()) {
    const current = Number(row.dataset.latent) === currentLatent();
    row.tabIndex = current ? 0 : -1;
    if (current) row.setAttribute("aria-current", "page"); else row.removeAttribute("aria-current");
  }
}

function scrollToCurrent() {
  const place = view.place.get(currentLatent());
  if (place === undefined || list.clientHeight === 0) return;
  const [above, below] = [place * view.height, (place + 1) * view.height];
  if (above < list.scrollTop || below > list.scrollTop + list.clientHeight) {
    list.scrollTop = above - (list.clientHeight - view.height) / 2;
  }
  drawRows();
}
