// Which questions the box offers: those that this dictionary and store can answer.

function answerable() {
  const [isText, isScanned] = [served.modality === "text", served.rows !== null];
  return { name: isScanned, token: served.index && isText, label: served.index && served.labels.length > 0, near: isScanned, explained: isScanned, text: isText };
}

const TYPED = { name: "name", token: "token:", label: "label:", near: "near:", explained: "explained:", text: "text" };
const SPOKEN = { name: "name", token: "token", label: "label", near: "nearness", explained: "description", text: "text" };

function listOf(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}

// "Number, name, label: or near:", without those that a narrow box has no room for.
function offered(called, without = []) {
  const can = answerable();
  return listOf(["number", ...Object.keys(called).filter((kind) => can[kind] && !without.includes(kind)).map((kind) => called[kind])]);
}

// Why a question is not asked; null: it can be.
function whyNot(kind) {
  if (answerable()[kind] !== false) return null;
  const why = kind === "text" ? "this dictionary is of images" : served.rows === null ? "the server was started without a store"
    : kind === "token" && served.modality !== "text" ? "images have no tokens" : served.index ? "the data have no labels" : "the code is dense";
  return `“${kind}:” has no answer here: ${why}. Ask for a ${offered(TYPED)}.`;
}

function offerQuestions() {
  const text = offered(TYPED, served.modality === "text" ? ["near", "label"] : []);
  byId("search").placeholder = `${text[0].toUpperCase()}${text.slice(1)}`;
  byId("search-name").textContent = `Search latents by ${offered(SPOKEN)}`;
  byId("labels").replaceChildren(...(answerable().label ? served.labels : []).map((label) => el("option", { value: `label:${label}` })));
  byId("search-help").replaceChildren(...helpText());
}

function helpText() {
  const can = answerable();
  const forms = [["123", "a latent"],
    can.name && ["word", "of its name, note, explanation or automatic label"],
    can.near && ["near:123", "similar ones"],
    can.explained && ["explained: python", "words of names, explanations and labels"],
    can.token && ["token: file", "fire on “·file”, blank included"],
    can.label && [`label:${served.labels[0]}`, "tell it from other labels"],
    can.text && ["The cat sat", "a text, through the model"],
    can.text && ["The cat versus: The dog", "more in the first"]];
  return forms.filter(Boolean).map(([example, meaning]) => el("span", {}, el("code", {}, example), ` ${meaning}`));
}
