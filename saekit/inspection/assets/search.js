// What a search box is asked: a number, words, or one of the questions of `saekit features`. The page on disk answers from its
// own data (answers.js); the local server's page sends it on.

const PREFIX = /^\s*(token|label|near|explained|text):(.*)$/s;
const VERSUS = /^(.+?)\s+versus:\s*(.+)$/s;
const QUOTED = /^\s*(?:"(.*)"|'(.*)'|“(.*)”)\s*$/s;

// {kind: none | number | words | token | label | near | explained | text, value, versus}. Blanks count in a token: "token: file" is the token
// " file", as are " file" with its blank and "' file'" in quotes. `sentences`: two words or more are a text, for the model to read.
function understood(raw, sentences) {
  const prefixed = PREFIX.exec(raw);
  if (prefixed) return ofPrefix(prefixed[1], prefixed[2]);
  const quoted = QUOTED.exec(raw);
  if (quoted) return { kind: "token", value: quoted[1] ?? quoted[2] ?? quoted[3] };
  const words = raw.trim();
  if (words === "") return { kind: "none", value: "" };
  if (/^#?\d+$/.test(words)) return { kind: "number", value: Number(words.replace("#", "")) };
  if (/^ \S+$/.test(raw)) return { kind: "token", value: raw };
  return sentences && /\s/.test(words) ? ofText(words) : { kind: "words", value: words };
}

function ofPrefix(kind, rest) {
  const quoted = QUOTED.exec(rest);
  if (kind === "token") return { kind, value: quoted ? quoted[1] ?? quoted[2] ?? quoted[3] : rest };
  const value = rest.trim();
  if (value === "") return { kind: "none", value };
  if (kind === "text") return ofText(value);
  if (kind !== "near") return { kind, value };
  const latent = /^#?(\d+)$/.exec(value);
  return latent ? { kind, value: Number(latent[1]) } : { kind: "wrong", value, problem: `near: takes the number of a latent, not “${value}”` };
}

function ofText(words) {
  const [, text, versus] = VERSUS.exec(words) ?? [null, words, null];
  return { kind: "text", value: text, versus };
}
