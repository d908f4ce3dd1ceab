// The effect of one latent at half and at full strength, beside random directions and random latents of the same norm.

const CONTROLS = "Random directions and random latents of the same norm, in the latent's place: an effect that they have too is none of this latent.";
const DOSE_COLUMNS = {
  dose: null,
  effect: "Mean change of the log-probability of the targets together, in nats, over the clean text (of an image: of the class).",
  "random directions": `Smallest and largest effect of eight. ${CONTROLS}`,
  "random latents": `Smallest and largest effect of eight. ${CONTROLS}`,
  KL: "KL(clean ‖ steered), mean per token, in nats.",
  perplexity: "Of the text that is written at this dose, under the clean model.",
};

function isCompared() {
  return byId("controls").checked;
}

// The doses of a question: half and all of the strength of the one latent.
function dosesOf(active, ablated) {
  if (!isCompared()) return {};
  if (active.length !== 1 || ablated.length) throw new Error("“Compare with controls” takes one latent, which is not ablated.");
  const [[, { strength }]] = active;
  if (strength === 0) throw new Error("“Compare with controls” takes a strength other than 0.");
  const token = byId("target").value;
  const quoted = QUOTED.exec(token);
  const named = quoted ? quoted[1] ?? quoted[2] ?? quoted[3] : token;
  return { dose: [strength / 2, strength], ...(named ? { targets: [named] } : {}) };
}

function drawDoses({ dose, of, targets, controls, verdict, scope }) {
  const columns = Object.entries(DOSE_COLUMNS).filter(([name]) => name !== "perplexity" || dose[0].perplexity !== undefined);
  const spread = (kind, strength) => {
    const { effects } = controls.find((each) => each.kind === kind && each.strength === strength);
    return effects.length ? `${signed(Math.min(...effects))} to ${signed(Math.max(...effects))}` : MISSING;
  };
  const cells = (each) => [signed(each.effect), spread("random direction", each.strength), spread("random latent", each.strength), figure(each.kl),
    ...(each.perplexity === undefined ? [] : [figure(each.perplexity)])];
  const signs = (number) => `${number < 0 ? "−" : "+"}${Number(Math.abs(number).toPrecision(5))}`;
  byId("doses").replaceChildren(...[
    el("h4", {}, "Beside controls"),
    el("p", { class: "targets" }, "Effect on ", targets.flatMap((target, at) => [at ? " " : null, el("span", { class: "chip" }, tokenNodes(target, true))])),
    el("table", { class: "figures" },
      el("thead", {}, el("tr", {}, columns.map(([name, tip]) => { const head = el("th", { scope: "col" }, name); return tip ? about(head, tip) : head; }))),
      el("tbody", {}, dose.map((each) => el("tr", {}, el("th", { scope: "row" }, signs(each.strength)), cells(each).map((text) => el("td", {}, text)))))),
    dose.length < of ? el("p", { class: "note" }, `${dose.length} of ${of} doses`) : null,
    verdict ? el("p", { class: "verdict" }, el("strong", {}, `Verdict: ${verdict}.`)) : null,
    scope ? el("p", { class: "note", id: "scope" }, scope) : null,
  ].filter(Boolean));
}

// As `saekit steer` writes effects.
function signed(value) {
  return value === null ? MISSING : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
}
