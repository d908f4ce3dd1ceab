// Histogram, bars and the color bar. Bars are SVG stretched to the box; figures stand beside them as text, so they keep their size.

const TICKS = 5; // the axis is marked at fifths of its length

// Signed codes: heat above 0, cold below. Everything is shaded by size, |value| over the feature's max.
function isSigned(record) {
  return record.histogram.edges[0] < 0;
}

function histogram(record, logarithmic) {
  const { edges, counts } = record.histogram;
  const top = counts.length ? Math.max(...counts) : 0;
  if (top <= 0) return el("p", { class: "note" }, "No activation was counted.");
  const height = heightScale(top, logarithmic);
  const width = edges[edges.length - 1] - edges[0];
  const bars = counts.map((n, bin) => {
    const middle = (edges[bin] + edges[bin + 1]) / 2;
    const shade = 0.3 + 0.7 * clamp01(Math.abs(middle) / record.max);
    return el("svg:rect", {
      class: middle < 0 ? "cold" : null,
      x: (edges[bin] - edges[0]) / width * 100 + 0.15, width: Math.max(0.1, 100 / counts.length - 0.3),
      y: 100 - height(n), height: height(n), "fill-opacity": shade.toFixed(3),
    });
  });
  const plot = el("div", { class: "plot", role: "img", "aria-label": histogramSummary(record) },
    el("svg:svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, bars),
    el("div", { class: "marker", hidden: true }));
  Object.assign(plot.dataset, { low: edges[0], high: edges[edges.length - 1] });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const bin = Math.min(counts.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * counts.length)));
    showTip(event.clientX, box.top, `${figure(edges[bin])} to ${figure(edges[bin + 1])}`, rowsText(counts[bin]));
  });
  plot.addEventListener("pointerleave", hideTip);
  return el("div", { class: "histogram" },
    el("div", { class: "y-axis", "aria-hidden": "true" }, heightTicks(top, logarithmic).map((n) =>
      el("span", { style: { bottom: `${height(n)}%` } }, tickCount(n)))),
    plot,
    el("div", { class: "x-axis", "aria-hidden": "true" }, Array.from({ length: TICKS + 1 }, (_, tick) =>
      el("span", { style: { left: `${tick / TICKS * 100}%` } }, figure(edges[0] + width * tick / TICKS, 3)))));
}

function histogramSummary(record) {
  const { counts, edges } = record.histogram;
  const [low, high] = isSigned(record) ? [edges[0], edges[edges.length - 1]] : [0, record.max];
  return `Histogram of ${rowsText(counts.reduce((sum, n) => sum + n, 0))} from ${figure(low)} to ${figure(high)}`;
}

function rowsText(n) {
  return `${count(n)} ${n === 1 ? "row" : "rows"}`;
}

// Percent of the plot's height. On the logarithmic axis the ground line is one half, so that a bin with one row can be seen.
function heightScale(top, logarithmic) {
  if (!logarithmic) return (n) => n / top * 100;
  return (n) => (n > 0 ? Math.log(n / 0.5) / Math.log(top / 0.5) * 100 : 0);
}

function heightTicks(top, logarithmic) {
  if (!logarithmic) {
    const rough = top / 3;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(1, unit * [1, 2, 5, 10].find((multiple) => unit * multiple >= rough * 0.8));
    return Array.from({ length: Math.floor(top / step) + 1 }, (_, tick) => tick * step);
  }
  const powers = Array.from({ length: Math.floor(Math.log10(top)) + 1 }, (_, power) => 10 ** power);
  const stride = Math.ceil(powers.length / 4);
  return powers.filter((_, power) => power % stride === 0);
}

// A line on the histogram at the value that the pointer is on elsewhere.
function markHistogram(value) {
  const marker = document.querySelector(".plot .marker");
  if (!marker) return;
  const { low, high } = marker.parentElement.dataset;
  marker.hidden = value === null || value === 0 || value < Number(low);
  if (value !== null) marker.style.left = `${clamp01((value - low) / (high - low)) * 100}%`;
}

function bar(share, className = "") {
  return el("span", { class: `bar-track ${className}`, "aria-hidden": "true" },
    el("span", { class: "bar-fill", style: { width: `${clamp01(share) * 100}%` } }));
}

// The one scale of a feature's page: from 0 to its maximum, or to either side of 0.
function colorBar(record) {
  const [low, signed] = isSigned(record) ? [figure(-record.max), true] : ["0", false];
  return about(el("div", { class: "color-bar", role: "img", "aria-label": `Shading from ${low} to ${figure(record.max)}` },
    el("span", {}, low), el("span", { class: signed ? "ramp signed" : "ramp" }), el("span", {}, figure(record.max))), "shading", true);
}

// --- what the decoder direction does to the whole vocabulary --------------------------------------------------------

// Counts on a logarithmic axis, so that the tails can be seen: the tokens raised and lowered most are marked there.
function logitHistogram(record) {
  const { edges, counts } = record.logit_histogram;
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const top = Math.max(...counts);
  const height = heightScale(top, true);
  const along = (value) => clamp01((value - low) / (high - low)) * 100;
  const bars = counts.map((n, bin) => el("svg:rect", { x: bin / counts.length * 100 + 0.15, width: 100 / counts.length - 0.3, y: 100 - height(n), height: height(n) }));
  const ends = ["raised", "lowered"].map((side) => [side, standsOut(record, side) ? record.logits[SIDES[side][1]] : record.logits[SIDES[side][1]].slice(0, standsOutSingly(record, side))])
    .filter(([, entries]) => entries.length);
  const marks = ends.flatMap(([side, entries]) => entries.map(({ value }) => el("span", { class: `mark ${side}`, style: { left: `${along(value)}%` } })));
  const plot = el("div", { class: "logit-plot", role: "img", "aria-label": logitSummary(counts, low, high, ends) },
    el("svg:svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, bars), marks);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const bin = Math.min(counts.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * counts.length)));
    showTip(event.clientX, box.top, `${figure(edges[bin])} to ${figure(edges[bin + 1])}`, logitTip(counts[bin], edges[bin], edges[bin + 1], bin === counts.length - 1, ends));
  });
  plot.addEventListener("pointerleave", hideTip);
  return el("figure", { class: "logit-histogram", id: "logit-histogram" },
    about(el("figcaption", {}, el("h4", { class: "explained" }, el("span", {}, `Effect on the ${count(counts.reduce((sum, n) => sum + n, 0))} tokens of the vocabulary`)),
      el("span", { class: "note" }, ends.map(([side, entries]) => el("span", { class: `key ${side}` }, entries.length === 1 ? `the one ${side}` : `the ${entries.length} ${side} most`)))), "logitHistogram"),
    el("div", { class: "histogram" },
      el("div", { class: "y-axis", "aria-hidden": "true" }, heightTicks(top, true).map((n) => el("span", { style: { bottom: `${height(n)}%` } }, tickCount(n)))),
      plot,
      el("div", { class: "x-axis", "aria-hidden": "true" }, Array.from({ length: TICKS + 1 }, (_, tick) =>
        el("span", { style: { left: `${tick / TICKS * 100}%` } }, figure(low + (high - low) * tick / TICKS, 2))))));
}

function logitSummary(counts, low, high, ends) {
  const tokens = counts.reduce((sum, n) => sum + n, 0);
  return [`Histogram of the effect on ${count(tokens)} tokens, from ${figure(low)} to ${figure(high)}`,
    ...ends.map(([side, entries]) => `${side} most: ${entries.slice(0, 3).map(({ token }) => tokenText(token)).join(", ")}`)].join("; ");
}

// "12 tokens: ' port', ' socket'": of a bin, with those of its tokens that are listed below.
function logitTip(n, low, high, isLast, ends) {
  const inside = ends.flatMap(([, entries]) => entries.filter(({ value }) => value >= low && (value < high || isLast)));
  const names = inside.slice(0, 4).map(({ token }) => tokenText(token)).join("  ");
  return `${count(n)} ${n === 1 ? "token" : "tokens"}${names ? `: ${names}` : ""}`;
}
