// Examples: text as shaded tokens, images under a heat map. Both use one scale a feature: size, 0 to its maximum; the hue is the sign.

function textExample(example, max) {
  const line = el("p", { class: "tokens", dir: "auto", tabindex: "0", "aria-label": `Example, activation ${figure(example.act)}` },
    example.tokens.map((token, place) => {
      const value = example.values[place] ?? 0;
      const share = clamp01(Math.abs(value) / max);
      const span = el("span", { class: tokenClass(share, value, place === example.centre), "data-place": place },
        token === "" ? el("span", { class: "word part" })
          : share > 0 || place === example.centre ? shadedToken(token) : tokenNodes(token, false));
      if (share > 0) span.style.setProperty("--t", share.toFixed(3));
      return span;
    }));
  // The window's first token hangs its space out to the left, so that all lines begin at one edge.
  if (/^ \S/.test(example.tokens[0])) line.classList.add("hanging");
  const tell = (place, box) => {
    const value = example.values[place] ?? null;
    markHistogram(value);
    showTip(box.left + box.width / 2, box.top, example.tokens[place] === "" ? "part of a character" : tokenText(example.tokens[place]), `${figure(value)} · ${textPosition(example, place)}`);
  };
  line.addEventListener("pointerover", (event) => {
    const span = event.target.closest("[data-place]");
    if (span) tell(Number(span.dataset.place), span.getBoundingClientRect());
  });
  line.addEventListener("pointerleave", forget);
  readByKeyboard(line, example.tokens.length, example.centre ?? 0, (place) => {
    const span = line.querySelector(`[data-place="${place}"]`);
    tell(place, span.getBoundingClientRect());
    return span;
  });
  return el("li", { class: "text-example" },
    el("span", { class: "act" }, figure(example.act)), line, el("span", { class: "source" }, sourceNodes(example)));
}

// The shading begins at the letters: a space belongs to the token, but a shaded one glues the word to its neighbour.
function shadedToken(token) {
  const spaced = /^ \S/.test(token);
  return [spaced ? " " : null, el("span", { class: "word" }, tokenNodes(spaced ? token.slice(1) : token, false))];
}

function tokenClass(share, value, centre) {
  return `token${share > 0 ? " lit" : ""}${value < 0 ? " cold" : ""}${share > 0.72 ? " strong" : ""}${centre ? " centre" : ""}`;
}

// `position` is that of the centre token in its context.
function textPosition(example, place) {
  return `position ${example.position - (example.centre ?? 0) + place}`;
}

function sourceNodes(example) {
  const label = example.label === null ? null : el("span", { class: "data-label" }, plainNodes(example.label));
  const name = example.source || `document ${example.doc_id}`;
  return [label, el("span", { class: "source-name", title: name }, plainNodes(name))];
}

function imageExample(example, max) {
  const name = example.label ?? (example.source || `image ${example.example_id}`);
  const frame = el("div", { class: "frame", role: "img", "aria-label": `${name}, activation ${figure(example.act)}` },
    example.image === null ? el("span", { class: "no-image" }, "no thumbnail") : picture(example.image, ""));
  if (example.grid) addHeatMap(frame, example, max);
  return el("li", { class: "image-example" }, frame,
    el("div", { class: "under" }, el("span", { class: "act" }, figure(example.act)),
      el("span", { class: "data-label", title: example.source || name }, plainNodes(name))));
}

function addHeatMap(frame, example, max) {
  const [height, width] = example.grid;
  const canvas = el("canvas", { class: "heat", width, height, "aria-hidden": "true" });
  paint(canvas, example.values, max);
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.append(canvas);
  if (example.position >= 0) frame.append(patchBox("picked", example.position, example.grid));
  const tell = (place) => {
    const box = frame.getBoundingClientRect();
    const [row, column] = [Math.floor(place / width), place % width];
    markHistogram(example.values[place]);
    showTip(box.left + (column + 0.5) / width * box.width, box.top + row / height * box.height,
      figure(example.values[place]), `patch row ${row}, column ${column}`);
  };
  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const cell = (offset, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor(offset / size * cells)));
    tell(cell(event.clientY - box.top, box.height, height) * width + cell(event.clientX - box.left, box.width, width));
  });
  frame.addEventListener("pointerleave", forget);
  frame.tabIndex = 0;
  readByKeyboard(frame, example.values.length, Math.max(0, example.position), (place) => {
    frame.querySelector(".reading")?.remove();
    tell(place);
    return frame.appendChild(patchBox("at", place, example.grid));
  });
}

function patchBox(className, place, [height, width]) {
  return el("span", { class: className, "aria-hidden": "true", style: {
    left: `${place % width / width * 100}%`, top: `${Math.floor(place / width) / height * 100}%`,
    width: `${100 / width}%`, height: `${100 / height}%` } });
}

// One pixel a patch, magnified by the style sheet without smoothing. The hue is the theme's, the value is the opacity.
function paint(canvas, values, max) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, place) => {
    const [red, green, blue] = value < 0 ? COLD : HEAT;
    pixels.data.set([red, green, blue, Math.round(255 * clamp01(Math.abs(value) / max))], 4 * place);
  });
  context.putImageData(pixels, 0, 0);
}

const HEAT = [240, 122, 24]; // --heat of the style sheet, in both themes
const COLD = [38, 128, 235]; // --cold: below 0

function forget() {
  hideTip();
  markHistogram(null);
}

// Arrows step through an example that was reached by Tab. One that was clicked leaves them to the page: previous, next feature.
let lastTouch = "keyboard";
document.addEventListener("pointerdown", () => { lastTouch = "pointer"; }, true);
document.addEventListener("keydown", () => { lastTouch = "keyboard"; }, true);

function readByKeyboard(node, length, start, show) {
  let place = null;
  const move = (to) => {
    node.querySelector(".reading")?.classList.remove("reading");
    place = Math.min(length - 1, Math.max(0, to));
    show(place).classList.add("reading");
  };
  node.addEventListener("focus", () => { if (lastTouch === "keyboard") move(start); });
  node.addEventListener("blur", () => {
    node.querySelector(".at")?.remove();
    node.querySelector(".reading")?.classList.remove("reading");
    place = null;
    forget();
  });
  node.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (place === null || !step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    move(place + step);
  });
}

const tip = byId("tip");

function showTip(x, y, strong, rest) {
  tip.replaceChildren(el("b", {}, strong), el("span", {}, rest));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const above = y - height - 8;
  tip.style.left = `${Math.max(4, Math.min(innerWidth - width - 4, x - width / 2))}px`;
  tip.style.top = `${above < 4 ? y + 28 : above}px`;
}

function hideTip() {
  tip.hidden = true;
}
