// Latents that are added or ablated, and the text that is written with them beside the one without.

const STRENGTHS = { scaled: { most: 8, step: 0.1, first: 2 }, raw: { most: 40, step: 0.5, first: 8 } };
const MOVED_MILLISECONDS = 250; // a slider rests so long before the text is written again
const edits = new Map(); // latent -> {strength, ablate}
let running = null; // AbortController of the text that is being written
let moved = null; // timer

function isRaw() {
  return byId("raw").checked;
}

function addEdit(latent) {
  if (!edits.has(latent)) edits.set(latent, { strength: STRENGTHS[isRaw() ? "raw" : "scaled"].first, ablate: false });
  drawEdits();
  byId("edits").querySelector(`[data-latent="${latent}"] input[type=range]`)?.focus({ preventScroll: true });
  byId("steer").scrollIntoView({ block: "nearest" });
}

function drawEdits() {
  byId("edits").replaceChildren(...[...edits].map(([latent, edit]) => editRow(latent, edit)));
  byId("no-edits").hidden = edits.size > 0;
  byId("run").disabled = edits.size === 0;
}

function editRow(latent, edit) {
  const { most, step } = STRENGTHS[isRaw() ? "raw" : "scaled"];
  const { label, max } = briefOf(latent);
  const unit = isRaw() || !max ? "" : `× ${figure(max, 3)}`;
  const slider = el("input", { type: "range", min: -most, max: most, step, "aria-label": `Strength of latent ${latent}` });
  const number = el("input", { type: "number", class: "field", step, "aria-label": `Strength of latent ${latent}, as a number` });
  const ablate = el("input", { type: "checkbox" });
  const take = (value, from) => {
    edit.strength = Number.isFinite(value) ? value : 0;
    if (from !== slider) slider.value = String(edit.strength);
    if (from !== number) number.value = String(edit.strength);
    slider.setAttribute("aria-valuetext", `${edit.strength} ${unit}`.trim());
  };
  take(edit.strength, null);
  ablate.checked = edit.ablate;
  slider.disabled = edit.ablate;
  number.disabled = edit.ablate;
  slider.addEventListener("input", () => { take(slider.valueAsNumber, slider); rerun(); });
  number.addEventListener("input", () => { take(number.valueAsNumber, number); rerun(); });
  ablate.addEventListener("change", () => { edit.ablate = ablate.checked; slider.disabled = number.disabled = ablate.checked; rerun(); });
  return el("li", { class: "edit", "data-latent": latent },
    el("button", { type: "button", class: "link-button edit-name", title: "Shade by it", onclick: () => choose(latent) }, `#${latent}`, label ? el("span", { class: "name" }, plainNodes(label)) : null),
    slider, number, el("span", { class: "unit" }, unit),
    el("label", { class: "check" }, ablate, " ablate"),
    el("button", { type: "button", class: "button quiet icon", "aria-label": `Remove latent ${latent}`, onclick: () => { edits.delete(latent); drawEdits(); } }, "×"));
}

function rerun() {
  clearTimeout(moved);
  if (byId("live").checked && byId("outcome").childElementCount) moved = setTimeout(run, MOVED_MILLISECONDS);
}

// --- options --------------------------------------------------------------------------------------------------------

function option(id, name, control, tip) {
  control.id = id;
  return about(el("label", { class: "option" }, el("span", { class: "caption" }, name), control), tip);
}

function numberField(value, attributes) {
  const field = el("input", { type: "number", class: "field", ...attributes });
  field.value = String(value);
  return field;
}

function choices(names) {
  return el("select", { class: "field" }, Object.entries(names).map(([value, name]) => el("option", { value }, name)));
}

function check(checked) {
  const box = el("input", { type: "checkbox" });
  box.checked = checked;
  return box;
}

function prepareSteering() {
  byId("steer-fault").hidden = served.steering;
  byId("steer-fault").textContent = served.steering ? "" : `Nothing can be steered here: ${served.steering_fault}.`;
  byId("steer-form").hidden = !served.steering;
  const isText = served.modality === "text";
  byId("text-options").hidden = !isText;
  const raw = check(!served.has_maxima);
  raw.disabled = !served.has_maxima;
  raw.addEventListener("change", () => {
    for (const edit of edits.values()) edit.strength = STRENGTHS[raw.checked ? "raw" : "scaled"].first;
    drawEdits();
    rerun();
  });
  const fields = [
    isText ? option("new-tokens", "Tokens", numberField(40, { min: 1, max: 512 }), "How many tokens are written.") : null,
    isText ? option("temperature", "Temperature", numberField(0, { min: 0, step: 0.1 }), "0 writes greedily; above, tokens are sampled from the whole distribution.") : null,
    isText ? option("seed", "Seed", numberField(0, { min: 0 }), "Of sampling.") : null,
    option("where", "Where", isText ? choices({ all: "everywhere", prompt: "in the prompt", generated: "in what is written", last: "from its last token on" })
      : choices({ all: "everywhere", patches: "patches", cls: "class token" }), "The positions that are edited."),
    option("error", "Keep the error", check(true), "What the dictionary does not reconstruct stays in the hidden state. Otherwise the steered model loses it."),
    option("raw", "Raw strengths", raw, served.has_maxima ? "Strengths in the code's own units, rather than multiples of each latent's largest activation in the store."
      : "Strengths are in the code's own units: without a scanned store the largest activations are not known."),
    isText && served.chat ? option("chat", "Chat", check(false), "The prompt is a user's message in the model's chat template.") : null,
  ];
  byId("options").replaceChildren(...fields.filter(Boolean));
}

function question() {
  const active = [...edits].filter(([, edit]) => !edit.ablate);
  const common = { latents: Object.fromEntries(active.map(([latent, edit]) => [latent, edit.strength])),
    ablate: [...edits].filter(([, edit]) => edit.ablate).map(([latent]) => latent),
    raw: isRaw(), error: byId("error").checked, positions: byId("where").value };
  if (served.modality === "image") return { ...common, image: dropped.base64 };
  return { ...common, prompt: byId("prompt").value, max_new_tokens: byId("new-tokens").valueAsNumber, temperature: byId("temperature").valueAsNumber,
    seed: byId("seed").valueAsNumber, chat: byId("chat")?.checked ?? false };
}

// --- running --------------------------------------------------------------------------------------------------------

async function run() {
  clearTimeout(moved);
  if (edits.size === 0) return;
  const status = byId("steer-status");
  if (served.modality === "image" && !dropped) { status.textContent = "Drop an image first."; return; }
  running?.abort();
  const mine = running = new AbortController();
  byId("stop").disabled = false;
  const say = (text) => { if (running === mine) status.textContent = text; };
  say(served.modality === "image" ? "Running" : "Writing");
  const outcome = served.modality === "image" ? null : textOutcome();
  try {
    let done = false;
    await askLines("steer", (event) => {
      if (running !== mine) return;
      if (event.kind === "error") throw new Error(event.hint ? `${event.error} (${event.hint})` : event.error);
      if (event.kind === "classes") drawClasses(event);
      else if (event.kind === "figures") drawFigures(outcome, event);
      else if (event.kind === "end") done = true;
      else outcome[event.kind].replaceChildren(...writtenNodes(event.text));
    }, { body: question(), signal: mine.signal, waiting: say });
    say(done ? "Done" : "The server ended the answer early.");
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped" : error.message);
  } finally {
    if (running === mine) {
      running = null;
      byId("stop").disabled = true;
      byId("outcome").removeAttribute("aria-busy");
    }
  }
}

function stop() {
  running?.abort();
}

// Line breaks are kept, those at the beginning as marks; what cannot be seen is marked.
function writtenNodes(text) {
  const [breaks] = /^\n*/.exec(text);
  const lines = text.slice(breaks.length).split("\n");
  return [...Array.from(breaks, () => mark("↵")), ...lines.flatMap((line, number) => [number ? el("br") : null, ...plainNodes(line)])].filter((node) => node !== null);
}

function textOutcome() {
  const clean = el("p", { class: "written", id: "clean-text", "aria-labelledby": "clean-title" });
  const steered = el("p", { class: "written", id: "steered-text", "aria-labelledby": "steered-title" });
  const figures = el("div", { id: "figures" });
  byId("outcome").setAttribute("aria-busy", "true");
  byId("outcome").replaceChildren(el("div", { class: "two" },
    el("div", {}, el("h4", { id: "clean-title" }, "Clean"), clean), el("div", {}, el("h4", { id: "steered-title" }, "Steered"), steered)), figures);
  return { clean, steered, figures };
}

const FIGURES = { perplexity: "Of the text under the clean model.", kl: "KL(clean ‖ steered) of the next-token distributions over this text, mean per token, in nats." };

function drawFigures(outcome, { edits: made, clean, steered, raised, lowered }) {
  // null: not a finite number
  const mean = ({ kl }) => (kl.includes(null) ? null : kl.reduce((sum, value) => sum + value, 0) / kl.length);
  const row = (name, of) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { "data-figure": `${name} perplexity` }, figure(of.perplexity)),
    el("td", { "data-figure": `${name} kl` }, figure(mean(of))));
  outcome.figures.replaceChildren(
    el("table", { class: "figures" }, el("thead", {}, el("tr", {}, el("th", {}), about(el("th", { scope: "col" }, "perplexity"), FIGURES.perplexity), about(el("th", { scope: "col" }, "KL per token"), FIGURES.kl))),
      el("tbody", {}, row("clean", clean), row("steered", steered))),
    el("div", { class: "two" }, changes("Raised", raised), changes("Lowered", lowered)),
    el("p", { class: "note" }, made.join("; ")));
}

function changes(title, tokens) {
  const largest = Math.max(...tokens.map((token) => Math.abs(token.steered - token.clean)), 1e-12);
  return el("div", { class: title.toLowerCase() }, el("h4", {}, title, el("span", { class: "unit" }, "log-probability, nats")), el("ol", { class: "measures" }, tokens.map((token) =>
    el("li", {}, el("span", { class: "chip" }, tokenNodes(token.token, true)), bar(Math.abs(token.steered - token.clean) / largest),
      el("span", { class: "value" }, figure(token.steered - token.clean, 3))))));
}

const CLASSES = 10;

function drawClasses({ edits: made, classes, kl }) {
  byId("outcome").replaceChildren(
    el("table", { class: "figures classes" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "class"), el("th", { scope: "col" }, "clean"), el("th", { scope: "col" }, "steered"))),
      el("tbody", {}, classes.slice(0, CLASSES).map((change) => el("tr", {}, el("th", { scope: "row" }, plainNodes(change.label)),
        el("td", {}, percent(change.clean, 3), bar(change.clean)), el("td", {}, percent(change.steered, 3), bar(change.steered)))))),
    el("p", { class: "note" }, `KL ${figure(kl)} nats. ${made.join("; ")}`));
}
