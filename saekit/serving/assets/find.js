// The box: a number or words of names and labels are answered while they are typed, other questions (search.js) when Enter is pressed.

const find = {
  number: 0, // of the last question: an answer that comes after another was asked is not shown
  answered: "", // what the box held when the list was last filled by an answer
  question: null, // the one whose order can be changed
};
const NUMBER = /^#?\d+$/;
const RESTS_MILLISECONDS = 150;
const CHANCE_OF = { auroc: "auroc_chance" }; // of all others it is that of information
// How a figure is written, and what it says.
const FIGURE = {
  information: [(value) => figure(value, 3), "Mutual information of being active and being on the token (in an example of the label), over the entropy of the latter: 1 decides it, 0 says nothing."],
  auroc: [(value) => figure(value, 3), "Probability that the latent is stronger in an example of the label than in another."],
  share: [(value) => percent(value, 3), "Share of the token's rows (of the label's examples) on which the latent is active."],
  lift: [(value) => `× ${figure(value, 3)}`, "That share over the latent's density."],
  mean: [(value) => figure(value, 3), "Mean activation."],
  max: [(value) => figure(value, 4), "Largest activation in this text."],
  relative: [(value) => percent(value, 3), "Largest activation in this text over the latent's largest in the store, at most 100 %. It counts less where the latent is active in few rows of the store."],
  score: [(value) => figure(value, 2), "How often the examples of the latent have one word in common, against shuffled examples."],
  difference: [(value) => figure(value, 4), "How much larger than in the other text."],
  versus: [(value) => figure(value, 3), "In the other text."],
  cosine: [(value) => figure(value, 3), "1 is the same direction (of co-activation: the same activations on all rows)."],
  jaccard: [(value) => figure(value, 3), "Rows on which both are active over rows on which either is."],
  pmi: [(value) => `${figure(value, 3)} nats`, "How much more often both are active than by chance. Large for rare latents by chance."],
  together: [(value) => count(value), "Rows on which both are active."],
  match: [(value) => figure(value, 3), "BM25 of the words in its name, notes, explanations and automatic label, and on its strongest rows."],
  words: [(value) => count(value), "How many of the words it has."],
};
const ORDER_NAMES = { max: "activation", relative: "share of its maximum", auroc: "AUROC", decoder: "decoder rows", encoder: "encoder rows", coactivation: "co-activation" };

function boxQuestion() {
  const question = understood(byId("search").value, served.modality === "text");
  const problem = whyNot(question.kind);
  return problem ? { kind: "wrong", value: question.value, problem } : question;
}

function typed() {
  const question = boxQuestion();
  // proposals, and the arrow that opens them, only where a label is being typed
  if (question.kind === "label" || byId("search").value.startsWith("label:")) byId("search").setAttribute("list", "labels");
  else byId("search").removeAttribute("list");
  const words = byId("search").value.trim();
  if (["number", "words", "none"].includes(question.kind)) listWords(words, otherQuestions(words));
  else if (question.kind === "text" && !PREFIX.test(words) && served.rows !== null) listWords(words, pressEnter(question)); // or words of a name
  else {
    find.number += 1;
    panel.searching = true;
    byId("back").hidden = !input.answer;
    listed("Search", [], question.problem ?? pressEnter(question));
  }
}

function pressEnter(question) {
  return ["Press ", el("kbd", {}, "Enter"), ` for ${spoken(question)}.`];
}

// Enter asks; once the answer is there it opens the first.
function entered() {
  const question = boxQuestion();
  const isAsked = !["number", "words", "none", "wrong"].includes(question.kind);
  if (isAsked && find.answered !== byId("search").value) rank(question);
  else byId("latents").querySelector(".latent")?.click();
}

function spoken({ kind, value, versus }) {
  if (kind === "token") return `latents that fire on the token “${tokenText(value)}”`;
  if (kind === "label") return `latents that tell “${value}” from other labels`;
  if (kind === "near") return `latents near #${value}`;
  if (kind === "explained") return `latents that “${value}” describes`;
  return versus ? "latents that the first text activates more than the second" : "latents that this text activates";
}

// --- while one types ------------------------------------------------------------------------------------------------

// `rest`: what the note goes on with.
async function listWords(words, rest = []) {
  const number = ++find.number;
  panel.searching = words !== "";
  byId("back").hidden = !panel.searching || !input.answer;
  if (!panel.searching && input.answer) { listInput(); return; }
  try {
    const { found, of } = await ask(`latents?q=${encodeURIComponent(words)}`);
    if (number !== find.number) return; // another was typed meanwhile
    found.forEach((brief) => panel.found.set(brief.index, brief));
    const none = served.rows === null ? "Without a store latents are found by their number only." : "No latent has this number, name or label.";
    const note = found.length === 0 ? (panel.searching ? none : "") : of > found.length ? `The first ${count(found.length)} of ${count(of)}.` : "";
    listed(panel.searching ? "Found" : "Worth reading first", found.map(({ index }) => ({ latent: index })), [`${note} `, ...rest]);
    if (!NUMBER.test(words) || found.length === 0) return;
    await pause(RESTS_MILLISECONDS); // digits may follow
    if (number === find.number) choose(found[0].index);
  } catch (error) {
    if (number === find.number) failed(error);
  }
}

// The list and the details of the latent chosen before answer another question.
function failed(error) {
  listed("Not found", [], error.message);
  markStale(byId("detail"), "Chosen before this question");
}

// What else a word may mean: links that ask it.
function otherQuestions(word) {
  if (!word || NUMBER.test(word)) return [];
  const can = answerable();
  const questions = [
    ...(can.label && served.labels.includes(word) ? [`label:${word}`] : []), ...(can.token ? [`token:${word}`, `token: ${word}`] : []),
    ...(can.text ? [`text:${word}`] : []), ...(can.explained ? [`explained: ${word}`] : [])];
  return questions.flatMap((text, at) => [at ? ", " : "Or ask for ", el("button", { type: "button", class: "link-button", onclick: () => {
    byId("search").value = text;
    rank(boxQuestion());
  } }, linkTo(text))]);
}

function linkTo(question) {
  if (question.startsWith("token")) return `the token “${tokenText(question.slice("token:".length))}”`;
  return question.startsWith("text") ? "it as a text" : question.startsWith("explained") ? "what it describes" : "this label";
}

function drawOrders(orders, by) {
  byId("order").replaceChildren(...orders.map((name) => el("option", { value: name }, ORDER_NAMES[name] ?? name)));
  byId("order").value = by;
  byId("order").closest("label").hidden = orders.length === 0;
  byId("not-bos").closest("label").hidden = !(panel.searching && served.index && served.modality === "text");
  byId("orders").hidden = [...byId("orders").children].every((label) => label.hidden);
}

// Of what was read, or of the answer to a question: a text is listed as one that was read.
function reorder() {
  const by = byId("order").value;
  const isOfText = !panel.searching || (find.question.kind === "text" && !find.question.versus);
  if (isOfText && (by === "max" || served.orders.includes(by))) input.order = by;
  if (panel.searching) rank(find.question, by);
  else listInput();
}

// --- questions ------------------------------------------------------------------------------------------------------

async function rank(question, by = null) {
  const number = ++find.number;
  panel.searching = true;
  byId("back").hidden = !input.answer;
  const held = byId("search").value;
  by ??= question.kind === "text" && !question.versus ? input.order : null;
  byId("list-note").textContent = "Searching";
  const body = { [question.kind]: question.value, ...(question.versus ? { versus: question.versus } : {}), ...(by ? { by } : {}),
    not_bos: byId("not-bos").checked };
  try {
    const answer = await ask("search", { body, waiting: (text) => { byId("list-note").textContent = text; } });
    if (number !== find.number) return;
    Object.assign(find, { question, answered: held });
    drawAnswer(question, answer);
  } catch (error) {
    if (number === find.number) failed(error);
  }
}

function drawAnswer(question, answer) {
  const { found, by, of, chance, orders, note } = answer;
  freshen(byId("detail"));
  found.forEach((brief) => panel.found.set(brief.index, brief));
  const values = found.map((brief) => orderedBy(brief, by));
  const most = Math.max(...values.map(Math.abs), 1e-12);
  const first = found.length < of ? `The first ${count(found.length)} of ${count(of)} latents. ` : found.length ? `${count(of)} latents. ` : "No latent. ";
  listed(titleOf(question), found.map((brief, at) => ({ latent: brief.index, measure: {
    text: written(by, values[at]), share: Math.abs(values[at]) / most, facts: factsOf(brief, by), within: isWithin(brief, by, chance) } })),
  [first, ...chanceText(by, chance), note ? sentence(note) : null].filter(Boolean));
  drawOrders(orders, by);
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function titleOf({ kind, value, versus }) {
  if (kind === "token") return ["On ", el("span", { class: "chip" }, tokenNodes(value, true))];
  if (kind === "label") return ["In ", el("span", { class: "data-label" }, plainNodes(value))];
  if (kind === "near") return `Near #${value}`;
  if (kind === "explained") return ["Described by ", el("span", { class: "data-label" }, plainNodes(value))];
  return versus ? "More in the first text" : "Strongest in this text";
}

// The figure that the list is ordered by.
function measureName(figures, by) {
  if (figures.difference !== undefined) return "difference";
  if (figures.match !== undefined) return "match";
  if (figures.jaccard !== undefined) return "jaccard"; // near a latent by co-activation
  return figures[by] !== undefined ? by : figures.cosine !== undefined ? "cosine" : "max";
}

function orderedBy({ act, figures }, by) {
  const name = measureName(figures, by);
  return name === "max" ? act : figures[name];
}

function written(by, value) {
  const name = FIGURE[by] ? by : "cosine";
  return FIGURE[name][0](value);
}

function factsOf({ act, at, figures, max }, by) {
  const shown = measureName(figures, by);
  const facts = Object.entries(figures).filter(([name]) => name !== shown && FIGURE[name])
    .map(([name, value]) => about(el("span", { "data-fact": name }, `${ORDER_NAMES[name] ?? name} ${FIGURE[name][0](value)}`), FIGURE[name][1]));
  if (act !== null && at === null) facts.push(el("span", {}, `largest there ${figure(act)}${max ? ` of ${figure(max)}` : ""}`));
  if (at !== null) facts.push(el("span", {}, `${shown === "max" ? (max ? `of ${figure(max)}, ` : "") : `largest ${figure(act)}${max ? ` of ${figure(max)}` : ""} `}on `, el("span", { class: "chip" }, tokenNodes(at, true))));
  return facts;
}

function isWithin({ figures }, by, chance) {
  const name = CHANCE_OF[by] ? by : "information";
  const limit = chance[CHANCE_OF[by] ?? "chance"];
  return limit !== undefined && figures[name] <= limit;
}

function chanceText(by, chance) {
  const name = CHANCE_OF[by] ?? "chance";
  if (chance[name] === undefined) return [];
  return [about(el("span", { "data-chance": name, tabindex: "0", class: "explained" }, `By chance the best latent reaches ${by === "auroc" ? "AUROC" : "information"} ${figure(chance[name], 3)}.`),
    "The largest of all latents when the rows of the token are shifted along the store, or documents exchange their labels; of four tries.")];
}

// --- keys and forms -------------------------------------------------------------------------------------------------

function listenForSearch() {
  const box = byId("search");
  offerQuestions();
  onSubmit("search-form", entered);
  box.addEventListener("input", typed);
  byId("back").addEventListener("click", () => { box.value = ""; listWords(""); });
  byId("order").addEventListener("change", reorder);
  byId("not-bos").addEventListener("change", () => rank(find.question, byId("order").value));
  box.addEventListener("keydown", (event) => { if (event.key === "ArrowDown" && !box.list) focusRow(event, 0); });
  byId("latents").addEventListener("keydown", (event) => {
    const rows = [...byId("latents").querySelectorAll(".latent")];
    const place = rows.indexOf(event.target.closest(".latent"));
    if (place >= 0 && event.key === "ArrowDown") focusRow(event, place + 1);
    if (place >= 0 && event.key === "ArrowUp") { if (place) focusRow(event, place - 1); else { event.preventDefault(); box.focus(); } }
  });
}

function focusRow(event, place) {
  const row = byId("latents").querySelectorAll(".latent")[place];
  if (!row) return;
  event.preventDefault();
  row.focus();
}
