// The page of one feature, from its record. Functions take the record and return elements; explorer.js puts them in place.

const INTERVALS = 5;
let interval = INTERVALS - 1; // the band whose examples are shown; kept from feature to feature

function featurePage(record) {
  return [
    featureHeader(record.index, record.label, record),
    el("div", { class: "pair" }, histogramSection(record), record.logits ? logitSection(record) : relatedSection(record)),
    topSection(record),
    intervalSection(record),
    record.logits ? relatedSection(record) : null,
  ].filter(Boolean);
}

function featureHeader(latent, label, record) {
  const density = catalog.density[latent];
  const active = record ? el("span", { class: "of" }, `${count(record.active_rows)} of ${count(catalog.meta.rows)} rows`) : null;
  return el("header", { class: "feature-header" },
    el("div", { class: "identity" },
      el("h2", { id: "index", tabindex: "-1" }, el("span", { class: "hash" }, "#"), String(latent)),
      el("p", { class: "feature-label", id: "label" }, plainNodes(label ?? "")),
      el("div", { class: "steps" },
        el("button", { type: "button", class: "button", id: "previous", "aria-label": "Previous feature", onclick: () => step(-1) }, "←"),
        el("button", { type: "button", class: "button", id: "next", "aria-label": "Next feature", onclick: () => step(1) }, "→"),
        el("button", { type: "button", class: "button", id: "copy", onclick: copyLink }, "Copy link"))),
    el("dl", { class: "stats" },
      density === null ? null : stat("density", "Density", percent(density), active),
      stat("max", record && isSigned(record) ? "Max size" : "Max activation", figure(catalog.max[latent])),
      density === null && active ? stat("active", "Active", active) : null,
      record?.hook_shares ? stat("hook-shares", "Decoder norm by hook", ...shareText(record.hook_shares)) : null));
}

// "blocks.3 61.2 % · blocks.6 38.8 %": of a crosscoder.
function shareText(shares) {
  return Object.entries(shares).flatMap(([hook, share], i) => [i ? " · " : null, ...plainNodes(hook), ` ${percent(share, 3)}`]).filter(Boolean);
}

function stat(id, name, ...values) {
  return el("div", {}, el("dt", {}, name), el("dd", { id }, values));
}

function section(id, title, extra, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("div", { class: "section-head" }, el("h3", { id: `${id}-title` }, title), extra), content);
}

function histogramSection(record) {
  const logarithmic = memory.get("log", "no") === "yes";
  const toggle = el("button", { type: "button", class: "button small", id: "log-axis", "aria-pressed": String(logarithmic),
    title: "Logarithmic axis (l)" }, "log");
  toggle.addEventListener("click", () => {
    memory.set("log", logarithmic ? "no" : "yes");
    const redrawn = histogramSection(record);
    byId("histogram").replaceWith(redrawn);
    redrawn.querySelector("#log-axis").focus();
  });
  return section("histogram", "Activations", toggle, histogram(record, logarithmic));
}

function logitSection(record) {
  const every = [...record.logits.top, ...record.logits.bottom];
  const largest = Math.max(...every.map((entry) => Math.abs(entry.value)), 1e-12);
  const column = (title, entries, className) => el("div", { class: className },
    el("h4", {}, title),
    el("ol", { class: "measures" }, entries.map((entry) => el("li", {},
      el("span", { class: "chip" }, tokenNodes(entry.token, true)), bar(Math.abs(entry.value) / largest),
      el("span", { class: "value" }, figure(entry.value))))));
  return section("logits", "Output tokens", null,
    el("div", { class: "two" }, column("Raised", record.logits.top, "raised"), column("Lowered", record.logits.bottom, "lowered")),
    el("p", { class: "note" }, catalog.meta.logit_note));
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
  const on = !document.body.classList.contains("heat-off");
  const toggle = el("button", { type: "button", class: "button small", id: "heat-toggle", "aria-pressed": String(on),
    title: "Activation shading (h)", onclick: toggleHeat }, "heat map");
  const opacity = catalog.meta.modality !== "image" ? null : el("input", { type: "range", id: "opacity", min: 0.1, max: 1, step: 0.05,
    value: memory.get("opacity", "0.8"), "aria-label": "Opacity of the heat map", title: "Opacity of the heat map",
    oninput: (event) => setOpacity(event.target.value) });
  return el("div", { class: "shading" }, colourBar(record), opacity, toggle);
}

function toggleHeat() {
  const off = document.body.classList.toggle("heat-off");
  byId("heat-toggle")?.setAttribute("aria-pressed", String(!off));
}

function setOpacity(value) {
  memory.set("opacity", value);
  document.documentElement.style.setProperty("--overlay", value);
}

// A band as the scan counted it: its ends and its rows.
function intervalName(band) {
  return band.low === 0 ? `up to ${figure(band.high, 3)}` : `${figure(band.low, 3)}–${figure(band.high, 3)}`;
}

function intervalSection(record) {
  const bands = Array.from({ length: INTERVALS }, (_, band) => record.examples.filter((example) => example.interval === band));
  const counted = (record.bands ?? []).some((band) => band.rows > 0);
  if (!counted && bands.every((examples) => examples.length === 0)) return null;
  const buttons = bands.map((_, band) => el("button", { type: "button", class: "band", "aria-pressed": String(band === interval),
    onclick: () => {
      interval = band;
      const redrawn = intervalSection(record);
      byId("intervals").replaceWith(redrawn);
      redrawn.querySelectorAll(".band")[band].focus({ preventScroll: true });
    } },
  el("span", { class: "swatch", style: { "--t": String((band + 0.5) / INTERVALS) } }),
  el("b", {}, record.bands ? intervalName(record.bands[band]) : `band ${band + 1}`),
  el("span", { class: "band-rows" }, record.bands ? rowsText(record.bands[band].rows) : "")));
  const shown = bands[interval];
  return section("intervals", "Examples by interval", el("span", { class: "note" }, isSigned(record) ? "by size, either sign" : "by activation"),
    el("div", { class: "bands", role: "group", "aria-label": "Interval of the maximum activation" }, buttons),
    shown.length ? exampleList(shown, record.max) : el("p", { class: "note" }, "No example in this interval."));
}

function relatedSection(record) {
  const lists = [];
  if (record.neighbours.length) lists.push(relatedList("neighbours", "Nearest decoder directions", "cosine", record.neighbours));
  if (record.coactivation.length) lists.push(relatedList("coactivation", "Fire on the same rows", "jaccard", record.coactivation));
  if (!lists.length) return null;
  return section("related", "Related features", null, el("div", { class: lists.length > 1 ? "two" : "" }, lists));
}

function relatedList(id, title, measure, entries) {
  return el("div", { id }, el("h4", {}, title, el("span", { class: "unit" }, measure)),
    el("ol", { class: "measures related" }, entries.map((entry) => el("li", {},
      el("a", { href: `#/f/${entry.index}` }, `#${entry.index}`), previewOf(entry.index),
      bar(Math.abs(entry[measure])), el("span", { class: "value" }, figure(entry[measure]))))));
}

// What a list shows of a latent beside its number: label, thumbnail, the tokens it fires on.
function previewOf(latent) {
  const record = recordOf[latent];
  if (record < 0) return el("span", { class: "preview none" }, catalog.max[latent] === 0 ? "" : "no page");
  const thumbnail = catalog.thumbnails[record];
  const words = catalog.labels[record] ? [el("span", { class: "own-label" }, plainNodes(catalog.labels[record]))] : [];
  catalog.previews[record].forEach((token) => words.push(el("span", { class: "chip" }, tokenNodes(token, true))));
  catalog.data_labels[record].forEach((label) => words.push(el("span", { class: "data-label" }, plainNodes(label))));
  return el("span", { class: "preview" }, thumbnail ? picture(thumbnail, "") : null, words);
}

function pageless(latent) {
  const dead = catalog.max[latent] === 0;
  return [
    featureHeader(latent, null, null),
    section("hint", dead ? "Never active" : "No page yet", null,
      el("p", {}, dead ? `No row of the ${count(catalog.meta.rows)} scanned activates this latent.`
        : "This latent was scanned, but no examples were gathered for it. To make its page, run the same command with"),
      dead ? null : el("pre", {}, el("code", {}, `saekit inspect --features ${latent}`))),
  ];
}

function noSuchLatent(text) {
  return [section("hint", "No such feature", null, el("p", {}, `“${text}” is not in this dictionary: its features are 0 to `
    + `${catalog.meta.latents - 1}.`))];
}
