// The map of decoder directions: pan, zoom, point at a latent, open it. The filters of the list apply to it.

const NOWHERE = 65535; // saekit/inspection/map.py
const ZOOM_STEP = 1.6;
const MOST_ZOOM = 400;
const POINT_REACH = 14; // pixels from the pointer to a point
const [MOST_HITS, BEST_HITS] = [4000, 50]; // of a search: that have rings, and the largest
const [DIM, DIM_WHILE_SEARCHING] = [0.22, 0.12];

let points = null; // { x, y: Float32Array in the unit square, latents: Int32Array, place: latent -> number of its point, -1 for none }
const chart = { canvas: null, shown: null, at: -1, center: [0.5, 0.5], zoom: 1, neighbours: [], hits: null, buffers: null, pending: 0 };

function numbersOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, at) => view.getUint16(2 * at, true));
}

// Figures of the axes are those of the file; the unit square is the longer side of what is drawn.
async function loadMap() {
  if (points) return;
  const packed = await loadFile("map", 0);
  const [x, y] = [numbersOf(packed.x), numbersOf(packed.y)];
  const latents = Int32Array.from(x.keys()).filter((latent) => x[latent] !== NOWHERE || y[latent] !== NOWHERE);
  const place = new Int32Array(x.length).fill(-1);
  latents.forEach((latent, number) => { place[latent] = number; });
  const unit = (values) => Float32Array.from(latents, (latent) => values[latent] / (NOWHERE - 1));
  points = { x: unit(x), y: unit(y), latents, place, low: packed.low, step: packed.step };
}

async function openMap(latent) {
  main.setAttribute("aria-busy", "true");
  try {
    await loadMap();
  } catch (error) {
    show([section("hint", "Cannot show it", null, el("p", {}, error.message))]);
    return;
  }
  if (viewInAddress()?.name !== "map") return; // another was asked for meanwhile
  show([mapHeader(), mapFigure(), mapFacts()]);
  chart.at = latent === null ? -1 : points.place[latent];
  chart.neighbours = [];
  fitMap();
  listChanged();
  if (!byId("filters").contains(document.activeElement)) chart.canvas.focus({ preventScroll: true }); // its arrows, at once
  if (latent !== null && recordOf[latent] >= 0) {
    const record = await loadRecord(latent).catch(() => null);
    chart.neighbours = (record?.neighbours ?? []).map(({ index }) => points.place[index]).filter((point) => point >= 0);
  }
  sayPoint();
  drawSoon();
}

function isMapShown() {
  return viewInAddress()?.name === "map" && Boolean(chart.canvas?.isConnected);
}

function mapHeader() {
  const { kind, shares, latents } = catalog.map;
  const how = kind === "pca"
    ? `The ${count(latents)} latents that fire, by the two principal axes of their unit decoder rows. The axes hold ${percent(shares[0], 3)} and ${percent(shares[1], 3)} of the variance: `
      + `the other ${percent(1 - shares[0] - shares[1], 3)} is not on the map, so points that are near need not be alike.`
    : `The ${count(latents)} latents that fire, by UMAP of the cosine distances of their decoder rows (15 neighbors, seed 0). Near points are mostly alike; distances between groups, and their sizes, mean little.`;
  return el("header", { class: "gallery-header" }, el("h2", { id: "map-title", tabindex: "-1" }, "Map of decoder directions"), el("p", { class: "lead", id: "map-lead" }, how));
}

function mapFigure() {
  chart.canvas = el("canvas", { id: "map", class: "map-canvas", tabindex: "0", role: "application", "aria-roledescription": "map",
    "aria-label": `Map of ${count(points.latents.length)} latents. Arrows go to the nearest point in their direction, Enter opens it, plus and minus zoom, 0 shows all.`,
    "aria-describedby": "map-lead" });
  const zoomButton = (id, text, name, action) => el("button", { type: "button", class: "button", id, "aria-label": name, title: name, onclick: action }, text);
  listenOnMap(chart.canvas);
  return el("figure", { class: "map-figure" }, chart.canvas, el("div", { class: "map-buttons" },
    zoomButton("map-in", "+", "Zoom in (+)", () => zoomMap(ZOOM_STEP)), zoomButton("map-out", "−", "Zoom out (−)", () => zoomMap(1 / ZOOM_STEP)),
    zoomButton("map-all", "All", "Show all points (0)", () => { fitMap(); drawSoon(); })));
}

function mapFacts() {
  const mark = (name, text) => el("li", {}, el("span", { class: `map-mark ${name}`, "aria-hidden": "true" }), text);
  return el("div", { class: "map-facts" },
    el("p", { id: "map-at", role: "status" }),
    el("ul", { class: "map-legend" }, mark("lit", el("span", { id: "map-shown" })), mark("dim", "left out by search and filters"), state.latent === null ? null : mark("own", `#${state.latent}`), state.latent === null ? null : mark("near", "its nearest directions, by cosine")),
    el("p", { class: "note" }, "Every point is a row of the list, with the same filters. ",
      el("button", { type: "button", class: "button small", id: "map-to-list", onclick: goToList }, "Go to the list")));
}

function goToList() {
  if (getComputedStyle(byId("sidebar")).display === "none") toggleList();
  (rows.querySelector('[tabindex="0"]') ?? rows.querySelector(".row"))?.focus();
}

// --- where points are on the screen ------------------------------------------------------------------------------------

function fitMap() {
  chart.center = [...middleOfMap()];
  chart.zoom = 1;
}

// Pixels of the canvas: column = x * scale + left, row = top - y * scale.
function mapPlace() {
  const { width, height } = chart.canvas;
  const [right, upper] = middleOfMap().map((half) => 2 * half);
  const scale = chart.zoom * 0.94 * Math.min(width / Math.max(right, 1e-3), height / Math.max(upper, 1e-3));
  return { scale, left: width / 2 - chart.center[0] * scale, top: height / 2 + chart.center[1] * scale };
}

function middleOfMap() {
  points.middle ??= [points.x, points.y].map((values) => values.reduce((a, b) => Math.max(a, b), 0) / 2);
  return points.middle;
}

function pixelRatio() {
  return chart.canvas.width / Math.max(chart.canvas.clientWidth, 1);
}

// Keeps the place under (column, row) where it is.
function zoomMap(factor, column = chart.canvas.width / 2, row = chart.canvas.height / 2) {
  const before = mapPlace();
  const [x, y] = [(column - before.left) / before.scale, (before.top - row) / before.scale];
  chart.zoom = Math.min(MOST_ZOOM, Math.max(0.5, chart.zoom * factor));
  const after = mapPlace();
  chart.center = [x - (column - chart.canvas.width / 2) / after.scale, y + (row - chart.canvas.height / 2) / after.scale];
  drawSoon();
}

function moveMap(columns, rowsDown) {
  const { scale } = mapPlace();
  chart.center = [chart.center[0] - columns / scale, chart.center[1] + rowsDown / scale];
  drawSoon();
}

// --- drawing -----------------------------------------------------------------------------------------------------------

function listChanged() {
  if (!points || !chart.canvas?.isConnected) return;
  chart.shown = new Uint8Array(points.latents.length);
  for (const latent of view.order) if (points.place[latent] >= 0) chart.shown[points.place[latent]] = 1;
  const shown = chart.shown.reduce((sum, one) => sum + one, 0);
  // what a search found stands out of the cloud; filters only dim the rest
  const searching = Boolean(view.matches || view.answer);
  chart.hits = searching ? view.order.map((latent) => points.place[latent]).filter((point) => point >= 0) : null;
  document.querySelector(".map-legend .lit").classList.toggle("hit", searching);
  byId("map-shown").textContent = `${count(shown)} of ${count(points.latents.length)} latents${searching ? " found" : ""}`;
  drawSoon();
}

function drawSoon() {
  if (!chart.pending) chart.pending = requestAnimationFrame(() => { chart.pending = 0; drawMap(); });
}

function sizeMap() {
  const { canvas } = chart;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const ratio = Math.min(devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / Math.max(width * height, 1)));
  const size = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (chart.buffers && canvas.width === size[0] && canvas.height === size[1]) return;
  [canvas.width, canvas.height] = size;
  chart.buffers = { image: new ImageData(...size), lit: new Uint8Array(size[0] * size[1]), dim: new Uint8Array(size[0] * size[1]) };
}

// Points grow with the zoom, and are smaller where there are many.
function pointRadius() {
  const crowd = Math.sqrt(chart.canvas.width * chart.canvas.height / Math.max(points.latents.length, 1));
  return Math.min(5 * pixelRatio(), Math.max(0, crowd * 0.2 * Math.sqrt(chart.zoom)));
}

function drawMap() {
  if (!chart.canvas?.isConnected) return;
  performance.clearMeasures("map");
  const start = performance.now();
  sizeMap();
  const { canvas, buffers } = chart;
  const place = mapPlace();
  const radius = pointRadius();
  countPoints(points, chart.shown, place, canvas.width, canvas.height, radius, buffers.lit, buffers.dim);
  const lit = colorTable(themeColor(chart.hits ? "heat" : "cool", main), radius < 1 ? 0.7 : 0.6);
  paintPoints(buffers.image, buffers.lit, buffers.dim, lit, colorTable(themeColor("faint", main), chart.hits?.length ? DIM_WHILE_SEARCHING : DIM));
  const context = canvas.getContext("2d");
  context.putImageData(buffers.image, 0, 0);
  if (chart.hits && chart.hits.length <= MOST_HITS) drawHits(context, place, radius);
  drawMarks(context, place, radius);
  performance.measure("map", { start });
}

// Found points: a disc with a ring round it, on top of all others; the best are the largest, and on top of the rest.
function drawHits(context, { scale, left, top }, radius) {
  const ratio = pixelRatio();
  const sizeOf = (place) => Math.max(radius * 1.3, (place < BEST_HITS ? 5 : place < 10 * BEST_HITS ? 3.5 : 2.5) * ratio);
  const [fill, ground, ink] = ["heat", "raised", "ink"].map((name) => `rgb(${themeColor(name, main).join(" ")})`);
  const disc = (column, row, reach, color) => { context.fillStyle = color; context.beginPath(); context.arc(column, row, reach, 0, 2 * Math.PI); context.fill(); };
  for (let place = chart.hits.length - 1; place >= 0; place -= 1) {
    const [point, size] = [chart.hits[place], sizeOf(place)];
    const [column, row] = [points.x[point] * scale + left, top - points.y[point] * scale];
    disc(column, row, size + 3 * ratio, ink);
    disc(column, row, size + 1.75 * ratio, ground);
    disc(column, row, size, fill);
  }
}

function drawMarks(context, { scale, left, top }, radius) {
  const on = (point) => [points.x[point] * scale + left, top - points.y[point] * scale];
  const ratio = pixelRatio();
  const own = points.place[state.latent] ?? -1;
  const color = (name) => `rgb(${themeColor(name, main).join(" ")})`;
  const ground = color("raised");
  // a rim in the color of the ground, or the marks drown among the points
  const stroke = (path, strokeStyle, width) => {
    Object.assign(context, { strokeStyle: ground, lineWidth: (width + 2.5) * ratio });
    context.stroke(path);
    Object.assign(context, { strokeStyle, lineWidth: width * ratio });
    context.stroke(path);
  };
  const ring = (point, name, size) => {
    const path = new Path2D();
    path.arc(...on(point), radius + size * ratio, 0, 2 * Math.PI);
    stroke(path, color(name), 2);
  };
  if (own >= 0) {
    const lines = new Path2D();
    for (const near of chart.neighbours) { lines.moveTo(...on(own)); lines.lineTo(...on(near)); }
    stroke(lines, color("link"), 1);
    for (const near of chart.neighbours) ring(near, "link", 4);
    ring(own, "heat", 6);
  }
  if (chart.at >= 0 && chart.at !== own) ring(chart.at, "ink", 5);
}

// --- pointer and keys --------------------------------------------------------------------------------------------------

function pointText(point) {
  const latent = points.latents[point];
  const density = catalog.density[latent];
  const score = catalog.score[latent] ?? null;
  const facts = [density === null ? `max ${figure(catalog.max[latent])}` : `density ${percent(density)}`, score === null ? null : `score ${figure(score, 2)}`];
  return [`#${latent}`, titleNodes(latent).map((node) => node.textContent).join(""), facts.filter(Boolean).join(" · ")];
}

function sayPoint() {
  const line = byId("map-at");
  if (!line) return;
  if (chart.at < 0) { line.replaceChildren("Point at a latent, or use the arrow keys."); return; }
  const [number, , facts] = pointText(chart.at);
  line.replaceChildren(el("a", { href: `#/f/${points.latents[chart.at]}`, id: "map-open" }, number), " ", ...titleNodes(points.latents[chart.at]), ` · ${facts}`);
}

function pointAt(point, tell) {
  if (point !== chart.at) { chart.at = point; sayPoint(); drawSoon(); }
  if (point < 0 || !tell) { hideTip(); return; }
  const { scale, left, top } = mapPlace();
  const box = chart.canvas.getBoundingClientRect();
  const [number, title, facts] = pointText(point);
  showTip(box.left + (points.x[point] * scale + left) / pixelRatio(), box.top + (top - points.y[point] * scale) / pixelRatio(), `${number} ${title}`, facts);
}

function openPoint() {
  if (chart.at >= 0) go(`#/f/${points.latents[chart.at]}`);
}

function listenOnMap(canvas) {
  const fingers = new Map(); // pointer -> [column, row]
  let moved = 0;
  const onCanvas = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * pixelRatio(), (event.clientY - box.top) * pixelRatio()];
  };
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  const under = (event) => nearestPoint(points, chart.shown, mapPlace(), ...onCanvas(event), POINT_REACH * pixelRatio());
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); if (!fingers.size) moved = 0; fingers.set(event.pointerId, onCanvas(event)); });
  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) { pointAt(under(event), true); return; }
    const [before, now] = [fingers.get(event.pointerId), onCanvas(event)];
    const apart = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, now);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (moved > 4 * pixelRatio()) { hideTip(); moveMap((now[0] - before[0]) / fingers.size, (now[1] - before[1]) / fingers.size); }
    if (apart > 0) zoomMap(spread() / apart, ...onCanvas(event));
  });
  canvas.addEventListener("pointerup", (event) => {
    const tapped = fingers.delete(event.pointerId) && moved <= 4 * pixelRatio();
    if (!tapped) return;
    const point = under(event);
    // a finger has nothing to point with: its first tap says what is there, the second opens it
    const known = event.pointerType !== "touch" || point === chart.at;
    pointAt(point, event.pointerType === "touch");
    if (known) openPoint();
  });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); hideTip(); zoomMap(Math.exp(-event.deltaY * (event.deltaMode ? 0.06 : 0.002)), ...onCanvas(event)); }, { passive: false });
  canvas.addEventListener("blur", hideTip);
  canvas.addEventListener("keydown", onMapKey);
  new ResizeObserver(drawSoon).observe(canvas);
}

const TOWARDS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function onMapKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const actions = { "+": () => zoomMap(ZOOM_STEP), "=": () => zoomMap(ZOOM_STEP), "-": () => zoomMap(1 / ZOOM_STEP), 0: () => { fitMap(); drawSoon(); }, Enter: openPoint };
  const action = TOWARDS[event.key] ? () => stepOnMap(TOWARDS[event.key]) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  action();
}

function stepOnMap(direction) {
  const { width, height } = chart.canvas;
  const next = chart.at < 0 ? nearestPoint(points, chart.shown, mapPlace(), width / 2, height / 2, width + height) : pointTowards(points, chart.shown, chart.at, direction);
  if (next < 0) return;
  const { scale, left, top } = mapPlace();
  const [column, row] = [points.x[next] * scale + left, top - points.y[next] * scale];
  if (column < 0 || row < 0 || column > width || row > height) chart.center = [points.x[next], points.y[next]];
  pointAt(next, true);
}

// A link from a feature to its place.
function mapLink(latent) {
  return catalog.map && catalog.max[latent] !== 0 ? el("a", { class: "on-map", id: "on-map", href: `#/map/${latent}` }, "on the map") : null;
}

new MutationObserver(drawSoon).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSoon);
