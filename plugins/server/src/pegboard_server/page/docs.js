// The endpoints of openapi.json, as a table.
"use strict";

function shown(api, schema) {
  const name = schema && schema.$ref ? schema.$ref.split("/").pop() : null;
  return JSON.stringify(name ? api.components.schemas[name] : schema, null, 1);
}

function row(api, method, path, operation) {
  const line = document.createElement("tr");
  const call = document.createElement("td");
  call.textContent = `${method.toUpperCase()} ${path}`;
  const text = document.createElement("td");
  text.textContent = operation.description || operation.summary;
  const body = operation.requestBody && operation.requestBody.content["application/json"];
  if (body) {
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = "Body";
    const schema = document.createElement("pre");
    schema.textContent = shown(api, body.schema);
    details.append(summary, schema);
    text.append(details);
  }
  line.append(call, text);
  return line;
}

async function load() {
  const key = sessionStorage.getItem("pegboard-key");
  const response = await fetch("openapi.json", { headers: key ? { authorization: `Bearer ${key}` } : {} });
  if (!response.ok) throw new Error(response.status === 401 ? "open the chat page first: it asks for the key" : `the server answered ${response.status}`);
  const api = await response.json();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) document.getElementById("routes").append(row(api, method, path, operation));
  }
}

load().catch((error) => { document.getElementById("status").textContent = error.message; });
