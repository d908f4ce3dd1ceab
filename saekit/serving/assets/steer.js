// The text that is written with latents added or ablated, beside the one without; of an image its classes.

const MOVED_MILLISECONDS = 250; // a slider rests so long before the text is written again
let running = null; // AbortController of the text that is being written
let moved = null; // timer
let hasRun = false;

function rerun() {
  clearTimeout(moved);
  if (byId("live").checked && hasRun) moved = setTimeout(run, MOVED_MILLISECONDS);
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
    for (const edit of edits.values()) edit.strength = converted(edit, raw.checked);
    drawEdits(); // the same edits: nothing is to be run again
  });
  const fields = [
    isText ? option("new-tokens", "Tokens", numberField(40, { min: 1, max: 512 }), "How many tokens are written.") : null,
    isText ? option("temperature", "Temperature", numberField(0, { min: 0, step: 0.1 }), "0 writes greedily; above, tokens are sampled from the whole distribution.") : null,
    isText ? option("seed", "Seed", numberField(0, { min: 0 }), "Of sampling, and of the controls.") : null,
    option("where", "Where", isText ? choices({ all: "everywhere", prompt: "in the prompt", generated: "in what is written", last: "from its last token on" })
      : choices({ all: "everywhere", patches: "patches", cls: "class token" }), "The positions that are edited."),
    option("error", "Keep the error", check(true), "What the dictionary does not reconstruct stays in the hidden state. Otherwise the steered model loses it."),
    option("raw", "Raw strengths", raw, served.has_maxima ? "Strengths in the code's own units, rather than multiples of each latent's largest activation in the store."
      : "Strengths are in the code's own units: without a scanned store the largest activations are not known."),
    isText && served.chat ? option("chat", "Chat", check(false), "The prompt is a user's message in the model's chat template.") : null,
    option("target", isText ? "Target token" : "Target class", el("input", { type: "text", class: "field", placeholder: "as the dose chooses", spellcheck: "false", autocomplete: "off" }),
      isText ? "The token whose probability the controls are compared on, its blank included. Empty: those that the full strength raises most, which need not be what the latent means."
        : "The class, by name or number, whose probability the controls are compared on. Empty: the one that the full strength raises most, which need not be what the latent means."),
  ];
  byId("options").replaceChildren(...fields.filter(Boolean));
  const target = byId("target").closest("label");
  byId("controls").addEventListener("change", () => { target.toggleAttribute("hidden", !isCompared()); if (isCompared()) rerun(); });
  target.toggleAttribute("hidden", !isCompared());
  about(byId("controls").closest("label"), `Measures half and all of the strength. ${CONTROLS}`);
}

// Throws what is wrong with a field, by its name on the page.
function question() {
  const active = [...edits].filter(([, edit]) => !edit.ablate);
  const ablate = [...edits].filter(([, edit]) => edit.ablate).map(([latent]) => latent);
  const common = { latents: Object.fromEntries(active.map(([latent, edit]) => [latent, edit.strength])), ablate,
    raw: isRaw(), error: byId("error").checked, positions: byId("where").value, ...dosesOf(active, ablate) };
  if (served.modality === "image") {
    if (!dropped) throw new Error("Drop an image first.");
    return { ...common, image: dropped.base64 };
  }
  return { ...common, prompt: byId("prompt").value, max_new_tokens: wholeNumber("new-tokens", "Tokens"), temperature: numberIn("temperature", "Temperature"),
    seed: wholeNumber("seed", "Seed"), chat: byId("chat")?.checked ?? false };
}

function numberIn(id, name) {
  const value = byId(id).valueAsNumber;
  if (!Number.isFinite(value)) throw new Error(`“${name}” needs a number.`);
  return value;
}

function wholeNumber(id, name) {
  const value = numberIn(id, name);
  if (!Number.isInteger(value)) throw new Error(`“${name}” needs a whole number.`);
  return value;
}

// --- running --------------------------------------------------------------------------------------------------------

async function run() {
  clearTimeout(moved);
  if (edits.size === 0) return;
  hasRun = true;
  running?.abort();
  const mine = running = new AbortController();
  byId("stop").disabled = false;
  const say = (text) => { if (running === mine) byId("steer-status").textContent = text; };
  say(served.modality === "image" ? "Running" : "Writing");
  let [outcome, told, done] = [null, false, false];
  try {
    const body = question();
    if (served.modality === "text") outcome = textOutcome();
    await askLines("steer", (event) => {
      if (running !== mine) return;
      if (event.kind === "error") throw new Error(event.hint ? `${event.error} (${event.hint})` : event.error);
      told = true;
      if (event.kind === "end") { done = true; return; }
      if (event.kind === "doses") drawDoses(event);
      else if (event.kind === "classes") drawClasses(event);
      else if (event.kind === "figures") drawFigures(outcome, event);
      else outcome[event.kind].replaceChildren(...writtenNodes(event.text));
      if (body.dose && ["figures", "classes", "doses"].includes(event.kind)) say("Measuring controls");
    }, { body, signal: mine.signal, waiting: say });
    say(done ? "Done" : "The server ended the answer early.");
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped" : error.message);
    // what stands there answers an earlier question
    if (running === mine && !told) byId("outcome").replaceChildren();
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
    el("div", {}, el("h4", { id: "clean-title" }, "Clean"), clean), el("div", {}, el("h4", { id: "steered-title" }, "Steered"), steered)), figures, el("div", { id: "doses" }));
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
    el("p", { class: "note" }, `KL ${figure(kl)} nats. ${made.join("; ")}`), el("div", { id: "doses" }));
}
