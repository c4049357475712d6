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

function paintBoxes(context, boxes, colours, scale) {
  const size = Math.max(11, 13 * scale);
  context.lineWidth = Math.max(1, 2 * scale);
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const found of boxes) {
    const [x1, y1, x2, y2] = found.box;
    const colour = colours[found.class_id];
    context.strokeStyle = rgb(colour);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const text = `${found.class} ${found.score.toFixed(2)}`;
    const width = context.measureText(text).width + 6 * scale;
    const top = Math.max(0, y1 - size - 4 * scale);
    context.fillStyle = rgb(colour, 0.9);
    context.fillRect(x1, top, width, size + 4 * scale);
    context.fillStyle = "#000";
    context.fillText(text, x1 + 3 * scale, top + 2 * scale);
  }
}
