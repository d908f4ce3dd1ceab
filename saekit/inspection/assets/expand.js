// A record as a shard holds it -> the record as the page draws it. What is not in the shard is put together again: tokens from
// the contexts that all features share, edges of a histogram from equal steps. The inverse is saekit/inspection/compact.py.

// A page of before has neither labels of the data nor a distribution of logits.
function expandLabels(packed) {
  return packed && { labels: inGroups(packed[0], 4).map(([label, examples, strongest, lift]) => ({ label, examples, strongest, lift })),
    examples: packed[1], strongest: packed[2], least: packed[3] ?? 0 };
}

function expandBins(packed) {
  if (!packed) return null;
  const [low, high, ...counts] = packed;
  return { edges: allEdges([low, high], counts.length), counts };
}

const TESTED = ["raised", "lowered", "raised_chance", "lowered_chance", "raised_one", "lowered_one", "raised_one_chance", "lowered_one_chance",
  "raised_beyond", "lowered_beyond"];

// The examples whose contexts are needed, each once.
function contextsOf(packed) {
  return new Set([...packed.examples, ...packed.samples].filter(Array.isArray).map(([, example]) => example));
}

// `contexts`: example -> [tokens, document, source, label].
function expand(packed, contexts) {
  const { edges, counts, bands, ...kept } = packed;
  return {
    ...kept,
    histogram: { edges: allEdges(edges, counts.length), counts },
    bands: bands.map(([low, high, rows]) => ({ low, high, rows })),
    fifths: packed.fifths?.map(([low, high, rows]) => ({ low, high, rows })) ?? null,
    word: packed.word ? { count: packed.word[0], of: packed.word[1], lift: packed.word[2] } : null,
    neighbours: pairs(packed.neighbours).map(([index, cosine]) => ({ index, cosine })),
    coactivation: inGroups(packed.coactivation, 4).map(([index, together, jaccard, pmi]) => ({ index, together, jaccard, pmi })),
    following: inGroups(packed.following, 4).map(([index, together, jaccard, pmi]) => ({ index, together, jaccard, pmi })),
    tokens: packed.tokens && { tokens: inGroups(packed.tokens[0], 3).map(([token, rows, lift]) => ({ token, rows, lift })),
      different: packed.tokens[1], position: packed.tokens[2], first: packed.tokens[3] },
    data_labels: expandLabels(packed.data_labels ?? null),
    logit_histogram: expandBins(packed.logit_histogram ?? null),
    logits: packed.logits && Object.fromEntries(Object.entries(packed.logits)
      .map(([side, entries]) => [side, pairs(entries).map(([token, value]) => ({ token, value }))])),
    logit_test: packed.logit_test && Object.fromEntries(TESTED.map((name, at) => [name, packed.logit_test[at]])),
    score: catalog.score[packed.index] ?? null,
    examples: packed.examples.map((example) => (Array.isArray(example) ? expandExample(example, contexts) : example)),
    samples: packed.samples.map((example) => (Array.isArray(example) ? expandExample(example, contexts) : example)),
  };
}

function inGroups(flat, size) {
  return Array.from({ length: flat.length / size }, (_, at) => flat.slice(size * at, size * (at + 1)));
}

function pairs(flat) {
  return inGroups(flat, 2);
}

function allEdges(edges, bins) {
  if (edges.length > bins) return edges;
  const [low, high] = edges;
  return Array.from({ length: bins + 1 }, (_, at) => Number((low + (high - low) * at / bins).toPrecision(4)));
}

// One number says the group: a band from 0, the strongest -1, at random -2, of median size -3, a quantile from -10 down.
function groupOf(number) {
  if (number >= 0) return { group: "interval", interval: number };
  if (number > -10) return { group: { "-1": "top", "-2": "random", "-3": "median" }[number], interval: null };
  return { group: "quantile", interval: -10 - number };
}

function expandExample([number, example, position, centre, shown, act, ...flat], contexts) {
  const [tokens, document, source, label] = contexts.get(example);
  const first = position - centre;
  const all = pairs(flat);
  const values = new Array(shown).fill(0);
  all.forEach(([at, value]) => { if (at >= first && at < first + shown) values[at - first] = value; });
  return { ...groupOf(number), act, doc_id: document, example_id: example, position,
    values, source, tokens: tokens.slice(first, first + shown), centre, grid: null, image: null, label, context_values: all };
}
