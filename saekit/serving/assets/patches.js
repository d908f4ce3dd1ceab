// An image and its patches: cells over the picture that the model sees.

const MOST_FILE_BYTES = 11 * 2 ** 20; // the server takes 16 MB of JSON; base64 takes a third more
let dropped = null; // {base64}

function imageContext(context, number) {
  const [height, width] = context.grid;
  const frame = el("div", { class: "frame asked-image", tabindex: "0", "data-context": number,
    "aria-label": `Image of ${height} by ${width} patches`, style: { "--rows": String(height), "--columns": String(width) } },
  seenPicture(context.picture),
  el("div", { class: "overlays" }),
  el("div", { class: "cells" }, Array.from({ length: height * width }, (_, at) => el("span", { class: "cell", "data-at": at }))));
  frame.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("[data-at]");
    if (cell) point(number, Number(cell.dataset.at), cell);
  });
  frame.addEventListener("pointerleave", unpoint);
  frame.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-at]");
    if (cell) keep(number, Number(cell.dataset.at));
  });
  readByKeyboard(frame, height * width, 0, (at) => {
    const cell = frame.querySelector(`[data-at="${at}"]`);
    point(number, at, cell);
    return cell;
  });
  frame.addEventListener("keydown", (event) => {
    const cell = frame.querySelector(".reading");
    if (event.key !== "Enter" || !cell) return;
    event.preventDefault();
    keep(number, Number(cell.dataset.at));
  });
  frame.addEventListener("blur", unpoint);
  return frame;
}

// Over the picture what a latent does in each patch, as in the examples beside; null: only the picture.
function drawOverlay(context, number, latent, max) {
  const layers = document.querySelector(`#contexts [data-context="${number}"] .overlays`);
  const [height, width] = context.grid;
  const values = Array.from({ length: height * width }, (_, at) => actAt(number, at, latent) ?? 0);
  layers.replaceChildren(...(latent === null ? [] : overlays(values, context.grid, max)));
}

// What the image processor made of it, which patches lie on. Small pictures stay squares of color.
function seenPicture(base64) {
  const image = el("img", { alt: "The image as the model sees it", draggable: "false" });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 64));
  image.src = `data:image/png;base64,${base64}`;
  return image;
}

async function takeImage(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) throw new Error(`${file.name || "this"} is not an image.`);
  if (file.size > MOST_FILE_BYTES) throw new Error(`This file has ${count(Math.round(file.size / 1e6))} MB, at most 11 are read.`);
  dropped = { base64: await base64Of(file) };
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(new Error("The file cannot be read.")));
    reader.readAsDataURL(file);
  });
}
