// The page opens here: the features that are worth reading first, each with what it fires on and a few of its examples.

const CARDS = 10; // where the page has no gallery of its own: the first of the list
const CARD_TEXTS = [2, 1]; // strongest, and of the middle of the range
const CARD_IMAGES = [3, 1];
const CARD_SIDE = 7; // tokens on either side of the strongest

function isGallery() {
  return latentInAddress() === null && viewInAddress() === null;
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
        + "Near-duplicates are folded, and each meaning comes once. The last of a card's examples "
        + `${catalog.meta.modality === "image" ? "are" : "is"} from the middle of its range.`]
      : "Those with the largest activations. There is no score: a dense code has none, nor have images with neither label nor name."),
    catalog.meta.modality === "image" ? el("div", { class: "shading" }, overlayButtons()) : null);
}

const TITLE_NUMBERS = [null, "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten"];

function galleryCard(record, twins) {
  const images = catalog.meta.modality === "image";
  const examples = cardExamples(record, images ? CARD_IMAGES : CARD_TEXTS).map((example) => (images ? cardImage : cardText)(example, record.max));
  const folded = twins.length ? about(el("span", {}, `+ ${count(twins.length)} near-duplicate${twins.length === 1 ? "" : "s"}`), "twins") : null;
  return el("li", { class: "card" },
    el("a", { class: "card-link", href: `#/f/${record.index}`, "aria-label": `Open feature ${record.index}` }),
    el("div", { class: "card-head" }, el("span", { class: "card-number" }, `#${record.index}`), el("h3", {}, titleNodes(record.index))),
    el("ol", { class: images ? "card-images" : "card-texts" }, examples),
    el("p", { class: "card-facts" }, meaningCount(record.index), raisesNodes(record),
      record.density === null ? null : about(el("span", {}, `density ${shortPercent(record.density)}`), "density"),
      record.score === null || record.score === undefined ? null : about(el("span", {}, `score ${figure(record.score, 2)}`), "score"), folded));
}

// The strongest, then some of the middle: what holds at the top only is seen at once.
function cardExamples(record, [strongest, middling]) {
  const top = record.examples.filter((example) => example.group === "top");
  const middle = record.examples.filter((example) => example.interval !== null)
    .sort((a, b) => Math.abs(Math.abs(a.act) / record.max - 0.5) - Math.abs(Math.abs(b.act) / record.max - 0.5)).slice(0, middling);
  return [...top.slice(0, strongest + middling - middle.length), ...middle];
}

function cardText(example, max) {
  const from = Math.max(0, example.centre - CARD_SIDE);
  const to = Math.min(example.tokens.length, example.centre + CARD_SIDE + 1);
  const first = example.position - example.centre + from;
  const line = tokenLine(example.tokens.slice(from, to), example.values.slice(from, to), example.centre - from, first, max, `Example, activation ${figure(example.act)}`);
  line.tabIndex = -1;
  return el("li", {}, el("span", { class: "act" }, figure(example.act, 3)), line);
}

function cardImage(example, max) {
  const frame = imageExample(example, max).querySelector(".frame");
  frame.tabIndex = -1;
  frame.setAttribute("role", "img"); // the card is the link
  return el("li", {}, frame);
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
  if (!standsOut(record, "raised")) return null;
  return about(el("span", { class: "raises" }, "raises ", el("span", { class: "chip" }, tokenNodes(record.logits.top[0].token, true))), "raises");
}
