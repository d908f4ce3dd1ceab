// Views beside the gallery and the features, each with an address: #/map, #/map/123, #/beside, #/beside/123/456.

const VIEWS = { map: () => Boolean(catalog.map), beside: () => Boolean(catalog.beside) };

// { name, latent, other, unknown } of the address, or null; `unknown`: [what no latent is called, the latents that there are, whose].
function viewInAddress() {
  const found = /^#\/(map|beside)(?:\/([^/?]*))?(?:\/([^/?]*))?(?:\?|$)/.exec(location.hash);
  if (!found || !VIEWS[found[1]]()) return null;
  const [latent, noLatent] = latentNamed(found[2], catalog.meta.latents);
  const [other, noOther] = found[1] === "beside" ? latentNamed(found[3], catalog.beside.latents, catalog.beside.name) : [null, null];
  return { name: found[1], latent, other, unknown: noLatent ?? noOther };
}

// What stands where nothing has this address; null: the gallery has it.
function noSuchAddress() {
  const [path] = decoded(location.hash).split("?");
  if (["", "#", "#/"].includes(path)) return null;
  const lacking = { map: "This page was made without a map: saekit inspect --map pca adds one.",
    beside: "This page has no other dictionary beside it: saekit inspect --beside adds one." }[/^#\/(map|beside)(?:\/|$)/.exec(path)?.[1]];
  return [section("hint", "No such page", null, el("p", {}, lacking ?? `Nothing has the address “${path}”. A feature has “#/f/” and its number.`),
    el("p", {}, el("a", { href: "#/" }, "To the gallery")))];
}

// [its number, null], or [null, what to say]; nothing was named: [null, null].
function latentNamed(text, latents, whose) {
  if (!text) return [null, null];
  const known = /^\d+$/.test(text) && Number(text) < latents;
  return known ? [Number(text), null] : [null, [decoded(text), latents, whose]];
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

async function routeToView({ name, latent, other, unknown }) {
  state.latent = latent;
  markCurrentRow();
  scrollToCurrent();
  closeList();
  const titles = { map: "Map", beside: `Beside ${catalog.beside?.name}` };
  document.title = `${latent === null ? "" : `#${latent} · `}${titles[name]} · ${catalog.meta.title}`;
  if (unknown !== null) { show(noSuchLatent(...unknown)); return; }
  await (name === "map" ? openMap(latent) : latent !== null ? openPair(latent, other) : openBeside());
}

// Buttons of the header and of the list, for the views that there are.
function prepareViews() {
  for (const link of document.querySelectorAll("[data-view]")) link.hidden = !VIEWS[link.dataset.view]();
  byId("without-partner").closest("label").hidden = !catalog.beside;
  if (catalog.beside) about(byId("without-partner").closest("label"), withoutMeaning());
}

function openView(name) {
  if (VIEWS[name]()) go(`#/${name}${name === "map" && state.latent !== null ? `/${state.latent}` : ""}`);
}
