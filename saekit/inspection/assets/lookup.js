// What the page knows of all latents, also of those without a page: the tokens and labels that they are active on and the nearest
// decoder rows, from the files in lookup/ (saekit/inspection/lookup.py). Each is read when it is first needed.

const LOOKUP_FILES = { tokens: 0, labels: 1, near: 2 };
const known = { tokens: null, labels: null, names: null, near: null };
const lookups = new Map(); // part -> promise

function hasLookup(part) {
  return Boolean(catalog.lookup?.[part]);
}

function loadLookup(part) {
  if (!hasLookup(part)) return Promise.resolve();
  if (!lookups.has(part)) {
    const number = LOOKUP_FILES[part];
    const read = loadFile("lookup", number).then((packed) => {
      files.delete(sourceOf("lookup", number)); // what was made of it stays
      takeLookup(part, packed);
    });
    read.catch(() => lookups.delete(part));
    lookups.set(part, read);
  }
  return lookups.get(part);
}

function takeLookup(part, packed) {
  if (part === "tokens") known.tokens = wordTable(packed);
  else if (part === "near") known.near = nearestRows(packed);
  else for (const name of ["labels", "names"]) known[name] = packed[name] && wordTable(packed[name]);
}

// { places, active, words, lower, total, at: word -> its number, first: of each word the first of its pairs, latents, both }
function wordTable({ places, active, words, total, pairs, latent, both }) {
  const first = new Int32Array(words.length + 1);
  pairs.forEach((n, word) => { first[word + 1] = first[word] + n; });
  const latents = Int32Array.from(latent);
  for (let word = 0; word < words.length; word += 1) {
    for (let pair = first[word] + 1; pair < first[word + 1]; pair += 1) latents[pair] += latents[pair - 1];
  }
  return { places, active, words, lower: words.map((word) => word.toLowerCase()), total, first, latents, both: Int32Array.from(both),
    at: new Map(words.map((word, number) => [word, number])), ofLatent: null };
}

function nearestRows({ latents, counts, near, cosine }) {
  let first = 0;
  return new Map(latents.map((latent, place) => {
    const nearest = near.slice(first, first + counts[place]).map((index, at) => ({ index, cosine: cosine[first + at] / 1000 }));
    first += counts[place];
    return [latent, nearest];
  }));
}

// Entropy of "active" plus that of the word less that of both (saekit/indexing/association.py): in nats, and over that of the word.
function information(both, active, target, total) {
  const entropy = (counts) => counts.reduce((sum, n) => (n > 0 ? sum - (n / total) * Math.log(n / total) : sum), 0);
  const ofTarget = entropy([target, total - target]);
  const nats = Math.max(0, entropy([active, total - active]) + ofTarget - entropy([both, active - both, target - both, total - active - target + both]));
  return { nats, told: ofTarget > 0 ? nats / ofTarget : 0 };
}

// { latent, word, both, share of the latent's places, lift, nats, told }
function pairOf(table, word, pair) {
  const latent = table.latents[pair];
  const [both, active, total] = [table.both[pair], table.active[latent], table.total[word]];
  return { latent, word, both, share: both / active, lift: (both / active) * (table.places / total), ...information(both, active, total, table.places) };
}

// Latents that are active at a word more often than elsewhere, those that tell most about it first: the order of `saekit features`.
function latentsAt(table, word) {
  const found = [];
  for (let pair = table.first[word]; pair < table.first[word + 1]; pair += 1) {
    const entry = pairOf(table, word, pair);
    if (entry.both * table.places > table.active[entry.latent] * table.total[word]) found.push(entry);
  }
  return found.sort((a, b) => b.told - a.told || a.latent - b.latent);
}

// The words of a latent: the commonest first (`by` both), or those that share most information with it (nats).
function wordsAt(table, latent, by) {
  table.ofLatent ??= pairsOfLatents(table);
  const { first, pairs, words } = table.ofLatent;
  const found = [];
  for (let at = first[latent]; at < first[latent + 1]; at += 1) found.push(pairOf(table, words[at], pairs[at]));
  return found.sort((a, b) => b[by] - a[by] || b.nats - a.nats);
}

function pairsOfLatents(table) {
  const first = new Int32Array(table.active.length + 1);
  for (const latent of table.latents) first[latent + 1] += 1;
  for (let latent = 0; latent < table.active.length; latent += 1) first[latent + 1] += first[latent];
  const next = first.slice();
  const pairs = new Int32Array(table.latents.length);
  const words = new Int32Array(table.latents.length);
  for (let word = 0; word < table.words.length; word += 1) {
    for (let pair = table.first[word]; pair < table.first[word + 1]; pair += 1) {
      const at = next[table.latents[pair]]++;
      pairs[at] = pair;
      words[at] = word;
    }
  }
  return { first, pairs, words };
}
