// Image examples: a picture and what its patches do under it. Overlays, all on the feature's one scale: a spotlight that leaves the
// active patches their colors, a heat map over a gray picture, and only the contour of the strongest patches.

const HEAT = [240, 122, 24]; // --heat of the style sheet, in both themes
const COLD = [38, 128, 235]; // --cold: below 0
const OUTLINED = 0.5; // of the maximum

// `enlarges`: a click does; not that of an enlarged one.
function imageExample(example, max, enlarges = true) {
  const name = imageName(example);
  const frame = el("div", enlarges ? { class: "frame", role: "button", "aria-label": `${name}, activation ${figure(example.act)}: enlarge`,
    onclick: () => zoom(example, max), onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); zoom(example, max); } } }
    : { class: "frame", "aria-label": `${name}: arrows read it patch by patch` },
  example.image === null ? el("span", { class: "no-image" }, "no thumbnail") : picture(example.image, ""));
  frame.tabIndex = 0;
  if (example.grid) addOverlays(frame, example, max, enlarges);
  return el("li", { class: "image-example" }, frame,
    el("div", { class: "under" }, about(el("span", { class: "act" }, figure(example.act)), "act"),
      about(el("span", { class: "data-label" }, plainNodes(name)), [example.source || name, example.label].filter(Boolean).join(" · "))));
}

// "crab #2" is picture 2 of what is called crab; names of files say nothing, where there is a label.
function imageName(example) {
  return /^(.+) #\d+$/.exec(example.source)?.[1] ?? example.label ?? (example.source || `image ${example.example_id}`);
}

function addOverlays(frame, example, max, enlarges) {
  const [height, width] = example.grid;
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.append(...overlays(example.values, example.grid, max));
  if (example.position >= 0) frame.append(patchBox("picked", example.position, example.grid));
  readPatches(frame, example, !enlarges);
}

// Veil, heat map and outline of what each patch does; the style sheet shows those of the chosen overlay.
function overlays(values, grid, max) {
  const [height, width] = grid;
  const shares = values.map((value) => clamp01(Math.abs(value) / max));
  const veil = el("canvas", { class: "veil", width, height, "aria-hidden": "true" });
  paint(veil, shares.map((share) => [0, 0, 0, 1 - share]));
  const heat = el("canvas", { class: "heat", width, height, "aria-hidden": "true" });
  paint(heat, shares.map((share, place) => [...(values[place] < 0 ? COLD : HEAT), share]));
  return [veil, heat, outline(shares, grid)];
}

// One pixel a patch, magnified by the style sheet without smoothing.
function paint(canvas, pixels) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  pixels.forEach(([red, green, blue, alpha], place) => image.data.set([red, green, blue, Math.round(255 * alpha)], 4 * place));
  context.putImageData(image, 0, 0);
}

// A line round the patches of at least half the maximum: light on a wider dark one, so that one of the two is seen on any color.
function outline(shares, [height, width]) {
  const inside = (row, column) => row >= 0 && column >= 0 && row < height && column < width && shares[row * width + column] >= OUTLINED;
  const lines = shares.flatMap((_, place) => {
    const [row, column] = [Math.floor(place / width), place % width];
    if (!inside(row, column)) return [];
    return [inside(row - 1, column) ? "" : `M${column} ${row}h1`, inside(row + 1, column) ? "" : `M${column} ${row + 1}h1`,
      inside(row, column - 1) ? "" : `M${column} ${row}v1`, inside(row, column + 1) ? "" : `M${column + 1} ${row}v1`];
  });
  return el("svg:svg", { class: "outline", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ["dark", "light"].map((tone) => el("svg:path", { class: tone, d: lines.join(""), "vector-effect": "non-scaling-stroke" })));
}

// Enlarged, the arrows go on from the patch that the pointer or a finger was on last.
function readPatches(frame, example, enlarged) {
  const [height, width] = example.grid;
  const start = Math.max(0, example.position);
  const tell = (place) => {
    const box = frame.getBoundingClientRect();
    const [row, column] = [Math.floor(place / width), place % width];
    frame.querySelector(".at")?.remove();
    markHistogram(example.values[place]);
    pointAtPatch(place);
    showTip(box.left + (column + 0.5) / width * box.width, box.top + row / height * box.height,
      figure(example.values[place]), `patch row ${row}, column ${column}`);
  };
  for (const kind of ["pointerdown", "pointermove"]) frame.addEventListener(kind, (event) => tell(patchUnder(event, frame, example.grid)));
  frame.addEventListener("pointerleave", forget);
  readByKeyboard(frame, example.values.length, start, (place) => {
    tell(place);
    return frame.appendChild(patchBox("at", place, example.grid));
  }, enlarged ? { columns: width, from: () => patchPointedAt() ?? start } : {});
}

function patchUnder(event, frame, [height, width]) {
  const box = frame.getBoundingClientRect();
  const cell = (offset, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor(offset / size * cells)));
  return cell(event.clientY - box.top, box.height, height) * width + cell(event.clientX - box.left, box.width, width);
}

function patchBox(className, place, [height, width]) {
  return el("span", { class: className, "aria-hidden": "true", style: {
    left: `${place % width / width * 100}%`, top: `${Math.floor(place / width) / height * 100}%`,
    width: `${100 / width}%`, height: `${100 / height}%` } });
}

// --- overlay --------------------------------------------------------------------------------------------------------

const OVERLAYS = { spotlight: "spotlight", heat: "heat map", contour: "contour", none: "picture" };

function setOverlay(overlay) {
  document.body.dataset.overlay = overlay;
  memory.set("overlay", overlay);
  for (const button of document.querySelectorAll("[data-sets-overlay]")) {
    button.setAttribute("aria-pressed", String(button.dataset.setsOverlay === overlay));
  }
}

function overlayButtons() {
  const current = document.body.dataset.overlay;
  return about(el("div", { class: "choice", role: "group", "aria-label": "Overlay" }, Object.entries(OVERLAYS).map(([overlay, name]) =>
    el("button", { type: "button", class: "button small", "data-sets-overlay": overlay, "aria-pressed": String(overlay === current),
      onclick: () => setOverlay(overlay) }, name))), "overlay");
}
