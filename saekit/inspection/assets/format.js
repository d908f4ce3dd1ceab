// Numbers and tokens as text, and the one function that makes elements. Nothing here, or anywhere, parses HTML:
// strings reach the page as text nodes only.

const grouped = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact" });
const MISSING = "–";

function count(value) {
  return value === null || value === undefined ? MISSING : grouped.format(value);
}

// For the marks of an axis, where there is no room for a million: ticks are round numbers, so nothing is lost.
function tickCount(value) {
  return value < 1e5 ? count(value) : compact.format(value);
}

// Four significant digits, as the shards hold them; zeros are kept so that columns of figures align.
function figure(value, digits = 4) {
  if (value === null || value === undefined) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 10 ** digits ? grouped.format(Number(size.toPrecision(digits)))
    : size < 1e-4 ? size.toExponential(digits - 1) : size.toPrecision(digits);
  return value < 0 ? `−${text}` : text;
}

// A share as a percentage. 100 x 0.0004123 is not 0.04123 in binary, rounding to the same digits makes it so.
function percent(share, digits = 4) {
  return share === null || share === undefined ? MISSING : `${figure(Number((100 * share).toPrecision(digits)), digits)} %`;
}

function shortPercent(share) {
  if (share === null || share === undefined) return "";
  if (share === 0) return "dead";
  const value = 100 * share;
  return `${value >= 10 ? Math.round(value) : value >= 1e-5 ? Number(value.toPrecision(2)) : value.toExponential(0)} %`;
}

// el("p", {class: "note", onclick: f, "aria-label": "x"}, "text", child): strings become text nodes, null children vanish.
function el(name, attributes = {}, ...children) {
  const svg = name.startsWith("svg:");
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

const CONTROL_PICTURES = { "\n": "↵", "\r": "␍", "\t": "⇥" };
// Controls, zero-width and bidirectional characters, line separators, lone surrogates: they would vanish or reorder the line.
// U+200C and U+200D join letters and emoji and are meant to be unseen, so they are marked only when they stand alone.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;
const UNSEEN_ALONE = /^[\u200c\u200d]+$/;
const SPACES_SHOWN = 8;

function mark(text) {
  return el("span", { class: "unseen" }, text);
}

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// The token as nodes. In running text a leading space is a space; in a list of tokens (`apart`) it is a dot, or one would miss it.
function tokenNodes(token, apart) {
  if (token === "") return [mark("∅")];
  if (UNSEEN_ALONE.test(token)) return Array.from(token, (character) => mark(codePoint(character)));
  const blank = token.trim() === "";
  const nodes = [];
  let plain = "";
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  const [, leading, , trailing] = /^( *)(.*?)( *)$/s.exec(token);
  const dots = (spaces) => mark(spaces > SPACES_SHOWN ? `·×${spaces}` : "·".repeat(spaces));
  if (blank && /^ +$/.test(token)) return [dots(token.length)];
  const body = apart ? token.slice(leading.length, token.length - trailing.length) : token;
  if (apart && leading) nodes.push(dots(leading.length));
  for (const character of body) {
    if (UNSEEN.test(character)) { flush(); nodes.push(mark(CONTROL_PICTURES[character] ?? codePoint(character))); }
    else plain += character;
  }
  flush();
  if (apart && trailing) nodes.push(dots(trailing.length));
  return nodes;
}

// Names, labels and sources, where blanks are ordinary: only what would vanish or reorder the line is marked.
function plainNodes(text) {
  return text === "" ? [] : tokenNodes(text, false);
}

// One line of plain text for tips, labels and search: every blank visible.
function tokenText(token) {
  return tokenNodes(token, true).map((node) => (typeof node === "string" ? node : node.textContent)).join("");
}

function clamp01(value) {
  return Math.min(1, Math.max(0, value));
}
