// Points of the map as pixels. 262,144 of them are drawn by hand into typed arrays: so many calls of a drawing function would
// take longer than a frame.

const MOST_PIXELS = 4e6; // of the canvas

// Offsets of the pixels of a round point, in an image of that width.
function stampOf(radius, width) {
  const reach = Math.floor(radius);
  const offsets = [];
  for (let dy = -reach; dy <= reach; dy += 1) {
    for (let dx = -reach; dx <= reach; dx += 1) if (dx * dx + dy * dy <= radius * radius) offsets.push(dy * width + dx);
  }
  return Int32Array.from(offsets);
}

// How many points lie over each pixel: of those that `shown` marks and of the others.
function countPoints(points, shown, place, width, height, radius, lit, dim) {
  const { x, y } = points;
  const { scale, left, top } = place;
  const stamp = stampOf(radius, width);
  const reach = Math.floor(radius);
  const [most, low] = [width - 1 - reach, height - 1 - reach];
  lit.fill(0);
  dim.fill(0);
  for (let i = 0; i < x.length; i += 1) {
    const column = Math.round(x[i] * scale + left);
    const row = Math.round(top - y[i] * scale);
    if (column < reach || row < reach || column > most || row > low) continue;
    const target = shown[i] ? lit : dim;
    const at = row * width + column;
    for (let k = 0; k < stamp.length; k += 1) if (target[at + stamp[k]] < 255) target[at + stamp[k]] += 1;
  }
}

// One color for each number of points on a pixel: more of them are less transparent. In the byte order of image data.
function colorTable([red, green, blue], single) {
  const bytes = new Uint8ClampedArray(256 * 4);
  for (let n = 1; n < 256; n += 1) bytes.set([red, green, blue, 255 * (1 - (1 - single) ** n)], 4 * n);
  return new Uint32Array(bytes.buffer);
}

function paintPoints(image, lit, dim, litColors, dimColors) {
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < pixels.length; at += 1) pixels[at] = lit[at] ? litColors[lit[at]] : dimColors[dim[at]];
}

// A color of the theme as [red, green, blue].
function themeColor(name, near) {
  const probe = el("span", { style: { color: `var(--${name})` } });
  near.append(probe);
  const color = getComputedStyle(probe).color.match(/\d+(\.\d+)?/g).slice(0, 3).map(Number);
  probe.remove();
  return color;
}

// The point that is nearest to a place on the screen, at most `within` pixels away; -1 where there is none. Of those shown only.
function nearestPoint(points, shown, { scale, left, top }, column, row, within) {
  const { x, y } = points;
  let best = within * within;
  let found = -1;
  for (let i = 0; i < x.length; i += 1) {
    if (!shown[i]) continue;
    const [dx, dy] = [x[i] * scale + left - column, top - y[i] * scale - row];
    const distance = dx * dx + dy * dy;
    if (distance <= best) { best = distance; found = i; }
  }
  return found;
}

// The nearest point in one of four directions: right, left, up, down as [1, 0] and so on; -1 at the edge.
function pointTowards(points, shown, from, [right, up]) {
  const { x, y } = points;
  let best = Infinity;
  let found = -1;
  for (let i = 0; i < x.length; i += 1) {
    if (!shown[i] || i === from) continue;
    const [dx, dy] = [x[i] - x[from], y[i] - y[from]];
    const along = dx * right + dy * up;
    const across = Math.abs(dx * up) + Math.abs(dy * right);
    if (along <= 0 || across > along) continue;
    const distance = along * along + 4 * across * across;
    if (distance < best) { best = distance; found = i; }
  }
  return found;
}
