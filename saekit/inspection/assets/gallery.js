// The page opens here: the features that are worth reading first, each with what it fires on and a few of its examples.

const CARDS = 10; // where the page has no gallery of its own: the first of the list
const CARD_STRONGEST = 2; // then the row of median activation, and one of the weakest fifth
const CARD_SIDE = 7; // tokens on either side of the strongest

function isGallery() {
  return latentInAddress() === null && viewInAddress() === null && noSuchAddress() === null;
}

async function openGallery() {
  const shown = catalog.gallery.length ? catalog.gallery
    : view.order.filter((latent) => recordOf[latent] >= 0).slice(0, CARDS).map((index) => ({ index, twins: [] }));
  if (!shown.length) { show([section("hint", "No feature has a page", null, el("p", {}, "The list holds all latents."))]); return; }
  main.setAttribute("aria-busy", "true");
  let records;
  try {
    records = await Promise.all(shown.map(({ index }) => loadRecord(index)));
  } catch (error) {
    show([section("hint", "Cannot show it", null, el("p", {}, error.message))]);
    return;
  }
  if (!isGallery()) return; // another was asked for meanwhile
  show([galleryHeader(shown), el("ol", { class: "gallery", id: "gallery" }, records.map((record, place) => galleryCard(record, shown[place].twins)))]);
}

function galleryHeader(shown) {
  const scored = catalog.score.some((score) => score !== null);
  const many = shown.length === 1 ? "One feature" : `${TITLE_NUMBERS[shown.length] ?? shown.length} features`;
  return el("header", { class: "gallery-header" },
    el("h2", { id: "gallery-title", tabindex: "-1" }, scored ? `${many} worth reading` : many),
    el("p", { class: "lead" }, scored
      ? ["In the order of an ", about(el("span", {}, "automatic score"), "score", true), `: how often the examples of a feature have one ${WORD()} in common, against shuffled examples. `
        + "Near-duplicates are folded, and each meaning comes once. The last two examples of a card are its row of median activation and one of its weakest fifth."]
      : "Those with the largest activations. There is no score: a dense code has none, nor have images with neither label nor name."),
    catalog.meta.modality === "image" ? el("div", { class: "shading" }, overlayButtons()) : null);
}

const TITLE_NUMBERS = [null, "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten"];

function galleryCard(record, twins) {
  const images = catalog.meta.modality === "image";
  const examples = cardExamples(record).map(([example, kind]) => (images ? cardImage : cardText)(example, record.max, kind));
  const folded = twins.length ? about(el("span", {}, `+ ${count(twins.length)} near-duplicate${twins.length === 1 ? "" : "s"}`), "twins") : null;
  return el("li", { class: "card" },
    el("a", { class: "card-link", href: `#/f/${record.index}`, "aria-label": `Open feature ${record.index}` }),
    el("div", { class: "card-head" }, el("span", { class: "card-number" }, `#${record.index}`), el("h3", {}, titleNodes(record.index))),
    el("ol", { class: images ? "card-images" : "card-texts" }, examples),
    el("p", { class: "card-facts" }, meaningCount(record.index), raisesNodes(record),
      record.density === null ? null : about(el("span", {}, `density ${shortPercent(record.density)}`), "density"),
      record.score === null || record.score === undefined ? null : about(el("span", {}, `score ${figure(record.score, 2)}`), "score"), folded));
}

// [example, kind]: the strongest, then the median of all rows and one of the weakest, so that what holds at the top only is seen at once.
// Half of the maximum is above most rows: it stands in only where there is no index of all rows (a dense code), and is called so.
function cardExamples(record) {
  const top = record.examples.filter((example) => example.group === "top").slice(0, CARD_STRONGEST);
  const fromHalf = (example) => Math.abs(Math.abs(example.act) / record.max - 0.5);
  const found = [[record.samples.find(({ group }) => group === "median"), "median"],
    [record.samples.find(({ group, interval: fifth }) => group === "quantile" && fifth === 0), "weakest"]];
  if (!found[0][0]) found[0] = [record.examples.filter((example) => example.interval !== null).sort((a, b) => fromHalf(a) - fromHalf(b))[0], "halfway"];
  const place = (example) => `${example.example_id} ${example.position}`;
  const known = new Set(top.map(place));
  const rest = found.filter(([example]) => example && !known.has(place(example)) && known.add(place(example)));
  return [...top.map((example) => [example, null]), ...rest];
}

const CARD_KINDS = { median: "median row", weakest: "weakest fifth", halfway: "half of its maximum" };

function kindOfCard(kind) {
  return kind && about(el("span", { class: "card-kind" }, CARD_KINDS[kind]), kind);
}

function cardText(example, max, kind) {
  const from = Math.max(0, example.centre - CARD_SIDE);
  const to = Math.min(example.tokens.length, example.centre + CARD_SIDE + 1);
  const first = example.position - example.centre + from;
  const line = tokenLine(example.tokens.slice(from, to), example.values.slice(from, to), example.centre - from, first, max, `Example, activation ${figure(example.act)}`);
  line.tabIndex = -1;
  return el("li", {}, kindOfCard(kind), el("span", { class: "act" }, figure(example.act, 3)), line);
}

function cardImage(example, max, kind) {
  const frame = imageExample(example, max).querySelector(".frame");
  frame.tabIndex = -1;
  frame.setAttribute("role", "img"); // the card is the link
  return el("li", {}, frame, kindOfCard(kind));
}

// --- automatic labels -----------------------------------------------------------------------------------------------

const KIND = {
  text: { token: "on", next: "before", previous: "after", label: "in" },
  image: { label: "", name: "" },
};

function meaningOf(latent) {
  const meaning = catalog.meanings[latent];
  return meaning ? { kind: meaning[0], text: meaning[1], count: meaning[2], of: meaning[3], lift: meaning[4] ?? null } : null;
}

// "on import", "before the": in words and one chip.
function meaningNodes(meaning) {
  const word = KIND[catalog.meta.modality]?.[meaning.kind] ?? "";
  return [word ? el("span", { class: "kind" }, `${word} `) : null,
    meaning.kind === "label" || meaning.kind === "name" ? el("span", { class: "data-label" }, plainNodes(meaning.text)) : el("span", { class: "chip" }, tokenNodes(meaning.text, true))];
}

// What a feature is called: the reader's name, an explanation, else the automatic label.
function titleNodes(latent) {
  const own = names.get(latent) ?? (recordOf[latent] >= 0 ? catalog.labels[recordOf[latent]] : null);
  if (own) return [el("span", { class: "own-label" }, plainNodes(own))];
  const meaning = meaningOf(latent);
  return meaning ? [el("span", { class: "automatic" }, meaningNodes(meaning))] : [el("span", { class: "kind" }, noCommon())];
}

function meaningCount(latent) {
  const meaning = meaningOf(latent);
  return meaning && about(el("span", { class: "meaning-count" }, `automatic: ${meaning.count} of ${meaning.of} examples${liftText(meaning)}`), "label");
}

// ", 7.8 × chance": against the word's share of all images, contexts or tokens.
function liftText(meaning) {
  return meaning.lift === null ? "" : `, ${figure(meaning.lift, 2)} × chance`;
}

function raisesNodes(record) {
  const single = standsOutSingly(record, "raised");
  if (!standsOut(record, "raised") && !single) return null;
  return about(el("span", { class: "raises" }, single === 1 ? "raises one token: " : "raises ", el("span", { class: "chip" }, tokenNodes(record.logits.top[0].token, true))), "raises");
}
