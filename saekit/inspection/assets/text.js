// Text examples: windows of shaded tokens, and whole contexts that open below them. One scale a feature: size, 0 to its maximum; the hue is the sign.

function textExample(example, max) {
  const first = example.position - (example.centre ?? 0);
  const line = tokenLine(example.tokens, example.values, example.centre, first, max, `Example, activation ${figure(example.act)}`);
  const item = el("li", { class: "text-example" }, about(el("span", { class: "act" }, figure(example.act)), "act"), line,
    el("div", { class: "source" }, about(el("span", { class: "source-names" }, sourceNodes(example)), "source"), contextButton(example, max)));
  return item;
}

// `first` is the position of tokens[0] in its context.
function tokenLine(tokens, values, centre, first, max, name) {
  const line = el("p", { class: "tokens", dir: "auto", tabindex: "0", "aria-label": name },
    tokens.map((token, place) => {
      const value = values[place] ?? 0;
      const share = clamp01(Math.abs(value) / max);
      const span = el("span", { class: tokenClass(share, value, place === centre), "data-place": place },
        token === "" ? el("span", { class: "word part" })
          : share > 0 || place === centre ? shadedToken(token) : tokenNodes(token, false));
      if (share > 0) span.style.setProperty("--t", share.toFixed(3));
      return span;
    }));
  // The window's first token hangs its space out to the left, so that all lines begin at one edge.
  if (/^ \S/.test(tokens[0])) line.classList.add("hanging");
  const tell = (place, box) => {
    const value = values[place] ?? null;
    markHistogram(value);
    showTip(box.left + box.width / 2, box.top, tokens[place] === "" ? "part of a character" : tokenText(tokens[place]), `${figure(value)} · position ${first + place}`);
  };
  line.addEventListener("pointerover", (event) => {
    const span = event.target.closest("[data-place]");
    if (span) tell(Number(span.dataset.place), span.getBoundingClientRect());
  });
  line.addEventListener("pointerleave", forget);
  readByKeyboard(line, tokens.length, centre ?? 0, (place) => {
    const span = line.querySelector(`[data-place="${place}"]`);
    tell(place, span.getBoundingClientRect());
    return span;
  });
  return line;
}

// --- whole contexts -------------------------------------------------------------------------------------------------

function contextButton(example, max) {
  if (!example.context_values || !contextPlace.has(example.example_id)) return null;
  return el("button", { type: "button", class: "link context-button", "aria-expanded": "false",
    onclick: (event) => toggleContext(event.currentTarget, example, max) }, "whole context");
}

async function toggleContext(button, example, max) {
  const item = button.closest("li");
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", String(open));
  item.querySelector(".context")?.remove();
  if (!open) return;
  const box = el("div", { class: "context" });
  item.append(box);
  try {
    const tokens = await loadContext(example.example_id);
    const values = new Array(tokens.length).fill(0);
    example.context_values.forEach(([position, value]) => { values[position] = value; });
    box.append(tokenLine(tokens, values, example.position, 0, max, `Whole context of ${tokens.length} tokens`));
    const centre = box.querySelector(".centre");
    box.scrollTop = centre ? centre.offsetTop - box.offsetTop - box.clientHeight / 2 : 0;
  } catch (error) {
    box.append(el("p", { class: "note" }, error.message));
  }
}

// The shading begins at the letters: a space belongs to the token, but a shaded one glues the word to its neighbour.
function shadedToken(token) {
  const spaced = /^ \S/.test(token);
  return [spaced ? " " : null, el("span", { class: "word" }, tokenNodes(spaced ? token.slice(1) : token, false))];
}

function tokenClass(share, value, centre) {
  return `token${share > 0 ? " lit" : ""}${value < 0 ? " cold" : ""}${share > 0.72 ? " strong" : ""}${centre ? " centre" : ""}`;
}

function sourceNodes(example) {
  const label = example.label === null ? null : el("span", { class: "data-label" }, plainNodes(example.label));
  const name = example.source || `document ${example.doc_id}`;
  return [label, el("span", { class: "source-name" }, plainNodes(name))];
}
