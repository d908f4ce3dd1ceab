// A picture enlarged: its patches, and beside it the latents that are active in the patch under the cursor. A click keeps a patch,
// so that the pointer can go to its latents.

let opened = null; // {example, patches: [[latent, value, ...]] or null, kept: number of a patch or null}
let patchPlace = null; // example -> its number in patches/

function zoom(example, max) {
  const panel = byId("zoom");
  const copy = imageExample(example, max, false);
  const frame = copy.querySelector(".frame");
  opened = { example, patches: null, kept: null };
  const side = example.grid && catalog.patches !== false ? el("div", { class: "patch-latents", id: "patch-latents", "aria-live": "polite" }) : null;
  panel.classList.toggle("with-patches", Boolean(side));
  panel.querySelector(".zoomed").replaceChildren(copy, ...(side ? [side] : []));
  byId("zoom-title").replaceChildren(...plainNodes(imageName(example)));
  byId("zoom-facts").textContent = [`activation ${figure(example.act)}`, `${figure(100 * Math.abs(example.act) / max, 3)} % of the maximum`,
    example.grid ? `${example.grid[0]} × ${example.grid[1]} patches` : null, example.source || null].filter(Boolean).join(" · ");
  byId("zoom-overlay").replaceChildren(example.grid ? overlayButtons() : "");
  forget();
  if (!panel.open) {
    panel.showModal();
    panel.append(tip); // what is modal covers all else
    panel.addEventListener("close", () => document.body.append(tip), { once: true });
  }
  frame.focus({ preventScroll: true });
  if (side) openPatches(frame, example);
}

async function openPatches(frame, example) {
  frame.addEventListener("click", (event) => {
    const at = patchUnder(event, frame, example.grid); // a finger has no place before it taps
    opened.at = at;
    opened.kept = opened.kept === at ? null : at;
    drawKept(frame, example);
    drawPatch(at);
  });
  try {
    const patches = await loadPatches(example.example_id);
    if (opened?.example !== example) return; // another was enlarged meanwhile
    opened.patches = patches;
    drawPatch(opened.kept ?? opened.at ?? Math.max(0, example.position));
  } catch (error) {
    byId("patch-latents").replaceChildren(el("p", { class: "note" }, error.message));
  }
}

// Of each patch [latent, value, ...]; null where the page has none of this picture.
async function loadPatches(example) {
  const { images, each_file: each } = catalog.patches ?? { images: [], each_file: 1 };
  patchPlace ??= new Map(images.map((id, number) => [id, number]));
  const number = patchPlace.get(example);
  return number === undefined ? null : (await loadFile("patches", Math.floor(number / each)))[number % each];
}

// What the pointer or the arrows are on; a patch that was kept stays.
function pointAtPatch(place) {
  if (!opened || !byId("zoom").open) return;
  opened.at = place;
  if (opened.kept === null) drawPatch(place);
}

function patchPointedAt() {
  return opened?.at ?? null;
}

function drawKept(frame, example) {
  frame.querySelector(".kept")?.remove();
  if (opened.kept !== null) frame.append(patchBox("kept", opened.kept, example.grid));
}

function drawPatch(place) {
  const side = byId("patch-latents");
  if (!side) return;
  const [row, column] = [Math.floor(place / opened.example.grid[1]), place % opened.example.grid[1]];
  side.dataset.place = place;
  side.replaceChildren(about(el("h3", {}, `Latents of row ${row}, column ${column}`), "patchLatents", true), ...patchRows(place));
}

function patchRows(place) {
  if (!opened.patches) {
    const stored = catalog.patches?.images.length ?? 0;
    return [el("p", { class: "note" }, stored ? `This page has the latents of ${count(stored)} of its pictures; this is not one of them.`
      : "This page was made without an index, so it does not say which latents are active in a patch.")];
  }
  const entries = pairs(opened.patches[place]);
  if (!entries.length) return [el("p", { class: "note" }, "No latent is active here, or this patch was not stored.")];
  return [el("ol", { class: "measures related" }, entries.map(([latent, value]) => about(el("li", { class: latent === currentLatent() ? "current" : null },
    recordOf[latent] < 0 ? el("span", { class: "number" }, `#${latent}`)
      : el("a", { href: `#/f/${latent}`, onclick: () => byId("zoom").close() }, `#${latent}`),
    previewOf(latent), bar(Math.abs(value) / catalog.max[latent]), el("span", { class: "value" }, figure(value, 3))), "patchLatents"))),
  el("p", { class: "note" }, opened.kept === place ? "Kept: click the patch again to go on." : "Click a patch to keep it.")];
}
