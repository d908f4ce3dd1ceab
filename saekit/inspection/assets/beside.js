// Another dictionary beside this one: the other's most similar latents on a feature's page, two latents side by side, and the
// figures of both as a whole. Written by saekit/inspection/beside_page.py.

const MATCHES_SHOWN = 5; // of each kind
let otherList = null; // of the other: { density, max, score, meanings, records, labels, previews, data_labels, thumbnails, recordOf }

async function loadOther() {
  if (otherList) return;
  const listed = await loadFile("other", 0);
  listed.recordOf = new Map(listed.records.map((latent, number) => [latent, number]));
  otherList = listed;
}

// [{ index, cosine, together, jaccard, correlation }] by cosine, or null for a latent without a page.
async function loadMatches(latent) {
  const each = catalog.beside.each_file;
  const flat = (await loadFile("matches", Math.floor(latent / each)))[latent % each];
  return flat && inGroups(flat, 5).map(([index, cosine, together, jaccard, correlation]) => ({ index, cosine, together, jaccard, correlation }));
}

async function loadOtherRecord(latent) {
  const number = otherList.recordOf.get(latent);
  if (number === undefined) return null;
  const packed = (await loadFile("beside", Math.floor(number / catalog.shard_records)))[number % catalog.shard_records];
  const needed = [...contextsOf(packed)];
  const contexts = await Promise.all(needed.map(contextEntry));
  return { ...expand(packed, new Map(needed.map((example, at) => [example, contexts[at]]))), score: otherList.score[latent] ?? null };
}

// --- on the page of a feature ------------------------------------------------------------------------------------------

function besideSection(record) {
  if (!catalog.beside || record.max === 0) return null;
  const box = el("div", { "aria-busy": "true" });
  const { name, kind } = catalog.beside;
  Promise.all([loadMatches(record.index), loadOther()])
    .then(([matches]) => box.replaceChildren(...matchLists(record.index, matches ?? [])))
    .catch((error) => box.replaceChildren(el("p", { class: "note" }, error.message)))
    .finally(() => box.removeAttribute("aria-busy"));
  return section("beside", `Similar latents of ${name}`, kind === name ? null : el("span", { class: "note" }, kind), box);
}

function matchLists(latent, matches) {
  if (!matches.length) return [el("p", { class: "note" }, "The other dictionary has no latent that fires.")];
  const { partner, chance } = catalog.beside;
  const lists = [matchList("by-cosine", latent, matches, "cosine")];
  const onRows = matches.filter(({ correlation, together }) => correlation !== null && together >= 3);
  if (onRows.length) lists.push(matchList("by-rows", latent, onRows, "correlation"));
  const best = matches[0].cosine;
  const verdict = best >= partner ? null
    : el("p", { class: "note", id: "no-partner" }, `No partner: its best cosine, ${figure(best)}, is below ${partner}. By chance 99 % of latents stay below ${figure(chance[0])}.`);
  return [verdict, el("div", { class: "two" }, lists)].filter(Boolean);
}

const MATCH_TITLE = { cosine: "Nearest decoder directions", correlation: "Fire on the same rows" };
const MATCH_MEANING = {
  cosine: () => "Cosine of this latent's decoder row with those of the other dictionary. A click shows both latents' examples.",
  correlation: () => `Pearson correlation of the activations over all ${count(catalog.meta.rows)} rows, among latents that are active together on at least three.`
    + (typeof catalog.beside.correlation_chance === "number" ? ` With the other's rows moved on by half the store, 99 % of latents stay below ${figure(catalog.beside.correlation_chance)}.` : ""),
};

function matchList(id, latent, matches, measure) {
  const shown = [...matches].sort((a, b) => b[measure] - a[measure]).slice(0, MATCHES_SHOWN);
  return el("div", { id }, about(el("h4", {}, el("span", {}, MATCH_TITLE[measure]), el("span", { class: "unit" }, measure)), MATCH_MEANING[measure](), true),
    el("ol", { class: "measures related" }, shown.map((match) => about(el("li", {},
      el("a", { href: `#/beside/${latent}/${match.index}`, "aria-label": `Latent ${match.index} of ${catalog.beside.name} beside ${latent}` }, `#${match.index}`),
      otherPreview(match.index), bar(Math.max(0, match[measure])), el("span", { class: "value" }, figure(match[measure]))), pairText(match)))));
}

function pairText({ cosine, together, jaccard, correlation }) {
  const rowsHere = together === null ? "Without an index of both there are no figures of rows." : `${rowsText(together)} together, Jaccard ${figure(jaccard)}, correlation ${figure(correlation)}.`;
  return `Cosine ${figure(cosine)}. ${rowsHere}`;
}

// What a list shows of a latent of the other dictionary.
function otherPreview(latent) {
  const meaning = otherMeaning(latent);
  const number = otherList.recordOf.get(latent);
  const words = meaning ? [el("span", { class: "automatic" }, meaningNodes(meaning))] : [];
  const common = meaning && meaning.text.trim().toLowerCase();
  otherList.previews[number]?.filter((token) => token.trim().toLowerCase() !== common).forEach((token) => words.push(el("span", { class: "chip" }, tokenNodes(token, true))));
  if (!words.length) otherList.data_labels[number]?.forEach((label) => words.push(el("span", { class: "data-label" }, plainNodes(label))));
  const thumbnail = otherList.thumbnails[number];
  return el("span", { class: "preview" }, thumbnail ? picture(thumbnail, "") : null, words);
}

function otherMeaning(latent) {
  const meaning = otherList.meanings[latent];
  return meaning ? { kind: meaning[0], text: meaning[1], count: meaning[2], of: meaning[3] } : null;
}

// --- two latents side by side ------------------------------------------------------------------------------------------

// `other` is null for the best match.
async function openPair(latent, other) {
  main.setAttribute("aria-busy", "true");
  try {
    await loadOther();
    const matches = recordOf[latent] < 0 ? null : await loadMatches(latent);
    const match = (matches ?? []).find(({ index }) => other === null || index === other);
    const records = match && await Promise.all([loadRecord(latent), loadOtherRecord(match.index)]);
    const now = viewInAddress();
    if (now?.latent !== latent || now?.other !== other) return; // another was asked for meanwhile
    if (!match || records.includes(null)) { show([other === null ? noMatches(latent) : noSuchPair(latent, other)]); return; }
    show([pairHeader(latent, match, matches), el("div", { class: "beside-columns" }, pairColumn(records[0], catalog, "own"), pairColumn(records[1], otherList, "other"))]);
  } catch (error) {
    show([section("hint", "Cannot show it", null, el("p", {}, error.message))]);
  }
}

function noSuchPair(latent, other) {
  return section("hint", "Not a pair of this page", null, el("p", {}, `Latent ${other} of ${catalog.beside.name} is not among the matches of feature ${latent}. `,
    el("a", { href: `#/f/${latent}` }, `Open feature ${latent}`)));
}

function noMatches(latent) {
  const dead = catalog.max[latent] === 0;
  return section("hint", "No matches", null, el("p", {}, dead ? `Feature ${latent} does not fire, so it is not matched. ` : `Feature ${latent} has no page, and matches are listed of those that have one. `,
    el("a", { href: `#/f/${latent}` }, `Open feature ${latent}`)), dead || recordOf[latent] >= 0 ? null : commandNodes([latent]));
}

function pairHeader(latent, match, matches) {
  const figureOf = (id, name, value) => (value === null ? null : el("div", {}, el("dt", {}, name), el("dd", { id }, value)));
  return el("header", { class: "feature-header" },
    el("div", { class: "identity" }, el("h2", { id: "pair", tabindex: "-1" }, el("a", { href: `#/f/${latent}` }, `#${latent}`), el("span", { class: "hash" }, " beside "), `#${match.index}`)),
    el("dl", { class: "stats" }, figureOf("pair-cosine", "Cosine of decoder rows", figure(match.cosine)),
      figureOf("pair-correlation", "Correlation of activations", match.correlation === null ? null : figure(match.correlation)),
      figureOf("pair-jaccard", "Jaccard", match.jaccard === null ? null : figure(match.jaccard)), figureOf("pair-together", "Active together", match.together === null ? null : rowsText(match.together)),
      figureOf("pair-seeds", "Seeds", about(el("span", {}, seedsText()), trainedText()))),
    el("nav", { class: "pair-links", "aria-label": "Matches of this latent" }, el("span", { class: "note" }, "Matches"), matches.map(({ index }) =>
      el("a", { class: "button small", href: `#/beside/${latent}/${index}`, "aria-current": index === match.index ? "true" : null }, `#${index}`))));
}

function pairColumn(record, listed, side) {
  const name = side === "own" ? catalog.meta.checkpoint : catalog.beside.name;
  const meaning = side === "own" ? meaningOf(record.index) : otherMeaning(record.index);
  const examples = record.examples.filter((example) => example.group === "top");
  const density = listed.density[record.index];
  const facts = [density === null ? null : `density ${percent(density)}`, `max ${figure(listed.max[record.index])}`, record.score === null ? null : `score ${figure(record.score, 2)}`];
  return el("section", { id: `pair-${side}`, "aria-labelledby": `pair-${side}-title` },
    el("h3", { id: `pair-${side}-title` }, `#${record.index}`, el("span", { class: "note" }, ` ${name}`)),
    el("p", { class: "pair-label" }, meaning ? meaningNodes(meaning) : el("span", { class: "kind" }, noCommon())),
    el("p", { class: "note pair-facts" }, facts.filter(Boolean).join(" · ")),
    examples.length ? exampleList(examples.slice(0, PAIR_EXAMPLES), record.max) : el("p", { class: "note" }, "No example."));
}

const PAIR_EXAMPLES = 10; // EXAMPLES in saekit/inspection/beside.py

// --- the two dictionaries as a whole ------------------------------------------------------------------------------------

async function openBeside() {
  const { name } = catalog.beside;
  show([el("header", { class: "gallery-header" }, el("h2", { id: "beside-title", tabindex: "-1" }, `${catalog.meta.checkpoint} beside ${name}`),
    el("p", { class: "lead" }, besideLead()), el("p", { class: "lead", id: "beside-training" }, trainedText())), besideTable(), besideSpread(), besideNotes()]);
}

function besideLead() {
  const { alive, share, partner, name } = catalog.beside;
  return `Of the ${count(alive[0])} latents here that fire, ${percent(share[0])} have a partner in ${name}, that is, a latent whose decoder row has a cosine of at least ${partner} with theirs; `
    + `of its ${count(alive[1])}, ${percent(share[1])} have one here.`;
}

// Two runs with one seed may start from the same directions: that is said, since it makes matches likelier.
function trainedText() {
  const [own, other] = catalog.beside.trained;
  const names = [catalog.meta.checkpoint, catalog.beside.name];
  const unsaid = [own, other].findIndex(({ seed, content }) => seed === null || content === null);
  if (unsaid >= 0) return `${names[unsaid]} does not say with which seed and on which store it was trained.`;
  const stores = String(own.content) === String(other.content) ? "on the same store" : "on different stores";
  if (own.seed === other.seed) {
    return `Both were trained with seed ${own.seed} ${stores}. Two runs of one seed may start from the same directions, which makes matches likelier than between runs of two seeds.${sameNumberText()}`;
  }
  const order = own.order === other.order ? `, in one order of the rows (seed ${own.order})` : "";
  return `${names[0]} was trained with seed ${own.seed}, ${names[1]} with seed ${other.seed}, ${stores}${order}.`;
}

// A latent that stays near the direction from which both runs started has its partner under its own number.
function sameNumberText() {
  const { same_number: same, partners } = catalog.beside;
  if (same === null || !partners) return "";
  return ` Of the ${count(partners)} latents here with a partner ${count(same)} have it under their own number (unrelated runs: about one), as latents have that stay near a common start. `
    + "Such partners say little about what two runs find by themselves.";
}

function seedsText() {
  return catalog.beside.trained.map(({ seed }) => seed ?? MISSING).join(" and ");
}

function storeText({ content, here }) {
  if (content === null) return MISSING;
  return here ? "this page's" : `another, ${String(content).slice(0, 8)}`;
}

function besideTable() {
  const { alive, share, mean_best: mean, chance, partner, name, one_to_one: matched, trained } = catalog.beside;
  const row = (id, title, values) => el("tr", { id }, el("th", { scope: "row" }, title), values.map((value) => el("td", {}, value)));
  return el("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Figures of both" }, el("table", { class: "beside-table" },
    el("thead", {}, el("tr", {}, el("td", {}), el("th", { scope: "col" }, `${catalog.meta.checkpoint} in ${name}`), el("th", { scope: "col" }, `${name} in ${catalog.meta.checkpoint}`))),
    el("tbody", {},
      row("beside-kind", "Kind", trained.map(({ kind }) => kind)), row("beside-size", "Latents × width", trained.map(({ latents, width }) => `${count(latents)} × ${count(width)}`)),
      row("beside-seed", "Seed", trained.map(({ seed, order }) => (seed === null ? MISSING : order === seed ? String(seed) : `${seed}, order of rows ${order}`))),
      row("beside-store", "Store of its training", trained.map(storeText)), row("beside-rows", "Rows of its training", trained.map(({ rows }) => count(rows))), row("beside-alive", "Latents that fire", alive.map(count)),
      row("beside-share", `Have a partner (cosine ≥ ${partner})`, share.map((value) => percent(value))), row("beside-mean", "Mean of the best cosine", mean.map((value) => figure(value))),
      row("beside-chance", "99 % stay below, by chance", chance.map((value) => figure(value))),
      matched === null ? null : row("beside-matched", "Mean cosine, matched one to one", [figure(matched), figure(matched)]))));
}

// Histograms of best cosines, both ways.
function besideSpread() {
  const { counts, partner, chance, name } = catalog.beside;
  const bins = counts[0].length;
  const first = Math.min(...counts.map((of) => of.findIndex((n) => n > 0)), Math.floor(bins / 2));
  const low = -1 + 2 * first / bins;
  const across = (value) => `${100 * clamp01((value - low) / (1 - low))}%`;
  const plot = (of, chanceOf, title) => {
    const shown = of.slice(first);
    const top = Math.max(...shown, 1);
    const bars = shown.map((n, bin) => about(el("svg:rect", { x: bin + 0.08, width: 0.84, y: 100 - 100 * n / top, height: 100 * n / top,
      class: low + 2 * bin / bins < partner - 1e-9 ? "out" : "" }), `${figure(low + 2 * bin / bins, 3)} to ${figure(low + 2 * (bin + 1) / bins, 3)}: ${count(n)} latents`));
    return el("figure", { class: "spread" }, el("figcaption", {}, title), el("div", { class: "spread-plot" },
      el("svg:svg", { viewBox: `0 0 ${shown.length} 100`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: a histogram of best cosines` }, bars),
      el("span", { class: "spread-line", style: { left: across(partner) } }), el("span", { class: "spread-line chance", style: { left: across(chanceOf) } })),
    el("div", { class: "spread-axis", "aria-hidden": "true" }, el("span", { style: { left: "0%" } }, figure(low, 2)), el("span", { class: "mark", style: { left: across(chanceOf) } }, "chance"),
      el("span", { class: "mark", style: { left: across(partner) } }, String(partner)), el("span", { style: { left: "100%" } }, "1")));
  };
  return section("spread", "Best cosine of each latent", null, el("div", { class: "two" },
    plot(counts[0], chance[0], `${catalog.meta.checkpoint} in ${name}`), plot(counts[1], chance[1], `${name} in ${catalog.meta.checkpoint}`)));
}

function besideNotes() {
  const { without, name, correlation_chance: chance } = catalog.beside;
  const notes = ["By chance: directions drawn at random with the mean and the covariance of the other's decoder rows, as many as it has; a sample of at most 1,000 latents.",
    "The mean over latents matched one to one (saekit.measures.stability.matched) is given for at most 4,096 latents on either side."];
  if (chance === undefined) notes.push("There are no figures of rows: they need an index of both dictionaries, which a dense code does not have.");
  else if (chance !== null) notes.push(`Correlations of activations by chance: with the rows of ${name} moved on by half the store, 99 % of latents stay below ${figure(chance)}.`);
  return section("without", "Without a partner", null,
    el("p", {}, `${count(without.length)} latents that fire here have none. `, el("button", { type: "button", class: "button small", id: "show-without", onclick: showWithout }, "Show them in the list")),
    ...notes.map((note) => el("p", { class: "note" }, note)));
}

function showWithout() {
  byId("without-partner").checked = true;
  updateList();
  keepFilters();
  goToList();
}

function withoutMeaning() {
  return `Latents that fire and whose decoder row has a cosine below ${catalog.beside.partner} with every row of ${catalog.beside.name}.`;
}

function lacksPartner(latent) {
  catalog.beside.lacking ??= new Set(catalog.beside.without);
  return catalog.beside.lacking.has(latent);
}
