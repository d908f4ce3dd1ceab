// The page of one feature, from its record. Functions take the record and return elements; explorer.js puts them in place.

let interval = null; // the band whose examples are shown, null for the middle one; kept from feature to feature

function featurePage(record) {
  return [
    featureHeader(record.index, record.label, record),
    topSection(record),
    el("div", { class: "pair" }, el("div", {}, histogramSection(record), hasLabelSection(record) ? labelSection(record) : null,
      record.tokens ? tokenSection(record) : null), relatedSection(record)),
    besideSection(record),
    sampleSection(record),
    intervalSection(record),
    record.logits ? logitSection(record) : null,
  ].filter(Boolean);
}

function hasLabelSection({ data_labels: found }) {
  return Boolean(found) && (found.labels.length > 0 || found.examples < found.least);
}

function featureHeader(latent, label, record) {
  const density = catalog.density[latent];
  const score = catalog.score[latent] ?? null;
  const active = record ? el("span", { class: "of" }, `${count(record.active_rows)} of ${count(catalog.meta.rows)} rows`) : null;
  return el("header", { class: "feature-header" },
    el("div", { class: "identity" },
      el("h2", { id: "index", tabindex: "-1" }, el("span", { class: "hash" }, "#"), String(latent)),
      el("p", { class: "feature-label", id: "label" }, plainNodes(label ?? "")),
      nameField(latent),
      el("div", { class: "steps" },
        favoriteButton(latent),
        el("button", { type: "button", class: "button", id: "previous", "aria-label": "Previous feature", onclick: () => step(-1) }, "←"),
        el("button", { type: "button", class: "button", id: "next", "aria-label": "Next feature", onclick: () => step(1) }, "→"),
        el("button", { type: "button", class: "button", id: "copy", onclick: copyLink }, "Copy link"))),
    automaticLabel(latent, record),
    noteField(latent),
    el("dl", { class: "stats" },
      density === null ? null : stat("density", "Density", "density", percent(density), active),
      record && isSigned(record) ? stat("max", "Max size", "maxSize", figure(catalog.max[latent]))
        : stat("max", "Max activation", "max", figure(catalog.max[latent])),
      score === null ? null : stat("score", "Score", "score", figure(score, 2)),
      density === null && active ? stat("active", "Active", "active", active) : null,
      record?.hook_shares ? stat("hook-shares", "Decoder norm by hook", "hookShares", ...shareText(record.hook_shares)) : null));
}

// "automatic: on import, 30 of 38 examples; raises numpy".
function automaticLabel(latent, record) {
  const meaning = meaningOf(latent);
  if (!meaning) return null;
  return about(el("p", { class: "automatic-label", id: "automatic" }, el("span", { class: "badge" }, "automatic"), el("span", {}, meaningNodes(meaning)),
    about(el("span", { class: "of" }, `${meaning.count} of ${meaning.of} examples${liftText(meaning)}`), "label"),
    record?.word ? wordOfAll(meaning, record.word) : null, record ? raisesNodes(record) : null), "label", true);
}

// "; of all its rows 61 %, 14 × chance": the same word over all rows, since the examples are mostly the strongest.
function wordOfAll(meaning, { count: rows, of, lift }) {
  const [ofAll, what] = meaning.kind in KIND.text && meaning.kind !== "label" ? [WORD_UNITS.rows, "tokens"]
    : [`all its ${WORD_UNITS[catalog.meta.modality]}`, WORD_UNITS[catalog.meta.modality]];
  return about(el("span", { class: "of", id: "word-of-all" }, `${percent(rows / of, 3)} of ${ofAll}, ${figure(lift, 3)} × chance`),
    `${count(rows)} of ${count(of)}. The first figure is of its examples, which are the strongest rows and a few of each interval; this one is of ${ofAll}. `
    + `Chance is the word's share of all ${what}, in any spelling (capitals, blanks); the lists below count each spelling by itself.`, true);
}

const WORD_UNITS = { rows: "all its rows", text: "contexts", image: "images" };

// "blocks.3 61.2 % · blocks.6 38.8 %": of a crosscoder.
function shareText(shares) {
  return Object.entries(shares).flatMap(([hook, share], i) => [i ? " · " : null, ...plainNodes(hook), ` ${percent(share, 3)}`]).filter(Boolean);
}

function stat(id, name, meaning, ...values) {
  return about(el("div", {}, about(el("dt", {}, el("span", {}, name)), meaning, true), el("dd", { id }, values)), meaning);
}

// `meaning`: what the tip of the heading says.
function section(id, title, extra, ...content) {
  const head = el("h3", { id: `${id}-title` }, title);
  if (MEANING[SECTION_MEANING[id]]) about(head, SECTION_MEANING[id], true);
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("div", { class: "section-head" }, head, extra), content);
}

const SECTION_MEANING = { histogram: "histogram", logits: "outputTokens", top: "top", intervals: "intervals", samples: "samples", tokens: "tokens", "data-labels": "dataLabels" };

function histogramSection(record) {
  const logarithmic = memory.get("log", "no") === "yes";
  const toggle = about(el("button", { type: "button", class: "button small", id: "log-axis", "aria-pressed": String(logarithmic) }, "log"), "log");
  toggle.addEventListener("click", () => {
    memory.set("log", logarithmic ? "no" : "yes");
    const redrawn = histogramSection(record);
    byId("histogram").replaceWith(redrawn);
    redrawn.querySelector("#log-axis").focus();
  });
  return section("histogram", "Activations", toggle, histogram(record, logarithmic));
}

// Whether the output tokens of a side stand out more than those of 99 % of random directions.
function standsOut(record, side) {
  const test = record.logit_test;
  return Boolean(record.logits) && (!test || test[side] > test[`${side}_chance`]);
}

// How many tokens of a side that does not stand out do so by themselves, each against the strongest of the whole vocabulary.
function standsOutSingly(record, side) {
  return record.logits && !standsOut(record, side) ? record.logit_test[`${side}_beyond`] ?? 0 : 0;
}

const SIDES = { raised: ["Raised", "top", "Raises"], lowered: ["Lowered", "bottom", "Lowers"] };

// "Raises one token: 't", with what chance gives.
function singleNodes(record, side) {
  const [, key, verb] = SIDES[side];
  const shown = record.logits[key].slice(0, standsOutSingly(record, side));
  const test = record.logit_test;
  return el("div", { class: "single", "data-single-side": side },
    about(el("h4", { class: "explained" }, el("span", {}, `${verb} ${shown.length === 1 ? "one token" : `${shown.length} tokens`}`)), "single", true),
    el("ol", { class: "measures" }, shown.map((entry) => about(el("li", {}, el("span", { class: "chip" }, tokenNodes(entry.token, true)),
      el("span", { class: "value" }, figure(entry.value))), "logit"))),
    el("p", { class: "note" }, `The strongest lies ${figure(test[`${side}_one`], 3)} standard deviations from the mean logit; the strongest of the whole vocabulary stays below `
      + `${figure(test[`${side}_one_chance`], 3)} for 99 % of random directions.`));
}

// Why a side is not shown.
function hiddenNote(record, side) {
  const test = record.logit_test;
  const single = standsOutSingly(record, side);
  const ten = `${SIDES[side][0]} tokens ${single ? "as a list of ten " : ""}are not shown: they are no better than those of a random direction. The ten of this feature lie `
    + `${figure(test[side], 3)} standard deviations from the mean logit; 99 % of random directions stay below ${figure(test[`${side}_chance`], 3)}.`;
  const one = single || !test[`${side}_one`] ? ""
    : ` Nor is the strongest by itself: ${figure(test[`${side}_one`], 3)}, where 99 % stay below ${figure(test[`${side}_one_chance`], 3)}.`;
  return el("p", { class: "note", "data-hidden-side": side }, ten + one);
}

// Sides that are no better than chance are said to be so, and not shown.
function logitSection(record) {
  const shown = Object.keys(SIDES).filter((side) => standsOut(record, side));
  const hidden = Object.keys(SIDES).filter((side) => !shown.includes(side));
  const entries = shown.map((side) => record.logits[SIDES[side][1]]);
  const largest = Math.max(...entries.flat().map((entry) => Math.abs(entry.value)), 1e-12);
  const single = hidden.filter((side) => standsOutSingly(record, side));
  return section("logits", "Output tokens", null,
    ...single.map((side) => singleNodes(record, side)),
    record.logit_histogram ? logitHistogram(record) : null,
    shown.length ? el("div", { class: "two" }, shown.map((side, at) => logitColumn(side, entries[at], largest))) : null,
    ...hidden.map((side) => hiddenNote(record, side)),
    el("p", { class: "note" }, shown.length || single.length ? catalog.meta.logit_note : "For the same reason the distribution over the vocabulary is not shown."));
}

function logitColumn(side, entries, largest) {
  return el("div", { class: side }, el("h4", {}, SIDES[side][0]),
    el("ol", { class: "measures" }, entries.map((entry) => about(el("li", {},
      el("span", { class: "chip" }, tokenNodes(entry.token, true)), bar(Math.abs(entry.value) / largest),
      el("span", { class: "value" }, figure(entry.value))), "logit"))));
}

function topSection(record) {
  const top = record.examples.filter((example) => example.group === "top");
  return section("top", "Top activating examples", top.length ? shadingControls(record) : null,
    ...(top.length ? bothEnds(top, record.max)
      : [el("p", { class: "note" }, "This feature has no example: no scanned row activates it.")]));
}

// A signed latent means one thing above 0 and another below: two lists, where it has both.
function bothEnds(examples, max) {
  const ends = [examples.filter((example) => example.act >= 0), examples.filter((example) => example.act < 0)];
  if (ends.some((end) => end.length === 0)) return [exampleList(examples, max)];
  return ends.flatMap((end, below) => [el("h4", { class: "end" }, below ? "Below 0" : "Above 0"), exampleList(end, max)]);
}

function exampleList(examples, max) {
  const images = catalog.meta.modality === "image";
  return el("ol", { class: images ? "image-grid" : "text-list" },
    examples.map((example) => (images ? imageExample(example, max) : textExample(example, max))));
}

function shadingControls(record) {
  if (catalog.meta.modality === "image") return el("div", { class: "shading" }, colorBar(record), overlayButtons());
  const on = !document.body.classList.contains("heat-off");
  return el("div", { class: "shading" }, colorBar(record), el("button", { type: "button", class: "button small", id: "heat-toggle",
    "aria-pressed": String(on), title: "Activation shading (h)", onclick: toggleHeat }, "shading"));
}

function toggleHeat() {
  if (catalog.meta.modality === "image") {
    const names = Object.keys(OVERLAYS);
    setOverlay(names[(names.indexOf(document.body.dataset.overlay) + 1) % names.length]);
    return;
  }
  const off = document.body.classList.toggle("heat-off");
  byId("heat-toggle")?.setAttribute("aria-pressed", String(!off));
}

// A band as the scan counted it: its ends and its rows.
function intervalName(band) {
  return band.low === 0 ? `up to ${figure(band.high, 3)}` : `${figure(band.low, 3)}–${figure(band.high, 3)}`;
}

function intervalSection(record) {
  const inBand = record.examples.filter((example) => example.interval !== null);
  const bandCount = record.bands?.length ?? inBand.reduce((most, example) => Math.max(most, example.interval + 1), 0);
  const bands = Array.from({ length: bandCount }, (_, band) => inBand.filter((example) => example.interval === band));
  const chosen = Math.min(interval ?? Math.floor(bandCount / 2), bandCount - 1);
  const counted = (record.bands ?? []).some((band) => band.rows > 0);
  if (!counted && bands.every((examples) => examples.length === 0)) return null;
  const buttons = bands.map((_, band) => el("button", { type: "button", class: "band", "aria-pressed": String(band === chosen),
    onclick: () => {
      interval = band;
      const redrawn = intervalSection(record);
      byId("intervals").replaceWith(redrawn);
      redrawn.querySelectorAll(".band")[band].focus({ preventScroll: true });
    } },
  el("span", { class: "swatch", style: { "--t": String((band + 0.5) / bandCount) } }),
  el("b", {}, record.bands ? intervalName(record.bands[band]) : `band ${band + 1}`),
  about(el("span", { class: "band-rows" }, record.bands ? rowsText(record.bands[band].rows) : ""), "bandRows")));
  const shown = bands[chosen] ?? [];
  return section("intervals", "Examples by interval", el("span", { class: "note" }, isSigned(record) ? "by size, either sign" : "by activation"),
    el("div", { class: "bands", role: "group", "aria-label": "Interval of the maximum activation", style: { "--bands": String(bandCount) } }, buttons),
    shown.length ? exampleList(shown, record.max) : el("p", { class: "note" }, "No example in this interval."));
}

// --- all of its rows ------------------------------------------------------------------------------------------------

let sampled = "random"; // which samples are shown; kept from feature to feature

const FIFTHS = ["weakest fifth", "second fifth", "middle fifth", "fourth fifth", "strongest fifth"];

// Samples of the whole range: a feature is judged by all of its rows, not by its strongest.
function sampleSection(record) {
  if (!record.samples.length) return null;
  const groups = [["random", "any row", record.samples.filter((example) => example.group === "random")],
    ...FIFTHS.map((name, number) => [String(number), name, record.samples.filter((example) => example.group === "quantile" && example.interval === number)])]
    .filter(([, , examples]) => examples.length);
  const [chosen, , shown] = groups.find(([key]) => key === sampled) ?? groups[0];
  const buttons = groups.map(([key, name, examples]) => el("button", { type: "button", class: "band", "data-sample": key, "aria-pressed": String(key === chosen),
    onclick: () => {
      sampled = key;
      byId("samples").replaceWith(sampleSection(record));
      byId("samples").querySelector(`[data-sample="${key}"]`).focus({ preventScroll: true });
    } },
  el("span", { class: "swatch", style: { "--t": clamp01((rangeOfSamples(record, key)?.high ?? 0) / record.max).toFixed(3) } }),
  el("b", {}, name), about(el("span", { class: "band-rows" }, rangeNodes(rangeOfSamples(record, key))), "fifth")));
  return section("samples", "Samples of all its rows", el("span", { class: "note" }, isSigned(record) ? "fifths of equal numbers of rows, by size" : "fifths of equal numbers of rows"),
    el("div", { class: "bands", role: "group", "aria-label": "Which rows", style: { "--bands": String(groups.length) } }, buttons), exampleList(shown, record.max));
}

// From which sizes samples were drawn: the ends of the whole fifth, not of the few rows shown. A page of before does not have them.
function rangeOfSamples({ fifths }, key) {
  if (!fifths) return null;
  if (key !== "random") return fifths[Number(key)];
  const filled = fifths.filter(({ rows }) => rows);
  return { low: filled[0].low, high: filled[filled.length - 1].high, rows: filled.reduce((sum, { rows }) => sum + rows, 0) };
}

function rangeNodes(range) {
  if (!range) return [];
  const { low, high, rows } = range;
  return [low === high ? figure(low) : `${figure(low)} to ${figure(high)}`, rowsText(rows)].map((line) => el("span", { class: "line" }, line));
}

// The labels of the data that its images or contexts have more often than others; of too few of these nothing is said.
function labelSection(record) {
  const { labels, examples, strongest, least } = record.data_labels;
  const what = catalog.meta.modality === "image" ? "images" : "contexts";
  if (examples < least) {
    return section("data-labels", `Labels of its ${what}`, null, about(el("p", { class: "note", id: "label-figures" },
      `Too few ${what} to say: it is active in ${count(examples)}, and ${least} are needed.`), "fewLabels", true));
  }
  return section("data-labels", `Labels of its ${what}`, el("span", { class: "note" }, "share · lift"),
    el("ol", { class: "measures token-shares" }, labels.map((entry) => about(el("li", {},
      el("span", { class: "data-label" }, plainNodes(entry.label)), bar(entry.examples / examples), el("span", { class: "value" }, percent(entry.examples / examples, 3)),
      el("span", { class: "value lift" }, `× ${figure(entry.lift, 3)}`)),
    `${count(entry.examples)} of ${count(examples)} ${what}, ${figure(entry.lift, 3)} times the share of all ${what}; of the ${strongest} strongest ${entry.strongest}.`))),
    el("p", { class: "note", id: "label-figures" }, `Active in ${count(examples)} ${what}; ${labels[0].strongest} of the ${strongest} strongest have the first label.`));
}

// The tokens that it is active on, with their share of its rows, and where in their contexts.
function tokenSection(record) {
  const { tokens, different, position, first } = record.tokens;
  return section("tokens", "Tokens it is active on", el("span", { class: "note" }, "share · lift"),
    el("ol", { class: "measures token-shares" }, tokens.map(({ token, rows, lift }) => about(el("li", {},
      el("span", { class: "chip" }, tokenNodes(token, true)), bar(rows / record.active_rows), el("span", { class: "value" }, percent(rows / record.active_rows, 3)),
      el("span", { class: "value lift" }, `× ${figure(lift, 3)}`)), `${rowsText(rows)} of ${count(record.active_rows)}: this token is ${figure(lift, 3)} times as common here as among all rows.`))),
    el("p", { class: "note", id: "token-figures" }, `${count(different)} different ${different === 1 ? "token" : "tokens"}; mean position ${figure(position, 3)}; `
      + `${count(first)} of ${count(record.active_rows)} rows are the first of their context.`));
}

function relatedSection(record) {
  const lists = [];
  if (record.neighbours.length) lists.push(relatedList("neighbours", "Nearest decoder directions", "cosine", record.neighbours));
  if (record.coactivation.length) lists.push(relatedList("coactivation", "Fire on the same rows", "jaccard", record.coactivation));
  if (record.following.length) lists.push(relatedList("following", "Fire on the next token", "jaccard", record.following));
  if (!lists.length) return null;
  const missing = [...new Set([...record.neighbours, ...record.coactivation, ...record.following].map((entry) => entry.index))].filter((latent) => recordOf[latent] < 0);
  return section("related", "Related features", mapLink(record.index), el("div", { class: "related-lists" }, lists), missing.length ? addPages(missing) : null);
}

function relatedList(id, title, measure, entries) {
  return el("div", { id }, about(el("h4", {}, el("span", {}, title), el("span", { class: "unit" }, measure)), id, true),
    el("ol", { class: "measures related" }, entries.map((entry) => about(el("li", {},
      recordOf[entry.index] < 0 ? el("span", { class: "number" }, `#${entry.index}`) : el("a", { href: `#/f/${entry.index}` }, `#${entry.index}`),
      previewOf(entry.index), bar(Math.abs(entry[measure])), el("span", { class: "value" }, figure(entry[measure]))), entry.pmi === undefined ? id
        : `${MEANING[id]()} Here: ${rowsText(entry.together)} together, PMI ${figure(entry.pmi, 3)} nats.`))));
}

// Those without a page are text, not links; the command adds them to this page.
function addPages(latents) {
  return el("div", { class: "add-pages" }, el("p", { class: "note" }, latents.length === 1 ? "One of these has no page. To add it:"
    : `${latents.length} of these have no page. To add them:`), commandNodes(latents));
}

function commandNodes(latents) {
  const command = `${catalog.meta.command || "saekit inspect ..."} --features ${latents.join(",")}`;
  const button = el("button", { type: "button", class: "button small", onclick: async () => {
    try { await navigator.clipboard.writeText(command); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(box); button.textContent = "Selected"; }
  } }, "Copy");
  const box = el("code", {}, command);
  const folder = catalog.meta.command_folder;
  return el("div", {}, el("div", { class: "command" }, el("pre", {}, box), button),
    folder ? el("p", { class: "note command-folder" }, `To be run in the folder “${folder}”, where the page was made.`) : null);
}

// What a list shows of a latent beside its number: label, thumbnail, the tokens it fires on.
function previewOf(latent) {
  const record = recordOf[latent];
  const meaning = meaningOf(latent);
  const own = names.get(latent) ?? (record >= 0 ? catalog.labels[record] : null);
  const words = meaning ? [el("span", { class: "automatic" }, meaningNodes(meaning))] : [];
  // one box, in which the label gives way to the figure
  if (meaning?.lift) words.push(el("span", { class: "lifted" }, words.pop(), about(el("span", { class: "lift" }, `× ${figure(meaning.lift, 2)}`), "lift")));
  const name = own ? el("span", { class: "own-label" }, plainNodes(own)) : null; // beside it all that the row has without one
  if (record < 0) return el("span", { class: "preview none" }, name, catalog.max[latent] === 0 ? "" : words.length ? words : noCommon());
  const thumbnail = catalog.thumbnails[record];
  const common = meaning && meaning.text.trim().toLowerCase();
  catalog.previews[record].filter((token) => token.trim().toLowerCase() !== common)
    .forEach((token) => words.push(el("span", { class: "chip" }, tokenNodes(token, true))));
  if (!words.length || catalog.labels[record]) {
    catalog.data_labels[record].forEach((label) => words.push(el("span", { class: "data-label" }, plainNodes(label))));
  }
  return el("span", { class: "preview" }, thumbnail ? picture(thumbnail, "") : null, name, words);
}

// `latents`: of the dictionary that lacks it.
function noSuchLatent(text, latents = catalog.meta.latents, name = "this dictionary") {
  return [section("hint", "No such feature", null, el("p", {}, `“${text}” is not in ${name}: its features are 0 to ${latents - 1}.`))];
}
