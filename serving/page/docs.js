"use strict";
// The OpenAPI document as a readable page; the document itself is what counts.

function element(tag, text, className = "") {
  const found = document.createElement(tag);
  found.textContent = text;
  found.className = className;
  return found;
}

function example(content) {
  const [kind, entry] = Object.entries(content ?? {})[0] ?? [];
  if (!kind) return [];
  const values = entry.example ? [entry.example] : Object.values(entry.examples ?? {}).map((one) => one.value);
  return values.map((value) => element("pre", JSON.stringify(value, null, 1)));
}

function operation(path, method, told) {
  const box = document.createElement("details");
  box.append(element("summary", `${method.toUpperCase()} ${path}`));
  box.append(element("p", told.description ?? told.summary ?? ""));
  if (told.requestBody) box.append(element("p", `Body: ${told.requestBody.description ?? ""} ${Object.keys(told.requestBody.content ?? {}).join(", ")}`));
  for (const one of told.parameters ?? []) {
    box.append(element("p", `${one.in} ${one.name}: ${one.description ?? ""} ${(one.schema?.enum ?? []).join(" | ")}`));
  }
  for (const [status, answer] of Object.entries(told.responses ?? {})) {
    const more = document.createElement("details");
    more.append(element("summary", `${status} ${answer.description ?? ""}`), ...example(answer.content));
    box.append(more);
  }
  return box;
}

fetch("openapi.json").then((response) => response.json()).then((found) => {
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [method, told] of Object.entries(methods)) document.getElementById("paths").append(operation(path, method, told));
  }
});
