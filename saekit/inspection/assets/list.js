// The list of all latents. Only the rows in view exist; 24,576 of them are one array of numbers.

const list = byId("list");
const rows = byId("rows");
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
  for (const id of ["only-paged", "paged-first"]) byId(id).closest("label").hidden = catalog.records.length === catalog.meta.latents;
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

// The score over the latent's place among those with the same automatic label, or with none: of a hundred that fire on flags, the second counts half.
function variedScores() {
  const places = new Map();
  const varied = [...catalog.score];
  const best = varied.map((_, latent) => latent).sort((a, b) => (catalog.score[b] ?? -1) - (catalog.score[a] ?? -1) || a - b);
  for (const latent of best) {
    if (varied[latent] === null) continue;
    const word = catalog.meanings[latent]?.[1].trim().toLowerCase();
    places.set(word, (places.get(word) ?? 0) + 1);
    varied[latent] /= places.get(word);
  }
  return varied;
}

// --- which latents, in which order ----------------------------------------------------------------------------------

function updateList() {
  view.sort = byId("sort").value;
  view.range = readRange();
  view.answer = answerFromPage(byId("search").value, updateList);
  view.needle = view.answer ? "" : byId("search").value.trim().toLowerCase();
  if (view.needle) readWords();
  view.matches = view.needle ? wordMatches(view.needle) : null;
  const filters = filtersSet();
  const kept = [];
  for (let latent = 0; latent < catalog.meta.latents; latent += 1) {
    if (filters.every(({ passes }) => passes(latent))) kept.push(latent);
  }
  view.order = inOrder(kept);
  view.place = new Map(view.order.map((latent, place) => [latent, place]));
  rows.style.height = `${view.order.length * view.height}px`;
  sayFound();
  drawNothing(filters);
  redrawRows();
  scrollToCurrent();
  listChanged();
}

// Tokens and labels of all latents; until they are there, the strongest examples and the automatic labels are searched.
function readWords() {
  for (const part of ["tokens", "labels"]) {
    if (hasLookup(part) && !known[part] && !(part === "labels" && known.names)) loadLookup(part).then(updateList).catch(() => {});
  }
}

function sayFound() {
  const [all, paged] = [catalog.meta.latents, catalog.records.length];
  const { note, more } = view.answer ?? {};
  const found = byId("found");
  found.textContent = view.order.length === all ? `${count(all)} latents, ${count(paged)} with a page` : `${count(view.order.length)} of ${count(all)} latents${note ? `, ${note}` : ""}`;
  if (more) { about(found, more, true); return; }
  found.classList.remove("explained");
  for (const name of ["data-about", "aria-description", "tabindex"]) found.removeAttribute(name);
}

// An answer is in its own order, and words in that of how well they match, unless another order than the first was chosen.
function inOrder(latents) {
  const chosen = view.sort !== view.initial.sort;
  const key = view.sort === "index" ? null : catalog[view.sort];
  const byKey = key ? (a, b) => (key[b] ?? -1) - (key[a] ?? -1) || a - b : (a, b) => a - b;
  let ordered = latents;
  if (view.answer && !chosen) {
    const kept = new Set(latents);
    ordered = view.answer.order.filter((latent) => kept.has(latent));
  } else if (view.matches) {
    const { level, share } = view.matches;
    const worth = (latent) => (catalog.score[latent] ?? 0) * share[latent];
    ordered.sort((a, b) => level[b] - level[a] || (chosen ? byKey(a, b) : worth(b) - worth(a) || share[b] - share[a] || byKey(a, b)));
  } else if (key) ordered.sort(byKey);
  if (!byId("paged-first").checked) return ordered;
  return [...ordered.filter((latent) => recordOf[latent] >= 0), ...ordered.filter((latent) => recordOf[latent] < 0)];
}

function openFirst() {
  if (!view.order.length) return;
  go(`#/f/${view.order[0]}`);
  closeList();
  main.focus({ preventScroll: true }); // its keys are not to be typed into the box
}

// The next latent in the list's order that has a page; from one that the filters hide, the first that they show.
function neighbourInList(latent, direction) {
  const paged = (place) => recordOf[view.order[place]] >= 0;
  let place = view.place.has(latent) ? view.place.get(latent) + direction : direction > 0 ? 0 : view.order.length - 1;
  while (place >= 0 && place < view.order.length && !paged(place)) place += direction;
  return view.order[place] ?? null;
}

// --- drawing --------------------------------------------------------------------------------------------------------

function redrawRows() {
  const focused = rows.contains(document.activeElement) ? document.activeElement.dataset.latent : null;
  view.drawn.clear();
  rows.replaceChildren();
  drawRows();
  if (focused) rows.querySelector(`[data-latent="${focused}"]`)?.focus({ preventScroll: true });
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
  }, el("span", { class: "which" }, el("span", { class: "number" }, String(latent), favorites.has(latent) ? el("span", { class: "star", "aria-hidden": "true" }, " ★") : null),
    isPageless(latent) ? el("span", { class: "no-page" }, "no page") : null), listPreview(latent),
  about(el("span", { class: "density" }, view.axis ? bar(density > 0 ? onAxis(density) : 0) : null, el("span", {}, measure)), view.axis ? "density" : "max"));
  return isPageless(latent) ? about(row, "Its examples are not on this page. Opening it shows what is known of it, and the command that makes its page.") : row;
}

// Without a page, though it fires.
function isPageless(latent) {
  return recordOf[latent] < 0 && catalog.max[latent] !== 0;
}

function listPreview(latent) {
  const preview = previewOf(latent);
  const words = isPageless(latent) ? knownWords(latent) : [];
  if (!words.length) return preview;
  if (!meaningOf(latent)) preview.replaceChildren(...preview.querySelectorAll(".own-label")); // instead of "no common label"
  preview.append(...words);
  return preview;
}

function rowLabel(latent) {
  const record = recordOf[latent];
  const meaning = meaningOf(latent);
  const common = meaning && `${KIND[catalog.meta.modality]?.[meaning.kind] ?? ""} ${tokenText(meaning.text)}${liftText(meaning)}`.trim();
  const words = record < 0 ? [common] : [names.get(latent), catalog.labels[record], common, ...catalog.previews[record].map(tokenText), ...catalog.data_labels[record]];
  const density = catalog.density[latent];
  return [`feature ${latent}`, favorites.has(latent) ? "favorite" : null, ...words.filter(Boolean), density === null ? null : density === 0 ? "dead" : `density ${percent(density, 2)}`, isPageless(latent) ? "no page" : null]
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
