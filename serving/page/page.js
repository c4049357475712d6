"use strict";
// The page: takes pictures, asks /predict, shows the answers. Everything is on this server; nothing else is called.

const byId = (id) => document.getElementById(id);
// `model` answers now; `listed` is the one whose heads stand on the page: that of the picture shown, swaps or not.
const state = { model: null, listed: null, pictures: [], at: -1, off: new Map(), key: "" };

// Asked for from this score on, so that the slider works without asking again.
const LEAST_SCORE = 0.01;

function headers() {
  return state.key ? { Authorization: `Bearer ${state.key}` } : {};
}

function complain(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

async function problemOf(response) {
  try {
    const found = await response.json();
    return `${found.title}: ${found.detail}. ${found.remedy}`;
  } catch {
    return `The service answered ${response.status}.`;
  }
}

async function call(path, options = {}) {
  return fetch(path, options).catch(() => { throw new Error("The service cannot be reached. Try again when it runs."); });
}

async function loadModel() {
  const response = await call("model", { headers: headers() });
  byId("keyform").hidden = response.status !== 401;
  if (!response.ok) {
    if (response.status !== 401 || state.key) complain(await problemOf(response));
    return;
  }
  state.model = await response.json();
  byId("model").textContent = `${state.model.name}, version ${state.model.version}, on ${state.model.engine.spec}`;
  if (!state.listed) {
    byId("threshold").value = Object.values(state.model.heads).find((head) => head.kind === "boxes")?.threshold ?? 0.5;
  }
  listHeads(state.model);
  show();
}

function checkbox(id, text, checked, change) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  Object.assign(box, { type: "checkbox", id, checked });
  box.addEventListener("change", () => change(box.checked));
  label.append(box, text);
  return label;
}

function listHeads(model) {
  state.listed = model;
  state.off = new Map(Object.keys(model.heads).map((name) => [name, { head: false, classes: new Set() }]));
  byId("heads").replaceChildren(
    ...Object.entries(model.heads).map(([name, head]) => {
      const off = state.off.get(name);
      const group = document.createElement("fieldset");
      const legend = document.createElement("legend");
      legend.append(checkbox(`head-${name}`, name, !off.head, (on) => { off.head = !on; show(); }));
      const classes = document.createElement("div");
      classes.className = "classes";
      head.classes.forEach((kind, index) => {
        if (head.kind === "mask" && index === 0) return;
        const line = checkbox(`class-${name}-${index}`, "", !off.classes.has(index), (on) => {
          on ? off.classes.delete(index) : off.classes.add(index);
          show();
        });
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.background = rgb(head.colours[index]);
        const value = document.createElement("span");
        value.className = "value";
        value.id = `value-${name}-${index}`;
        line.append(swatch, kind, value);
        classes.append(line);
      });
      group.append(legend, classes);
      return group;
    }),
  );
}

async function ask(picture) {
  const begun = performance.now();
  const response = await call(`predict?masks=png&threshold=${LEAST_SCORE}`, {
    method: "POST", body: picture.file, headers: headers(),
  });
  if (response.status === 401) byId("keyform").hidden = false;
  if (!response.ok) throw new Error(await problemOf(response));
  const answer = await response.json();
  if (answer.model.version !== state.model?.version) await loadModel();
  picture.model = state.model;
  if (Object.keys(answer.images[0].heads).some((name) => !picture.model?.heads[name])) {
    throw new Error("Another version is taking over: try again.");
  }
  picture.answer = answer.images[0];
  picture.timing = { ...picture.answer.milliseconds, service: answer.milliseconds, "round trip": performance.now() - begun };
  const { width, height } = picture.answer.size;
  picture.masks = {};
  for (const [name, head] of Object.entries(picture.answer.heads)) {
    if (head.kind === "mask") picture.masks[name] = await readMask(head.png, width, height);
  }
  const bitmap = await createImageBitmap(picture.file, { imageOrientation: "from-image" }).catch(() => null);
  // Chromium leaves WebP lying on its side: better no picture than one turned otherwise than its answer.
  picture.bitmap = bitmap && (bitmap.width - bitmap.height) * (width - height) >= 0 ? bitmap : null;
  if (!picture.bitmap) picture.answer.notes.push("this browser cannot show the picture itself");
}

async function take(files) {
  complain("");
  for (const file of files) {
    const picture = { file, name: file.name };
    byId("summary").textContent = `asking about ${file.name}`;
    try {
      await ask(picture);
    } catch (error) {
      complain(`${byId("error").textContent}\n${file.name}: ${error.message}`.trim());
      byId("summary").textContent = "";
      show();
      continue;
    }
    state.pictures.push(picture);
    state.at = state.pictures.length - 1;
    show();
  }
}

function shownClasses(name) {
  const off = state.off.get(name);
  if (!off || off.head) return new Set();
  return new Set(state.listed.heads[name].classes.map((_, index) => index).filter((index) => !off.classes.has(index)));
}

function showLabels(name, head, threshold, told) {
  head.probabilities.forEach((row, index) => {
    const place = byId(`value-${name}-${index}`);
    if (place) place.textContent = row.probability.toFixed(2);
  });
  const shown = shownClasses(name);
  const rows = head.probabilities.map((row, index) => ({ ...row, index })).filter((row) => shown.has(row.index));
  if (!rows.length) return;
  const chosen = head.kind === "multilabel"
    ? rows.filter((row) => row.probability >= threshold)
    : [rows.reduce((best, row) => (row.probability > best.probability ? row : best))];
  if (chosen.length) told.push(`${name}: ${chosen.map((row) => `${row.class} ${row.probability.toFixed(2)}`).join(", ")}`);
}

function show() {
  const threshold = Number(byId("threshold").value);
  byId("shown").textContent = threshold.toFixed(2);
  const picture = state.pictures[state.at];
  if (picture && picture.model !== state.listed) listHeads(picture.model);
  showCurl(picture, threshold);
  if (!picture) return;
  const { heads: spaces } = state.listed;
  const { width, height } = picture.answer.size;
  const canvas = byId("canvas");
  canvas.hidden = false;
  // Tiny pictures are shown enlarged, pixel by pixel; of large ones, lines and letters are drawn larger.
  const zoom = Math.ceil(200 / Math.max(width, height));
  Object.assign(canvas, { width: width * zoom, height: height * zoom });
  const context = canvas.getContext("2d");
  context.scale(zoom, zoom);
  context.imageSmoothingEnabled = false;
  if (picture.bitmap) context.drawImage(picture.bitmap, 0, 0, width, height);
  else context.fillRect(0, 0, width, height);
  const told = [];
  const scale = Math.max(1, Math.max(width, height) / 700) / zoom;
  const heads = Object.entries(picture.answer.heads);
  for (const [name, head] of heads.filter(([, one]) => one.kind === "mask")) {
    const shown = shownClasses(name);
    paintMask(context, picture.masks[name], width, height, spaces[name].colours, shown, Number(byId("strength").value));
    showShares(name, picture.masks[name], shown, told);
  }
  for (const [name, head] of heads.filter(([, one]) => one.kind === "boxes")) {
    const shown = shownClasses(name);
    const boxes = head.boxes.filter((found) => found.score >= threshold && shown.has(found.class_id));
    paintBoxes(context, boxes, spaces[name].colours, scale, width);
    if (shown.size) told.push(`${name}: ${boxes.length} ${boxes.length === 1 ? "box" : "boxes"}`);
    spaces[name].classes.forEach((_, index) => {
      byId(`value-${name}-${index}`).textContent = boxes.filter((found) => found.class_id === index).length;
    });
  }
  const labels = [];
  for (const [name, head] of heads) if (head.probabilities) showLabels(name, head, threshold, labels);
  paintLabels(context, labels, scale, width, height);
  told.push(...labels);
  const summary = [...told, ...picture.answer.notes].join("; ");
  byId("summary").textContent = summary;
  canvas.setAttribute("aria-label", `${picture.name}: ${summary}`);
  showStrip();
  byId("timing").tBodies[0].replaceChildren(...Object.entries(picture.timing).map(([stage, value]) => {
    const row = document.createElement("tr");
    for (const text of [stage, `${value.toFixed(1)} ms`]) row.insertCell().textContent = text;
    return row;
  }));
}

function showShares(name, mask, shown, told) {
  const counts = new Array(256).fill(0);
  for (const kind of mask) counts[kind]++;
  const parts = [];
  state.listed.heads[name].classes.forEach((kind, index) => {
    const place = byId(`value-${name}-${index}`);
    const share = `${((100 * counts[index]) / mask.length).toFixed(1)} %`;
    if (place) place.textContent = share;
    if (place && shown.has(index) && counts[index]) parts.push(`${kind} ${share}`);
  });
  if (parts.length) told.push(`${name}: ${parts.join(", ")}`);
}

function showStrip() {
  byId("strip").replaceChildren(...state.pictures.map((picture, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = picture.name;
    button.setAttribute("aria-pressed", String(index === state.at));
    button.addEventListener("click", () => {
      state.at = index;
      show();
      byId("strip").children[index].focus();
    });
    return button;
  }));
}

function showCurl(picture, threshold) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const options = [`threshold=${threshold.toFixed(2)}`];
  const on = [...state.off].filter(([, off]) => !off.head).map(([name]) => name);
  if (on.length && on.length < state.off.size) options.push(`heads=${on.map(encodeURIComponent).join(",")}`);
  const key = state.key ? ` -H 'Authorization: Bearer YOUR_KEY'` : "";
  const url = new URL(`predict?${options.join("&")}`, location.href).href;
  byId("curl").textContent = `curl${key} --data-binary ${quoted(`@${picture ? picture.name : "picture.jpg"}`)} ${quoted(url)}`;
}

byId("files").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
byId("example").addEventListener("click", async () => {
  try {
    const response = await call("page/example.jpg");
    take([new File([await response.blob()], "example.jpg", { type: "image/jpeg" })]);
  } catch (error) {
    complain(error.message);
  }
});
for (const id of ["threshold", "strength"]) byId(id).addEventListener("input", show);
byId("copy").addEventListener("click", async () => {
  const text = byId("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("curl"));
    byId("copy").textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => { byId("copy").textContent = "Copy"; }, 2000);
});
byId("keyform").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = byId("key").value;
  complain("");
  loadModel().catch((error) => complain(error.message));
});
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => { if (event.clipboardData.files.length) take([...event.clipboardData.files]); });
loadModel().catch((error) => complain(error.message));
