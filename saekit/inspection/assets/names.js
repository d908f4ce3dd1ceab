// A reader's own names of features: kept in this browser, under the identity of checkpoint and store, and saved to a file on request.

const names = new Map(); // latent -> name
const favorites = new Set();
const notes = new Map(); // latent -> text
const NOTE_LENGTH = 2000;

function namesKey() {
  return `names.${catalog.meta.identity || catalog.meta.title}`;
}

function loadNames() {
  try {
    for (const [latent, name] of Object.entries(JSON.parse(memory.get(namesKey(), "{}")))) takeName(Number(latent), name);
  } catch { /* what another program wrote there is not ours to read */ }
  try {
    const kept = JSON.parse(memory.get(`notes.${namesKey()}`, "{}"));
    (kept.favorites ?? []).forEach(takeFavorite);
    (kept.notes ?? []).forEach(({ index, note }) => takeNote(index, note));
  } catch { /* nor this */ }
}

function takeFavorite(latent) {
  if (latent >= 0 && latent < catalog.meta.latents) favorites.add(latent);
}

function takeNote(latent, note) {
  if (!(latent >= 0 && latent < catalog.meta.latents) || typeof note !== "string") return;
  const short = note.trim().slice(0, NOTE_LENGTH);
  if (short) notes.set(latent, short); else notes.delete(latent);
}

function notesToKeep() {
  const ascending = ([a], [b]) => a - b;
  return { favorites: [...favorites].sort((a, b) => a - b), notes: [...notes].sort(ascending).map(([index, note]) => ({ index, note })) };
}

// A star, kept like the names.
function favoriteButton(latent) {
  const button = el("button", { type: "button", class: "button", id: "favorite", "aria-pressed": String(favorites.has(latent)), "aria-label": "Favorite",
    onclick: () => {
      if (!favorites.delete(latent)) favorites.add(latent);
      button.setAttribute("aria-pressed", String(favorites.has(latent)));
      button.textContent = favorites.has(latent) ? "★" : "☆";
      keepNames();
      redrawRows();
    } }, favorites.has(latent) ? "★" : "☆");
  return about(button, "favorite");
}

function noteField(latent) {
  const field = el("textarea", { id: "note", class: "own-note", rows: "1", maxlength: NOTE_LENGTH, placeholder: "Note", "aria-label": `Your note on feature ${latent}` });
  field.value = notes.get(latent) ?? "";
  field.addEventListener("change", () => { takeNote(latent, field.value); field.value = notes.get(latent) ?? ""; keepNames(); });
  return field;
}

function takeName(latent, name) {
  if (!(latent >= 0 && latent < catalog.meta.latents) || typeof name !== "string") return;
  const short = name.trim().slice(0, 200);
  if (short) names.set(latent, short); else names.delete(latent);
}

function keepNames() {
  memory.set(namesKey(), JSON.stringify(Object.fromEntries(names)));
  memory.set(`notes.${namesKey()}`, JSON.stringify(notesToKeep()));
  const sizes = [[names.size, "name"], [notes.size, "note"], [favorites.size, "favorite"]].filter(([size], at) => size || !at);
  byId("names-count").textContent = sizes.map(([size, what]) => `${count(size)} ${what}${size === 1 ? "" : "s"}`).join(", ");
  byId("names-save").disabled = names.size + notes.size + favorites.size === 0;
}

function nameField(latent) {
  const field = el("input", { type: "text", id: "own-name", class: "own-name", maxlength: 200, placeholder: "Name it yourself",
    "aria-label": `Your name for feature ${latent}`, spellcheck: "false", autocomplete: "off" });
  field.value = names.get(latent) ?? "";
  field.addEventListener("change", () => {
    takeName(latent, field.value);
    field.value = names.get(latent) ?? "";
    keepNames();
    redrawRows();
  });
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") field.blur(); });
  return about(field, "name");
}

function saveNames() {
  const { title, checkpoint, dataset, hook, identity } = catalog.meta;
  const sorted = [...names].sort(([a], [b]) => a - b).map(([index, name]) => ({ index, name }));
  const file = new Blob([JSON.stringify({ title, checkpoint, hook, dataset, identity, names: sorted, ...notesToKeep() }, null, 1)], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(file), download: `names-${checkpoint || "saekit"}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// What a file of names holds. Throws an error that says what is wrong with it.
function namesIn(text) {
  let read;
  try { read = JSON.parse(text); } catch (error) { throw new Error(`it is not JSON (${error.message})`); }
  if (!Array.isArray(read?.names)) throw new Error("it has no list of names; “Save to a file” writes such files");
  for (const [list, value] of [["names", "name"], ["notes", "note"]]) {
    const wrong = (read[list] ?? []).findIndex?.((each) => !Number.isInteger(each?.index) || typeof each[value] !== "string") ?? 0;
    if (wrong >= 0) throw new Error(`entry ${wrong + 1} of its ${list} is not an index with a ${value}`);
  }
  const { identity } = catalog.meta;
  if (read.identity === identity) return read;
  if (!read.identity) throw new Error("it does not say which checkpoint and store its names are of");
  throw new Error(String(read.identity).split("-")[0] === identity.split("-")[0] ? "its names are of this checkpoint, but of another store"
    : `its names are of another checkpoint${read.checkpoint ? `, “${read.checkpoint}”` : ""}`);
}

async function readNames(file) {
  const message = byId("names-message");
  try {
    const read = namesIn(await file.text());
    read.names.forEach(({ index, name }) => takeName(index, name));
    (read.favorites ?? []).forEach(takeFavorite);
    (read.notes ?? []).forEach(({ index, note }) => takeNote(index, note));
    keepNames();
    redrawRows();
    await route();
    message.textContent = `${count(read.names.length)} read`;
  } catch (error) {
    message.textContent = `Not read: ${error.message}`;
  }
}

function listenForNames() {
  byId("names-button").addEventListener("click", () => { keepNames(); byId("names-message").textContent = ""; byId("names").showModal(); });
  byId("names-save").addEventListener("click", saveNames);
  byId("names-file").addEventListener("change", (event) => { if (event.target.files[0]) readNames(event.target.files[0]); event.target.value = ""; });
}
