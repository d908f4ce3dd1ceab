// What the page knows, and how it gets the rest: the catalog stands in the page, records arrive by shard.

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

let catalog = null;
let recordOf = null; // latent -> number of its record, -1 where none was made

async function loadCatalog() {
  catalog = await unpack(byId("catalog").textContent);
  recordOf = new Int32Array(catalog.meta.latents).fill(-1);
  catalog.records.forEach((latent, number) => { recordOf[latent] = number; });
}

const SHARDS_KEPT = 48;
const shards = new Map(); // shard number -> promise of its records; insertion order is age
const arrivals = new Map(); // shard number -> function that takes the packed text

// The one name that shards know.
window.saekitShard = (number, packed) => arrivals.get(number)?.(packed);

function shardText(number) {
  if (catalog.single_file) return Promise.resolve(byId(`shard-${number}`).textContent);
  return new Promise((resolve, reject) => {
    const source = `shards/${String(number).padStart(3, "0")}.js`;
    const script = el("script", { src: source });
    arrivals.set(number, resolve);
    const finish = () => { arrivals.delete(number); script.remove(); };
    script.addEventListener("load", finish);
    script.addEventListener("error", () => { finish(); reject(new Error(`${source} could not be read. Keep it beside index.html.`)); });
    document.head.append(script);
  });
}

function loadShard(number) {
  if (!shards.has(number)) {
    const records = shardText(number).then(unpack);
    records.catch(() => shards.delete(number));
    shards.set(number, records);
    if (shards.size > SHARDS_KEPT) shards.delete(shards.keys().next().value);
  }
  return shards.get(number);
}

async function loadRecord(latent) {
  const number = recordOf[latent];
  const records = await loadShard(Math.floor(number / catalog.shard_records));
  return records[number % catalog.shard_records];
}

const MIME = { png: "image/png", webp: "image/webp", jpg: "image/jpeg" };

function imageSource(name) {
  if (!catalog.single_file) return `images/${name}`;
  return `data:${MIME[name.split(".").pop()]};base64,${byId(`image-${name}`).textContent}`;
}

// Small pictures (8 x 8 digits) stay squares of colour; photographs are smoothed.
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
