// What a search box is asked: a number, words, or one of the questions of `saekit features`. The page on disk answers from its
// own data; the local server's page sends it on.

const PREFIX = /^\s*(token|label|near|explained|text):(.*)$/s;
const VERSUS = /^(.+?)\s+versus:\s*(.+)$/s;
const QUOTED = /^\s*(?:"(.*)"|'(.*)'|“(.*)”)\s*$/s;

// {kind: none | number | words | token | label | near | explained | text, value, versus}. Blanks count in a token: "token: file" is the token
// " file", as are " file" with its blank and "' file'" in quotes. `sentences`: two words or more are a text, for the model to read.
function understood(raw, sentences) {
  const prefixed = PREFIX.exec(raw);
  if (prefixed) return ofPrefix(prefixed[1], prefixed[2]);
  const quoted = QUOTED.exec(raw);
  if (quoted) return { kind: "token", value: quoted[1] ?? quoted[2] ?? quoted[3] };
  const words = raw.trim();
  if (words === "") return { kind: "none", value: "" };
  if (/^#?\d+$/.test(words)) return { kind: "number", value: Number(words.replace("#", "")) };
  if (/^ \S+$/.test(raw)) return { kind: "token", value: raw };
  return sentences && /\s/.test(words) ? ofText(words) : { kind: "words", value: words };
}

function ofPrefix(kind, rest) {
  const quoted = QUOTED.exec(rest);
  if (kind === "token") return { kind, value: quoted ? quoted[1] ?? quoted[2] ?? quoted[3] : rest };
  const value = rest.trim();
  if (value === "") return { kind: "none", value };
  if (kind === "text") return ofText(value);
  if (kind !== "near") return { kind, value };
  const latent = /^#?(\d+)$/.exec(value);
  return latent ? { kind, value: Number(latent[1]) } : { kind: "wrong", value, problem: `near: takes the number of a latent, not “${value}”` };
}

function ofText(words) {
  const [, text, versus] = VERSUS.exec(words) ?? [null, words, null];
  return { kind: "text", value: text, versus };
}

// --- the page on disk -----------------------------------------------------------------------------------------------

const NEAREST = { neighbours: "cosine", coactivation: "Jaccard", following: "Jaccard, next token" };
let nearest = null; // {latent, order, figures, note}: the record of `near:`, once it is there

// {order, figures, note} of a question, `again` being called when more is there to answer with; null: not such a question.
function answerFromPage(raw, again) {
  const asked = understood(raw, false);
  if (asked.kind === "token") return onToken(asked.value, again);
  if (asked.kind === "label") return ofLabel(asked.value.toLowerCase());
  if (asked.kind === "near") return nearTo(asked.value, again);
  if (asked.kind === "explained") return { order: [], note: "saekit features --explained asks this" };
  if (asked.kind === "wrong") return { order: [], note: asked.problem };
  return null;
}

function onToken(token, again) {
  if (!words) {
    loadWords().then(again).catch(() => {});
    return { order: [], note: "reading the tokens" };
  }
  const entry = words.find(([, , written]) => written === token);
  return { order: entry?.[1] ?? [], note: `active most often on “${tokenText(token)}”`, asked: "paged", verb: "saekit features --token" };
}

function ofLabel(label) {
  const order = [];
  for (let latent = 0; latent < catalog.meta.latents; latent += 1) {
    const [kind, text] = catalog.meanings[latent] ?? [];
    const named = (kind === "label" || kind === "name") && text.toLowerCase() === label;
    const seen = recordOf[latent] >= 0 && catalog.data_labels[recordOf[latent]].some((each) => each.toLowerCase() === label);
    if (named || seen) order.push(latent);
  }
  return { order, note: `with the label “${label}” among the strongest examples`, asked: "named", verb: "saekit features --label" };
}

// In the order of its record: nearest decoder rows, then those that fire on the same rows, then on the next token.
function nearTo(latent, again) {
  if (!(latent < catalog.meta.latents)) return { order: [], note: `there is no latent ${latent}` };
  if (recordOf[latent] < 0) return { order: [], note: `#${latent} has no page to say which are near it` };
  if (nearest?.latent !== latent) {
    loadRecord(latent).then((record) => { nearest = nearestOf(record); again(); }).catch(() => {});
    return { order: [], note: `reading #${latent}` };
  }
  return nearest;
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
