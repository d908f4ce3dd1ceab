// Answers of the page on disk to token:, label: and near:, for all latents of the dictionary. Each is { order, figures, note, more,
// pending }: latents best first, what the list shows of them, what was found, how it was found, and whether a file is still read.

const NEAREST = { neighbours: "cosine", coactivation: "Jaccard", following: "Jaccard, next token" };
let nearest = null; // the answer to `near:` from a record, once it is there

// `again` is called when more is there to answer with; null: not such a question.
function answerFromPage(raw, again) {
  const asked = understood(raw, false);
  if (asked.kind === "token") return onToken(asked.value, again);
  if (asked.kind === "label") return ofLabel(asked.value.toLowerCase(), again);
  if (asked.kind === "near") return nearTo(asked.value, again);
  if (asked.kind === "text") return { order: [], note: "a text goes through the model: saekit features --text, or saekit serve" };
  if (asked.kind === "explained") return { order: [], note: "descriptions are not on this page: saekit features --explained, or saekit serve" };
  if (asked.kind === "wrong") return { order: [], note: asked.problem };
  return null;
}

function reading(part, what, again) {
  loadLookup(part).then(again, (error) => { byId("found").textContent = error.message; });
  return { order: [], note: `reading ${what}`, pending: true };
}

function onToken(token, again) {
  if (!hasLookup("tokens")) return { order: [], note: catalog.meta.modality === "image" ? "images have no tokens; label: asks for their labels" : "a dense code has no tokens of its own" };
  if (!known.tokens) return reading("tokens", "the tokens", again);
  const word = known.tokens.at.get(token);
  if (word === undefined) return { order: [], note: noSuchToken(token) };
  const { first, best } = catalog.lookup;
  return answerOf(latentsAt(known.tokens, word), `on “${tokenText(token)}” (${rowsText(known.tokens.total[word])})`,
    `Those that tell most about the token first, with the share of a latent's rows that are on it. The page keeps the ${best} best of each token, and the latents that have it among `
    + `their ${first} commonest tokens. Chance levels and other orders: saekit features --token.`);
}

function noSuchToken(token) {
  const word = token.trim().toLowerCase();
  const alike = known.tokens.words.filter((_, number) => known.tokens.lower[number].trim() === word).slice(0, 3);
  return `no token is “${tokenText(token)}”${alike.length ? `; blanks and capitals count: ${alike.map((each) => `“${tokenText(each)}”`).join(", ")}` : ""}`;
}

function answerOf(entries, note, more) {
  return { order: entries.map(({ latent }) => latent), figures: new Map(entries.map(({ latent, share }) => [latent, percent(share, 2)])), note, more };
}

// The label itself; else those with such a word in them ("animals": animal-bird, animal-bug). Of images also the words of their names.
function ofLabel(label, again) {
  if (!hasLookup("labels")) return ofShownLabels(label);
  if (!known.labels && !known.names) return reading("labels", "the labels", again);
  const tables = [known.labels, known.names].filter(Boolean);
  const pick = (has) => tables.flatMap((table) => [...table.lower.keys()].filter((word) => has(table.lower[word])).map((word) => [table, word]));
  let chosen = pick((text) => text === label);
  if (!chosen.length) chosen = pick((text) => [label, label.replace(/s$/, "")].some((form) => form.length > 2 && matchLevel(text, form) >= BEGINNING));
  const found = new Map(); // latent -> its best entry
  for (const [table, word] of chosen) {
    for (const entry of latentsAt(table, word)) if (!(found.get(entry.latent)?.nats >= entry.nats)) found.set(entry.latent, entry);
  }
  const entries = [...found.values()].sort((a, b) => b.nats - a.nats || a.latent - b.latent);
  const what = catalog.meta.modality === "image" ? "images" : "contexts";
  const written = chosen.map(([table, word]) => `“${table.words[word]}”`);
  const answer = answerOf(entries, chosen.length ? `with the label ${someOf(written)}` : `no label is “${label}”`,
    `Those that tell most about the label first, with the share of a latent's ${what} that have it. The page keeps the ${catalog.lookup.best_of_label} best of each label, and the latents that tell `
    + "more about it than about most others. AUROC and chance levels: saekit features --label.");
  answer.order.push(...labelled(label).filter((latent) => !found.has(latent)));
  return answer;
}

function someOf(texts) {
  return texts.length > 4 ? `${texts.slice(0, 3).join(", ")} and ${texts.length - 3} more` : texts.join(", ");
}

// Latents with this automatic label.
function labelled(label) {
  const found = [];
  catalog.meanings.forEach((meaning, latent) => {
    if (meaning && (meaning[0] === "label" || meaning[0] === "name") && meaning[1].toLowerCase() === label) found.push(latent);
  });
  return found;
}

// A dense code is active everywhere: its labels are those of the strongest examples, of latents with a page.
function ofShownLabels(label) {
  const order = catalog.records.filter((_, record) => catalog.data_labels[record].some((each) => each.toLowerCase() === label));
  return { order, note: `with the label “${label}” among the strongest examples, of the ${count(catalog.records.length)} with a page` };
}

// In the order of its record: nearest decoder rows, then those that fire on the same rows, then on the next token. Without a page
// the nearest rows.
function nearTo(latent, again) {
  if (!(latent < catalog.meta.latents)) return { order: [], note: `there is no latent ${latent}` };
  if (catalog.max[latent] === 0) return { order: [], note: `#${latent} is never active` };
  if (recordOf[latent] < 0) return nearWithoutPage(latent, again);
  if (nearest?.latent !== latent) {
    loadRecord(latent).then((record) => { nearest = nearestOf(record); again(); }).catch(() => {});
    return { order: [], note: `reading #${latent}`, pending: true };
  }
  return nearest;
}

function nearWithoutPage(latent, again) {
  if (!hasLookup("near")) return { order: [], note: `#${latent} has no page to say which are near it; saekit features --near ${latent} does` };
  if (!known.near) return reading("near", "the nearest decoder rows", again);
  const entries = known.near.get(latent) ?? [];
  return { order: entries.map(({ index }) => index), figures: new Map(entries.map(({ index, cosine }) => [index, `${figure(cosine, 3)} cosine`])), note: `near #${latent}` };
}

function nearestOf(record) {
  const figures = new Map();
  for (const [name, measure] of Object.entries(NEAREST)) {
    for (const entry of record[name] ?? []) {
      const value = entry[measure === "cosine" ? "cosine" : "jaccard"];
      if (!figures.has(entry.index)) figures.set(entry.index, `${figure(value, 3)} ${measure}`);
    }
  }
  return { latent: record.index, order: [...figures.keys()], figures, note: `near #${record.index}` };
}
