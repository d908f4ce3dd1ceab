// The filter by density: its spread, and two handles on a logarithmic axis.

const SPREAD_BINS = 48;

function prepareDensity() {
  const positive = catalog.density.filter((density) => density > 0);
  const applies = positive.length > 0;
  byId("density-filter").hidden = !applies;
  if (!applies) {
    view.sort = byId("sort").value = "max";
    byId("sort").querySelector("[value=density]").disabled = true;
    return;
  }
  const low = Math.floor(Math.log10(positive.reduce((a, b) => Math.min(a, b))));
  view.axis = [Math.min(low, -1), 0];
  for (const [id, end] of [["density-low", 0], ["density-high", 1]]) {
    Object.assign(byId(id), { min: view.axis[0], max: view.axis[1], step: 0.05 });
    byId(id).value = view.axis[end];
  }
  drawSpread(positive);
}

function drawSpread(positive) {
  const counts = new Array(SPREAD_BINS).fill(0);
  for (const density of positive) counts[Math.min(SPREAD_BINS - 1, Math.floor(onAxis(density) * SPREAD_BINS))] += 1;
  const top = Math.max(...counts);
  byId("density-spread").replaceChildren(...counts.map((n, bin) => el("svg:rect", {
    x: bin + 0.1, width: 0.8, height: n ? Math.max(3, n / top * 100) : 0, y: 100 - (n ? Math.max(3, n / top * 100) : 0) })));
}

// 0 to 1 along the logarithmic axis of densities.
function onAxis(density) {
  return clamp01((Math.log10(density) - view.axis[0]) / (view.axis[1] - view.axis[0]));
}

function readRange() {
  if (!view.axis) return null;
  const ends = [Number(byId("density-low").value), Number(byId("density-high").value)];
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  byId("low-label").textContent = shortPercent(10 ** low);
  byId("high-label").textContent = shortPercent(10 ** high);
  const span = view.axis[1] - view.axis[0];
  byId("density-spread").querySelectorAll("rect").forEach((rect, bin) => {
    const middle = view.axis[0] + (bin + 0.5) / SPREAD_BINS * span;
    rect.classList.toggle("out", middle < low || middle > high);
  });
  // At its end a slider restricts nothing: the least density on the axis need not be a round power.
  return { low: low <= view.axis[0] ? 0 : 10 ** low, high: high >= view.axis[1] ? Infinity : 10 ** high };
}
