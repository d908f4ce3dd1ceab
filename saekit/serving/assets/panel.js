// The list of latents and what is known of the chosen one: at a token, in the whole input, or found by a search (find.js).

const panel = {
  found: new Map(), // latent -> its brief, of all that were searched for
  searching: false,
};

// --- the list -------------------------------------------------------------------------------------------------------

function listInput() {
  if (panel.searching) return;
  if (input.kept) { listAt(input.kept.context, input.kept.at); return; }
  if (!input.answer) { listed("Worth reading first", [], ""); listWords(""); return; }
  listed(`Strongest in ${input.stale ? `the ${served.modality} before` : `this ${served.modality}`}`, rankedInInput().map(([latent, act]) => ({ latent, act })), "");
  offerOrders();
}

function listAt(context, at) {
  if (panel.searching) return;
  const row = rowAt(context, at);
  listed(["At ", el("span", { class: "chip" }, input.answer.contexts[context].tokens ? tokenNodes(input.answer.contexts[context].tokens[at], true) : nameAt(context, at))],
    rankedInRow(row).map(([latent, act]) => ({ latent, act })), row.latents.length ? "" : "No latent is active here.");
  offerOrders();
}

function offerOrders() {
  if (served.orders.length) drawOrders(["max", ...served.orders], input.order);
}

function listed(title, entries, note) {
  byId("list-title").replaceChildren(...[title].flat());
  byId("list-note").replaceChildren(...[note].flat());
  byId("orders").hidden = true;
  byId("latents").replaceChildren(...entries.map(latentRow));
  byId("latents").classList.toggle("stale", input.stale && !panel.searching);
  markChosen();
}

// `act`: in the input; undefined in a search. `measure`: of an answer, {text, share, facts, within}: what it is ordered by, the length of
// its bar, its other figures, and whether chance reaches it.
function latentRow({ latent, act, measure }) {
  if (measure) return answerRow(latent, measure);
  const { max, density, score } = briefOf(latent);
  const share = act === undefined ? 0 : Math.abs(act) / (max || scaleOf(latent));
  const told = act === undefined ? shortPercent(density) : figure(act);
  return rowOf(latent, [told, act !== undefined && max ? el("span", { class: "of" }, ` of ${figure(max)}`) : null],
    act === undefined ? null : bar(share, act < 0 ? "cold" : ""),
    act !== undefined && input.order === "score" && score !== null ? el("span", { class: "facts" }, `score ${figure(score, 2)}`) : null);
}

function answerRow(latent, { text, share, facts, within }) {
  const row = rowOf(latent, [text], bar(share), el("span", { class: "facts" }, facts));
  if (within) about(row, "No more than chance reaches.").classList.add("within-chance");
  return row;
}

function rowOf(latent, told, ...below) {
  const { label, automatic } = briefOf(latent);
  const choice = el("button", { type: "button", class: "latent", "data-latent": latent, "aria-pressed": "false", onclick: () => choose(latent) },
    el("span", { class: "number" }, `#${latent}`),
    el("span", { class: `name${label ? (label === automatic ? "" : " own-label") : " none"}` }, label ? plainNodes(label) : "no label"),
    el("span", { class: "value" }, told.filter(Boolean)), ...below);
  const steer = served.steering ? el("button", { type: "button", class: "button small add", "aria-label": `Steer latent ${latent}`, onclick: () => addEdit(latent) }, "Steer") : null;
  return el("li", {}, choice, steer);
}

function markChosen() {
  for (const node of document.querySelectorAll("#latents [data-latent]")) {
    node.setAttribute("aria-pressed", String(Number(node.dataset.latent) === input.chosen));
  }
}

// --- the chosen latent ----------------------------------------------------------------------------------------------

let asked = null; // for the detail that is on its way

async function showDetail(latent) {
  asked?.abort();
  const box = byId("detail");
  if (latent === null) { box.replaceChildren(); return; }
  asked = new AbortController();
  const { signal } = asked;
  box.setAttribute("aria-busy", "true");
  try {
    const { brief, own_note: ownNote, record, note } = await ask(`latents/${latent}`, { signal });
    if (input.chosen !== latent) return;
    panel.found.set(latent, brief);
    freshen(box);
    box.replaceChildren(...detail(brief, ownNote, record, note));
  } catch (error) {
    if (error.name !== "AbortError") { freshen(box); box.replaceChildren(el("p", { class: "note" }, error.message)); }
  } finally {
    box.removeAttribute("aria-busy");
  }
}

// What stays of an earlier answer when a question fails: gray, below a heading that says so.
function markStale(box, heading) {
  freshen(box);
  if (!box.childElementCount) return;
  box.classList.add("stale");
  box.prepend(el("p", { class: "stale-title" }, heading));
}

function freshen(box) {
  box.classList.remove("stale");
  box.querySelector(":scope > .stale-title")?.remove();
}

function detail(brief, ownNote, record, note) {
  const { index, max, density, label, automatic, score, page } = brief;
  const facts = [["Largest activation", max === null ? null : figure(max)], ["Density", density === null ? null : percent(density, 3)],
    ["Score", score === null ? null : figure(score, 2)]].filter(([, value]) => value !== null);
  const links = [served.steering ? el("button", { type: "button", class: "button small", onclick: () => addEdit(index) }, "Steer") : null,
    page ? el("a", { class: "button small", href: `page/#/f/${index}`, target: "_blank", rel: "noopener" }, "Its page") : null];
  return [
    el("div", { class: "section-head" }, el("h3", {}, `#${index}`), el("div", { class: "row-of-buttons" }, links)),
    label !== automatic ? el("p", { class: "own-label" }, plainNodes(label)) : null,
    ownNote ? el("p", { class: "note own-note" }, plainNodes(ownNote)) : null,
    automatic ? el("p", { class: "automatic-label" }, el("span", { class: "badge" }, "automatic"), el("span", {}, plainNodes(automatic))) : null,
    facts.length ? el("dl", { class: "stats" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))) : null,
    note ? el("p", { class: "note" }, note) : null,
    ...(record ? drawnRecord(record) : []),
  ].filter(Boolean);
}

function drawnRecord(record) {
  const top = record.examples.filter((example) => example.group === "top");
  const images = served.modality === "image";
  return [el("h4", {}, "Activations in the store"), histogram(record, true), el("h4", {}, "Strongest examples"),
    el("ol", { class: images ? "image-grid" : "text-list" }, top.map((example) => (images ? imageExample(example, record.max) : textExample(example, record.max))))];
}
