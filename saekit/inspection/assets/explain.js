// What every figure of the page means, said where the pointer, the keyboard or a finger is: one tip for all.

const ROW = () => (catalog.meta.modality === "image" ? "patches" : "tokens");

const WORD = () => (catalog.meta.modality === "image" ? "label" : "word");
const noCommon = () => `no common ${WORD()}`;

const MEANING = {
  score: () => "0 to 1: how much this feature is worth reading first. "
    + `Share of its examples with one ${WORD()} in common against shuffled examples, times how rare the ${WORD()} is, whether its density lies between ${catalog.meta.modality === "image" ? "0.1" : "0.01"} % and 1 %, and in how many documents it fires. `
    + "An order for reading, not a proof.",
  dead: () => "Share of latents silent on the held-out rows, which are few: a rare latent is silent there and not dead. The one to read is dead_train, in the header: the share that fired on none of the last rows of training.",
  label: () => `Automatic: the commonest ${WORD()} among the strongest rows and a sample of each interval, and in how many of them. The examples below leave out rows of the same document. Nobody has read them.`,
  raises: () => "Output token whose logit the decoder direction raises most on the direct path; given only where it stands out against random directions, with the ten strongest or by itself (one token).",
  name: () => "Your own name for this feature. It is kept in this browser only; Names at the top saves all of them to a file.",
  favorite: () => "Marks this feature in the list. Favorites and notes are kept like your names, and saved with them.",
  notBos: () => "Leaves out features of which at least half of the active rows are the first of their context: the BOS, or what takes its place.",
  density: () => `Share of the ${ROW()} scanned on which the feature is active.`,
  densityFilter: () => "How many features have which density (share of rows on which they are active), on a logarithmic axis. The two handles narrow the list.",
  max: () => "Largest activation in the scanned store, in the units of the hidden state. Shading goes from 0 to here.",
  maxSize: () => "Largest activation in the scanned store, either sign, in the units of the hidden state. Shading goes from 0 to here.",
  active: () => `Number of ${ROW()} on which the feature is not 0.`,
  hookShares: () => "How the length of the decoder row is divided between the hooks that the crosscoder writes to.",
  histogram: () => `How many ${ROW()} have which activation, of those where it is not 0. Point at a bar for its range and count.`,
  log: () => "Logarithmic count axis, so that bars of a single row can be seen (key l).",
  outputTokens: () => "The decoder direction times the unembedding: tokens whose logit the feature raises or lowers on the direct path, past all later blocks and the final norm. "
    + "A side is shown only where its ten tokens lie further from the mean logit than those of 99 % of random directions; a single token, where it does so by itself.",
  single: () => "Of the ten tokens together this side is no better than a random direction, but these stand out by themselves: each lies further from the mean logit than the strongest "
    + "of the whole vocabulary does for 99 % of random directions.",
  logit: () => "Change of this token's logit per unit of activation, on the direct path.",
  top: () => "The strongest examples, one per context or image and of different documents first. Shading is activation over the feature's maximum.",
  patchLatents: () => `The ${catalog.patches?.kept ?? ""} latents of largest size in this patch, with their activation. The bar is the activation over the latent's own maximum.`,
  logitHistogram: () => "How many tokens of the vocabulary the decoder direction raises or lowers by how much, on the direct path, on a logarithmic axis. "
    + "The marks are the ten raised most and the ten lowered most, where these stand out against random directions.",
  dataLabels: () => `Labels that the ${catalog.meta.modality === "image" ? "images" : "contexts"} with an active row have more often than all others: share of these, and lift, `
    + "which is that share over the label's share of all. Only labels of three standard deviations more than by chance, in the order of share × log lift.",
  lift: () => `How many times more often the examples have this word than all ${catalog.meta.modality === "image" ? "images" : "tokens (contexts, for a label)"} do.`,
  act: () => "Activation at the marked token or patch.",
  shading: () => "The shading of tokens and patches: from 0 to the feature's largest activation in the whole store, the same for all examples.",
  overlay: () => "Spotlight keeps the colors of patches that activate the feature and fades the others; the line goes round patches of at least half the maximum. Heat map paints the activation over a gray picture; contour draws only the line. Click a picture to enlarge it and to see what else is active in a patch.",
  intervals: () => "Rows sampled from each fifth of the range from 0 to the maximum, with the number of rows in the whole store. A feature should mean the same in the upper fifths as at the top.",
  bandRows: () => "Rows of the whole store whose activation lies in this interval.",
  neighbours: () => "Features whose decoder rows point in the most similar direction: cosine, 1 is the same direction.",
  coactivation: () => "Rows on which both features are active over rows on which either is (Jaccard index).",
  following: () => "The other feature is active on the token after a row of this one, over rows where either is so (Jaccard index). PMI is large for rare features by chance.",
  fifth: () => "The smallest and the largest activation of all rows of this group, and how many there are; the examples are a few of them.",
  median: () => `The row of median activation: of all ${ROW()} on which the feature is active, half are weaker and half are stronger.`,
  weakest: () => "A row of the weakest fifth of all its rows, drawn at random.",
  halfway: () => "A row of about half the largest activation: most rows of a feature are weaker.",
  fewLabels: () => "Of so few, even a label that all of them have is often chance: one that half of all data have is on all of 10 in 0.1 % of cases, on all of 3 in 12.5 %.",
  samples: () => "Rows that were not chosen for their size: any of its rows, each as likely as another, and three of each fifth of them, by size. A feature should mean the same in all of them.",
  tokens: () => "Of the tokens that the feature is active on, the commonest, with their share of all its rows; lift is that share over the token's share of all rows. "
    + "Each spelling counts by itself, unlike in the automatic label.",
  source: () => "Document or image that the example comes from, with its label where the data have one.",
  twins: () => "Near-duplicates of this feature, folded into it: decoder rows with a cosine of at least 0.8, or half of their strongest rows in common.",
};

// Marks an element: its tip says `text`, a sentence or a key of MEANING. `stop` makes it reachable by Tab.
function about(node, text, stop = false) {
  const sentence = MEANING[text] ? MEANING[text]() : text;
  node.dataset.about = sentence;
  node.setAttribute("aria-description", sentence);
  if (stop) { node.tabIndex = 0; node.classList.add("explained"); }
  return node;
}

function explain(node) {
  const box = node.getBoundingClientRect();
  showTip(box.left + Math.min(box.width, 240) / 2, box.top, null, node.dataset.about);
}

function listenForExplanations() {
  const of = (event) => event.target.closest?.("[data-about]");
  document.addEventListener("pointerover", (event) => { if (of(event)) explain(of(event)); });
  document.addEventListener("pointerout", (event) => { if (of(event) && !of(event).contains(event.relatedTarget)) hideTip(); });
  document.addEventListener("focusin", (event) => { if (of(event) && lastTouch === "keyboard") explain(of(event)); });
  document.addEventListener("focusout", (event) => { if (of(event)) hideTip(); });
}

const tip = byId("tip");

function showTip(x, y, strong, rest) {
  tip.replaceChildren(...(strong === null ? [] : [el("b", {}, strong)]), el("span", {}, rest));
  tip.classList.toggle("sentence", strong === null);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const above = y - height - 8;
  tip.style.left = `${Math.max(4, Math.min(innerWidth - width - 4, x - width / 2))}px`;
  tip.style.top = `${above < 4 ? y + 28 : above}px`;
}

function hideTip() {
  tip.hidden = true;
}

function forget() {
  hideTip();
  markHistogram(null);
}

// Arrows step through an example that was reached by Tab. One that was clicked leaves them to the page: previous, next feature.
// `columns`: what is read has rows of so many, for the arrows up and down. `from` says where to step from, however it was reached.
let lastTouch = "keyboard";
document.addEventListener("pointerdown", () => { lastTouch = "pointer"; }, true);
document.addEventListener("keydown", () => { lastTouch = "keyboard"; }, true);

function readByKeyboard(node, length, start, show, { columns = 0, from = null } = {}) {
  let place = null;
  const move = (to) => {
    node.querySelector(".reading")?.classList.remove("reading");
    place = Math.min(length - 1, Math.max(0, to));
    show(place).classList.add("reading");
  };
  node.addEventListener("focus", () => { if (lastTouch === "keyboard") move(start); });
  node.addEventListener("blur", () => {
    node.querySelector(".at")?.remove();
    node.querySelector(".reading")?.classList.remove("reading");
    place = null;
    forget();
  });
  node.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const at = from ? from() : place;
    if (at === null || !step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    move(at + step >= 0 && at + step < length ? at + step : at);
  });
}
