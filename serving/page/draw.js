"use strict";
// Drawing of one answer over its picture; knows nothing of the page around it.

function rgb(colour, alpha = 1) {
  return `rgba(${colour[0]}, ${colour[1]}, ${colour[2]}, ${alpha})`;
}

// The class index of every pixel, from the answer's index PNG.
async function readMask(png, width, height) {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const plane = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  plane.drawImage(image, 0, 0);
  const pixels = plane.getImageData(0, 0, width, height).data;
  return Uint8Array.from({ length: width * height }, (_, i) => pixels[4 * i]);
}

function paintMask(context, mask, width, height, colours, shown, strength) {
  const layer = new OffscreenCanvas(width, height);
  const painter = layer.getContext("2d");
  const data = painter.createImageData(width, height);
  for (let i = 0; i < mask.length; i++) {
    const kind = mask[i];
    if (kind === 0 || !shown.has(kind)) continue;
    data.data.set(colours[kind], 4 * i);
    data.data[4 * i + 3] = Math.round(255 * strength);
  }
  painter.putImageData(data, 0, 0);
  context.drawImage(layer, 0, 0);
}

// Text on a ground of its colour, from (x, lower edge) or the nearest place inside; its upper edge.
function paintTag(context, text, x, bottom, colour, scale, width) {
  const size = 13 * scale, height = size + 4 * scale;
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const wide = context.measureText(text).width + 6 * scale;
  const left = Math.max(0, Math.min(x, width - wide));
  const top = Math.max(0, bottom - height);
  context.fillStyle = rgb(colour, 0.9);
  context.fillRect(left, top, wide, height);
  context.fillStyle = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110 ? "#000" : "#fff";
  context.fillText(text, left + 3 * scale, top + 2 * scale);
  return top;
}

function paintBoxes(context, boxes, colours, scale, width) {
  context.lineWidth = 2 * scale;
  for (const found of boxes) {
    const [x1, y1, x2, y2] = found.box;
    const colour = colours[found.class_id];
    context.strokeStyle = rgb(colour);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    paintTag(context, `${found.class} ${found.score.toFixed(2)}`, x1, y1, colour, scale, width);
  }
}

// The image's own labels, one line each, in its lower left corner, where they hide no box's tag.
function paintLabels(context, lines, scale, width, height) {
  lines.reduceRight((bottom, line) => paintTag(context, line, 0, bottom, [0, 0, 0], scale, width), height);
}
