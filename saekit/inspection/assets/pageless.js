// A latent whose examples are not on the page: that it has none, what is known of it all the same, and the command that makes one.

const PAGELESS_TOKENS = 4; // in a row of the list

async function openPageless(latent) {
  show(pageless(latent));
  if (catalog.max[latent] === 0) return;
  await Promise.all(Object.keys(LOOKUP_FILES).map((part) => loadLookup(part).catch(() => {})));
  if (state.latent === latent && !viewInAddress()) main.append(...knownSections(latent));
}

function pageless(latent) {
  const dead = catalog.max[latent] === 0;
  return [
    featureHeader(latent, null, null),
    section("hint", dead ? "Never active" : "No page: its examples were not gathered", null,
      el("p", {}, dead ? `No row of the ${count(catalog.meta.rows)} scanned activates this latent.`
        : "What is known of it is above and below. This command makes its page, and keeps what is here:"),
      dead ? null : commandNodes([latent])),
  ];
}

function knownSections(latent) {
  const images = catalog.meta.modality === "image";
  const of = (table, by) => (table ? wordsAt(table, latent, by) : []);
  const nearby = known.near?.get(latent) ?? [];
  return [
    shareSection("known-tokens", "Tokens it is active on", known.tokens, of(known.tokens, "both"), (word) => el("span", { class: "chip" }, tokenNodes(word, true))),
    shareSection("known-labels", `Labels of its ${images ? "images" : "contexts"}`, known.labels, of(known.labels, "nats"), labelNode),
    shareSection("known-names", "Words of its images' names", known.names, of(known.names, "nats"), labelNode),
    nearby.length ? section("related", "Related features", mapLink(latent), relatedList("neighbours", "Nearest decoder directions", "cosine", nearby)) : null,
  ].filter(Boolean);
}

function labelNode(text) {
  return el("span", { class: "data-label" }, plainNodes(text));
}

function shareSection(id, title, table, entries, nodeOf) {
  if (!entries.length) return null;
  return section(id, title, el("span", { class: "note" }, "share · lift"), el("ol", { class: "measures token-shares" }, entries.map(({ word, both, share, lift, latent }) =>
    about(el("li", {}, nodeOf(table.words[word]), bar(share), el("span", { class: "value" }, percent(share, 3)), el("span", { class: "value lift" }, `× ${figure(lift, 3)}`)),
      `${count(both)} of the ${count(table.active[latent])} in which it is active; ${figure(lift, 3)} times as common as among all.`))));
}

// Tokens (of images, labels) of a latent in the list, where they are read already.
function knownWords(latent) {
  if (known.tokens) return wordsAt(known.tokens, latent, "both").slice(0, PAGELESS_TOKENS).map(({ word }) => el("span", { class: "chip" }, tokenNodes(known.tokens.words[word], true)));
  const table = known.labels;
  return table ? wordsAt(table, latent, "nats").slice(0, PAGELESS_TOKENS).map(({ word }) => labelNode(table.words[word])) : [];
}
