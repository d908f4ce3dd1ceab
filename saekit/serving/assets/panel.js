// The list of latents and what is known of the chosen one: at a token, in the whole input, or found by a search.

const panel = {
  found: new Map(), // latent -> its brief, of all that were searched for
  searching: false,
};

// --- the list -------------------------------------------------------------------------------------------------------

function listInput() {
  if (panel.searching) return;
  if (input.kept) { listAt(input.kept.context, input.kept.at); return; }
  if (!input.answer) { listed("Worth reading first", [], ""); search(""); return; }
  listed(`Strongest in this ${served.modality}`, input.answer.ranked.map(([latent, act]) => ({ latent, act })), "");
}

function listAt(context, at) {
  if (panel.searching) return;
  const row = rowAt(context, at);
  listed(["At ", el("span", { class: "chip" }, input.answer.contexts[context].tokens ? tokenNodes(input.answer.contexts[context].tokens[at], true) : nameAt(context, at))],
    row.latents.map((latent, place) => ({ latent, act: row.acts[place] })), row.latents.length ? "" : "No latent is active here.");
}

function listed(title, entries, note) {
  byId("list-title").replaceChildren(...[title].flat());
  byId("list-note").textContent = note;
  byId("latents").replaceChildren(...entries.map(latentRow));
  markChosen();
}

// `act`: in the input; undefined in a search.
function latentRow({ latent, act }) {
  const { max, density, label } = briefOf(latent);
  const share = act === undefined ? 0 : Math.abs(act) / (max || scaleOf(latent));
  const told = act === undefined ? shortPercent(density) : figure(act);
  const choice = el("button", { type: "button", class: "latent", "data-latent": latent, "aria-pressed": "false", onclick: () => choose(latent) },
    el("span", { class: "number" }, `#${latent}`),
    el("span", { class: label ? "name" : "name none" }, label ? plainNodes(label) : "no label"),
    el("span", { class: "value" }, told, act !== undefined && max ? el("span", { class: "of" }, ` of ${figure(max)}`) : null),
    act === undefined ? null : bar(share, act < 0 ? "cold" : ""));
  const steer = served.steering ? el("button", { type: "button", class: "button small add", "aria-label": `Steer latent ${latent}`, onclick: () => addEdit(latent) }, "Steer") : null;
  return el("li", {}, choice, steer);
}

function markChosen() {
  for (const node of document.querySelectorAll("#latents [data-latent]")) {
    node.setAttribute("aria-pressed", String(Number(node.dataset.latent) === input.chosen));
  }
}

// --- search ---------------------------------------------------------------------------------------------------------

let lastSearch = 0;

async function search(words) {
  const number = ++lastSearch;
  panel.searching = words.trim() !== "";
  byId("back").hidden = !panel.searching || !input.answer;
  if (!panel.searching && input.answer) { listInput(); return; }
  try {
    const { found, of } = await ask(`latents?q=${encodeURIComponent(words)}`);
    if (number !== lastSearch) return; // another was typed meanwhile
    found.forEach((brief) => panel.found.set(brief.index, brief));
    const none = served.rows === null ? "Without a store latents are found by their number only." : "No latent has this number or label.";
    const note = found.length === 0 ? (panel.searching ? none : "") : of > found.length ? `The first ${count(found.length)} of ${count(of)}.` : "";
    listed(panel.searching ? "Found" : "Worth reading first", found.map(({ index }) => ({ latent: index })), note);
  } catch (error) {
    byId("list-note").textContent = error.message;
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
    const { brief, record, note } = await ask(`latents/${latent}`, { signal });
    if (input.chosen !== latent) return;
    panel.found.set(latent, brief);
    box.replaceChildren(...detail(brief, record, note));
  } catch (error) {
    if (error.name !== "AbortError") box.replaceChildren(el("p", { class: "note" }, error.message));
  } finally {
    box.removeAttribute("aria-busy");
  }
}

function detail(brief, record, note) {
  const { index, max, density, label, score, page } = brief;
  const facts = [["Largest activation", max === null ? null : figure(max)], ["Density", density === null ? null : percent(density, 3)],
    ["Score", score === null ? null : figure(score, 2)]].filter(([, value]) => value !== null);
  const links = [served.steering ? el("button", { type: "button", class: "button small", onclick: () => addEdit(index) }, "Steer") : null,
    page ? el("a", { class: "button small", href: `page/#/f/${index}`, target: "_blank", rel: "noopener" }, "Its page") : null];
  return [
    el("div", { class: "section-head" }, el("h3", {}, `#${index}`), el("div", { class: "row-of-buttons" }, links)),
    label ? el("p", { class: "automatic-label" }, el("span", { class: "badge" }, "automatic"), el("span", {}, plainNodes(label))) : null,
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
