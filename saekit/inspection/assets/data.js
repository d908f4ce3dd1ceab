// What the page knows, and how it gets the rest: the catalog stands in the page, records arrive by shard.

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

let catalog = null;
let recordOf = null; // latent -> number of its record, -1 where none was made
let contextPlace = null; // example -> number of its context

async function loadCatalog() {
  catalog = await unpack(byId("catalog").textContent);
  recordOf = new Int32Array(catalog.meta.latents).fill(-1);
  catalog.records.forEach((latent, number) => { recordOf[latent] = number; });
  contextPlace = new Map(catalog.contexts.map((example, number) => [example, number]));
}

const FILES_KEPT = 256;
const files = new Map(); // source -> promise of its content; insertion order is age
const arrivals = new Map(); // source -> function that takes the packed text

// The names that the files beside the page know.
window.saekitShard = (number, packed) => arrivals.get(sourceOf("shards", number))?.(packed);
window.saekitPatches = (number, packed) => arrivals.get(sourceOf("patches", number))?.(packed);
window.saekitPart = (folder, number, packed) => arrivals.get(sourceOf(folder, number))?.(packed);
window.saekitContexts = (number, packed) => arrivals.get(sourceOf("contexts", number))?.(packed);

function sourceOf(folder, number) {
  return `${folder}/${String(number).padStart(3, "0")}.js`;
}

function packedText(folder, number) {
  if (catalog.single_file) return Promise.resolve(byId(`${folder === "shards" ? "shard" : folder}-${number}`).textContent);
  return new Promise((resolve, reject) => {
    const source = sourceOf(folder, number);
    const script = el("script", { src: source });
    arrivals.set(source, resolve);
    const finish = () => { arrivals.delete(source); script.remove(); };
    script.addEventListener("load", finish);
    script.addEventListener("error", () => { finish(); reject(new Error(`${source} could not be read. Keep it beside index.html.`)); });
    document.head.append(script);
  });
}

function loadFile(folder, number) {
  const source = sourceOf(folder, number);
  if (!files.has(source)) {
    const content = packedText(folder, number).then(unpack);
    content.catch(() => files.delete(source));
    files.set(source, content);
    if (files.size > FILES_KEPT) files.delete(files.keys().next().value);
  }
  return files.get(source);
}

async function loadRecord(latent) {
  const number = recordOf[latent];
  const records = await loadFile("shards", Math.floor(number / catalog.shard_records));
  const packed = records[number % catalog.shard_records];
  const needed = [...contextsOf(packed)];
  const contexts = await Promise.all(needed.map(contextEntry));
  return expand(packed, new Map(needed.map((example, at) => [example, contexts[at]])));
}

// [tokens, document, source, label]
async function contextEntry(example) {
  const number = contextPlace.get(example);
  const contexts = await loadFile("contexts", Math.floor(number / catalog.contexts_each_file));
  return contexts[number % catalog.contexts_each_file];
}

// The tokens of a whole context.
async function loadContext(example) {
  return (await contextEntry(example))[0];
}

const MIME = { png: "image/png", webp: "image/webp", jpg: "image/jpeg" };

function imageSource(name) {
  if (!catalog.single_file) return `images/${name}`;
  return `data:${MIME[name.split(".").pop()]};base64,${byId(`image-${name}`).textContent}`;
}

// Small pictures (8 x 8 digits) stay squares of color; larger ones are smoothed.
function picture(name, alt) {
  const image = el("img", { alt, draggable: "false", decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 64));
  image.src = imageSource(name);
  return image;
}

// Choices that outlive a page load, where the browser lets a page on disk keep any.
const memory = {
  get(key, otherwise) {
    try { return localStorage.getItem(`saekit.${key}`) ?? otherwise; } catch { return otherwise; }
  },
  set(key, value) {
    try { localStorage.setItem(`saekit.${key}`, value); } catch { /* private mode: the choice lasts as long as the page */ }
  },
};
