// A record as a shard holds it -> the record as the page draws it. What is not in the shard is put together again: tokens from
// the contexts that all features share, edges of a histogram from equal steps. The inverse is saekit/inspection/compact.py.

const TESTED = ["raised", "lowered", "raised_chance", "lowered_chance"];

// The examples whose contexts are needed, each once.
function contextsOf(packed) {
  return new Set(packed.examples.filter(Array.isArray).map(([, example]) => example));
}

// `contexts`: example -> [tokens, document, source, label].
function expand(packed, contexts) {
  const { edges, counts, bands, ...kept } = packed;
  return {
    ...kept,
    histogram: { edges: allEdges(edges, counts.length), counts },
    bands: bands.map(([low, high, rows]) => ({ low, high, rows })),
    neighbours: pairs(packed.neighbours).map(([index, cosine]) => ({ index, cosine })),
    coactivation: pairs(packed.coactivation).map(([index, jaccard]) => ({ index, jaccard })),
    logits: packed.logits && Object.fromEntries(Object.entries(packed.logits)
      .map(([side, entries]) => [side, pairs(entries).map(([token, value]) => ({ token, value }))])),
    logit_test: packed.logit_test && Object.fromEntries(TESTED.map((name, at) => [name, packed.logit_test[at]])),
    score: catalog.score[packed.index] ?? null,
    examples: packed.examples.map((example) => (Array.isArray(example) ? expandExample(example, contexts) : example)),
  };
}

function pairs(flat) {
  return Array.from({ length: flat.length / 2 }, (_, at) => [flat[2 * at], flat[2 * at + 1]]);
}

function allEdges(edges, bins) {
  if (edges.length > bins) return edges;
  const [low, high] = edges;
  return Array.from({ length: bins + 1 }, (_, at) => Number((low + (high - low) * at / bins).toPrecision(4)));
}

function expandExample([interval, example, position, centre, shown, act, ...flat], contexts) {
  const [tokens, document, source, label] = contexts.get(example);
  const first = position - centre;
  const all = pairs(flat);
  const values = new Array(shown).fill(0);
  all.forEach(([at, value]) => { if (at >= first && at < first + shown) values[at - first] = value; });
  return { group: interval < 0 ? "top" : "interval", interval: interval < 0 ? null : interval, act, doc_id: document, example_id: example, position,
    values, source, tokens: tokens.slice(first, first + shown), centre, grid: null, image: null, label, context_values: all };
}
