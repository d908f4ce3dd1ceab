// The input as it was read: tokens of a text, patches of an image. Each row has its active latents, largest first.

const input = {
  answer: null, // of the server
  kept: null, // {context, at}: the token or patch whose latents the list keeps showing
  chosen: null, // the latent that shades
  stale: false, // whether the question after it failed
  order: "max", // of its latents: max, or one of served.orders
};

function rowAt(context, at) {
  return input.answer.contexts[context].rows.find((row) => row.at === at) ?? null;
}

// The activation of a latent at a token or patch; null where the dictionary has no row.
function actAt(context, at, latent) {
  const row = rowAt(context, at);
  if (!row) return null;
  const place = row.latents.indexOf(latent);
  return place < 0 ? 0 : row.acts[place];
}

function largestIn(latent) {
  const acts = input.answer.contexts.flatMap(({ rows }) => rows.map((row) => row.acts[row.latents.indexOf(latent)] ?? 0));
  return acts.reduce((largest, act) => (Math.abs(act) > Math.abs(largest) ? act : largest), 0);
}

function briefOf(latent) {
  return input.answer?.latents[latent] ?? panel.found.get(latent) ?? { index: latent, max: null, density: null, label: null, automatic: null, score: null, page: false };
}

// The latents of the whole input in the chosen order, [latent, act].
function rankedInInput() {
  return input.order === "max" ? input.answer.ranked : input.answer.orders[input.order];
}

// Those of one row, largest activation first, in the chosen order.
function rankedInRow({ latents, acts }) {
  const entries = latents.map((latent, place) => [latent, acts[place]]);
  if (input.order === "max") return entries;
  return entries.map((entry) => [entry, orderFigure(...entry)]).sort(([, a], [, b]) => b - a).map(([entry]) => entry);
}

// Active rows at which a share of the maximum counts one half: as saekit.inspection.search.trust_in_maximum.
const FEW = 20;

function orderFigure(latent, act) {
  const { max, density, score } = briefOf(latent);
  if (input.order === "score") return score ?? 0;
  const share = max > 0 ? Math.min(Math.abs(act) / max, 1) : 0;
  const active = density === null ? null : Math.round(density * served.rows);
  return active === null ? share : (share * active) / (active + FEW);
}

// What full shading means: the largest activation in the store, or in this input where no store says more.
function scaleOf(latent) {
  return briefOf(latent).max || Math.abs(largestIn(latent)) || 1;
}

function drawInput() {
  byId("shown").hidden = input.answer === null;
  if (input.answer === null) return;
  byId("shown-title").textContent = served.modality === "image" ? "Patches" : "Tokens";
  const draw = served.modality === "image" ? imageContext : textContext;
  byId("contexts").replaceChildren(...input.answer.contexts.map(draw));
  const { cut } = input.answer;
  byId("cut").hidden = cut === null;
  byId("cut").textContent = cut === null ? "" : `Each row shows its ${count(cut)} largest latents; there are more.`;
  shade();
}

function textContext(context, number) {
  const known = new Set(context.rows.map((row) => row.at));
  const line = el("p", { class: "tokens asked", dir: "auto", tabindex: "0", "data-context": number,
    "aria-label": `Context ${number + 1} of ${input.answer.contexts.length}, ${context.tokens.length} tokens` },
  context.tokens.map((token, at) => el("span", { class: known.has(at) ? "token" : "token no-row", "data-at": at },
    token === "" ? el("span", { class: "word part" }) : shadedToken(token))));
  line.addEventListener("pointerover", (event) => {
    const span = event.target.closest("[data-at]");
    if (span) point(number, Number(span.dataset.at), span);
  });
  line.addEventListener("pointerleave", unpoint);
  line.addEventListener("click", (event) => {
    const span = event.target.closest("[data-at]");
    if (span) keep(number, Number(span.dataset.at));
  });
  readByKeyboard(line, context.tokens.length, context.rows[0]?.at ?? 0, (at) => {
    const span = line.querySelector(`[data-at="${at}"]`);
    point(number, at, span);
    return span;
  });
  line.addEventListener("keydown", (event) => {
    const span = line.querySelector(".reading");
    if (event.key !== "Enter" || !span) return;
    event.preventDefault();
    keep(number, Number(span.dataset.at));
  });
  line.addEventListener("blur", unpoint);
  return line;
}

function nameAt(context, at) {
  const { tokens, grid } = input.answer.contexts[context];
  return tokens ? tokenText(tokens[at]) : `row ${Math.floor(at / grid[1])}, column ${at % grid[1]}`;
}

const TOLD = 4; // latents in a tip; the list beside has all

function point(context, at, span) {
  const row = rowAt(context, at);
  const box = span.getBoundingClientRect();
  const lines = row ? rankedInRow(row).slice(0, TOLD).map(([latent, act]) => {
    const { max, label } = briefOf(latent);
    return `#${latent}  ${figure(act)}${max ? ` of ${figure(max)}` : ""}${label ? `  ${label}` : ""}`;
  }) : ["not a row that the dictionary takes"];
  if (row && row.latents.length > TOLD) lines.push(`and ${row.latents.length - TOLD} more`);
  if (row && row.latents.length === 0) lines.push("no latent is active");
  showTip(box.left + box.width / 2, box.top, nameAt(context, at), lines.join("\n"));
  if (row) listAt(context, at);
}

function unpoint() {
  hideTip();
  listInput();
}

function keep(context, at) {
  const same = input.kept && input.kept.context === context && input.kept.at === at;
  input.kept = same || !rowAt(context, at) ? null : { context, at };
  for (const node of document.querySelectorAll("#contexts .kept")) node.classList.remove("kept");
  if (input.kept) document.querySelector(`#contexts [data-context="${context}"] [data-at="${at}"]`)?.classList.add("kept");
  listInput();
}

// --- shading --------------------------------------------------------------------------------------------------------

// The latent that shades and has the panel; null: none.
function choose(latent) {
  const same = input.chosen === latent;
  input.chosen = latent;
  if (input.answer) shade();
  markChosen();
  if (same && byId("detail").querySelector("h3")) freshen(byId("detail"));
  else showDetail(latent);
}

function shade() {
  const latent = input.chosen;
  const max = latent === null ? 1 : scaleOf(latent);
  input.answer.contexts.forEach((content, context) => {
    if (content.grid) drawOverlay(content, context, latent, max);
    for (const node of document.querySelectorAll(`#contexts [data-context="${context}"] [data-at]`)) {
      const act = latent === null ? 0 : actAt(context, Number(node.dataset.at), latent) ?? 0;
      const share = clamp01(Math.abs(act) / max);
      node.classList.toggle("lit", share > 0);
      node.classList.toggle("cold", act < 0);
      node.classList.toggle("strong", share > 0.72);
      node.style.setProperty("--t", share.toFixed(3));
      node.dataset.act = act;
    }
  });
  byId("shading").replaceChildren(...(latent === null ? [el("span", { class: "note" }, "Choose a latent to shade by it.")] : shadingNodes(latent, max)));
}

function shadingNodes(latent, max) {
  return [el("span", {}, `#${latent}`),
    el("div", { class: "color-bar", role: "img", "aria-label": `Shading from 0 to ${figure(max)}` },
      el("span", {}, "0"), el("span", { class: "ramp" }), el("span", {}, figure(max))),
    served.modality === "image" ? overlayButtons() : null,
    el("button", { type: "button", class: "button small", id: "clear-shading", onclick: () => choose(null) }, "Clear")].filter(Boolean);
}
