// Latents that are added or ablated: their strengths, in the unit that is shown, and the sliders.

const SCALED = { most: 8, step: 0.1, first: 1 }; // in multiples of the latent's largest activation
const UNKNOWN = { most: 40, step: 0.5, first: 4 }; // in the code's own units, where nothing says how large its activations are
const edits = new Map(); // latent -> {strength, ablate, brief}: strength in the unit that is shown

function isRaw() {
  return byId("raw").checked;
}

// The same edit in the other unit. A latent that never fired has no multiples: its number stays.
function converted({ strength, brief: { max } }, toRaw) {
  return max > 0 ? tidy(toRaw ? strength * max : strength / max) : strength;
}

// 6.000000000000001 is 6: what two conversions leave.
function tidy(number) {
  return Number(number.toPrecision(14));
}

// Where a slider ends, and its steps: as far in either unit, in steps of 1, 2 or 5 of some power of ten.
function rangeOf({ index, max }) {
  if (!isRaw()) return SCALED;
  const size = max > 0 ? max : input.answer ? Math.abs(largestIn(index)) : 0;
  if (!(size > 0)) return UNKNOWN;
  const step = roundStep(SCALED.step * size);
  return { most: tidy(Math.ceil((SCALED.most * size) / step) * step), step, first: tidy(SCALED.first * size) };
}

function roundStep(size) {
  const power = 10 ** Math.floor(Math.log10(size));
  return tidy([5, 2, 1].find((digit) => digit * power <= size * 1.000001) * power);
}

function addEdit(latent) {
  const brief = briefOf(latent);
  choose(latent);
  if (!edits.has(latent)) edits.set(latent, { strength: rangeOf(brief).first, ablate: false, brief });
  drawEdits();
  byId("edits").querySelector(`[data-latent="${latent}"] input[type=range]`)?.focus({ preventScroll: true });
  byId("steer").scrollIntoView({ block: "nearest" });
}

function drawEdits() {
  byId("edits").replaceChildren(...[...edits].map(([latent, edit]) => editRow(latent, edit)));
  byId("no-edits").hidden = edits.size > 0;
  byId("run").disabled = edits.size === 0;
}

function editRow(latent, edit) {
  const { most, step } = rangeOf(edit.brief);
  const { label, max } = edit.brief;
  const unit = max > 0 ? (isRaw() ? `max ${figure(max, 3)}` : `× ${figure(max, 3)}`) : "";
  const slider = el("input", { type: "range", min: -most, max: most, step, "aria-label": `Strength of latent ${latent}` });
  const number = el("input", { type: "number", class: "field", step, "aria-label": `Strength of latent ${latent}, as a number` });
  const ablate = el("input", { type: "checkbox" });
  const take = (value, from) => {
    edit.strength = Number.isFinite(value) ? value : 0;
    if (from !== slider) {
      // a number beyond the ends moves them
      const end = Math.max(most, tidy(Math.ceil(Math.abs(edit.strength) / step) * step));
      Object.assign(slider, { min: String(-end), max: String(end) });
      slider.value = String(edit.strength);
    }
    if (from !== number) number.value = String(Number(edit.strength.toPrecision(5)));
    slider.setAttribute("aria-valuetext", `${number.value} ${unit}`.trim());
  };
  take(edit.strength, null);
  ablate.checked = edit.ablate;
  slider.disabled = edit.ablate;
  number.disabled = edit.ablate;
  slider.addEventListener("input", () => { take(slider.valueAsNumber, slider); rerun(); });
  number.addEventListener("input", () => { take(number.valueAsNumber, number); rerun(); });
  ablate.addEventListener("change", () => { edit.ablate = ablate.checked; slider.disabled = number.disabled = ablate.checked; rerun(); });
  return el("li", { class: "edit", "data-latent": latent },
    el("button", { type: "button", class: "link-button edit-name", title: "Shade by it", onclick: () => choose(latent) }, `#${latent}`, label ? el("span", { class: "name" }, plainNodes(label)) : null),
    slider, number, el("span", { class: "unit" }, unit),
    el("label", { class: "check" }, ablate, " ablate"),
    el("button", { type: "button", class: "button quiet icon", "aria-label": `Remove latent ${latent}`, onclick: () => { edits.delete(latent); drawEdits(); } }, "×"));
}
