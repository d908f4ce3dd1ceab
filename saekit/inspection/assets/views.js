// Views beside the gallery and the features, each with an address: #/map, #/map/123, #/beside, #/beside/123/456.

const VIEWS = { map: () => Boolean(catalog.map), beside: () => Boolean(catalog.beside) };

// { name, latent, other, unknown } of the address, or null; `unknown`: the number that no latent has.
function viewInAddress() {
  const found = /^#\/(map|beside)(?:\/(\d+))?(?:\/(\d+))?(?:\?|$)/.exec(location.hash);
  if (!found || !VIEWS[found[1]]()) return null;
  const latent = found[2] === undefined ? null : Number(found[2]);
  const known = latent === null || latent < catalog.meta.latents;
  return { name: found[1], latent: known ? latent : null, unknown: known ? null : found[2], other: found[3] === undefined ? null : Number(found[3]) };
}

async function routeToView({ name, latent, other, unknown }) {
  state.latent = latent;
  markCurrentRow();
  scrollToCurrent();
  closeList();
  const titles = { map: "Map", beside: `Beside ${catalog.beside?.name}` };
  document.title = `${latent === null ? "" : `#${latent} · `}${titles[name]} · ${catalog.meta.title}`;
  if (unknown !== null) { show(noSuchLatent(unknown)); return; }
  await (name === "map" ? openMap(latent) : latent !== null && other !== null ? openPair(latent, other) : openBeside());
}

// Buttons of the header and of the list, for the views that there are.
function prepareViews() {
  for (const link of document.querySelectorAll("[data-view]")) link.hidden = !VIEWS[link.dataset.view]();
  byId("without-partner").closest("label").hidden = !catalog.beside;
  if (catalog.beside) about(byId("without-partner").closest("label"), withoutMeaning());
}

function openView(name) {
  if (VIEWS[name]()) location.hash = `#/${name}${name === "map" && state.latent !== null ? `/${state.latent}` : ""}`;
}
