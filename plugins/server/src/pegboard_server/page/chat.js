// A conversation with the server that this page came from. The key stays in this tab and is sent to this server alone.
"use strict";

const $ = (id) => document.getElementById(id);
let messages = [];
let running = null;

const key = () => sessionStorage.getItem("pegboard-key") || "";

function askForKey() {
  return new Promise((done) => {
    const dialog = $("ask");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("pegboard-key", $("key").value.trim());
      $("key").value = "";
      done();
    }, { once: true });
    dialog.showModal();
  });
}

async function call(path, options = {}) {
  for (;;) {
    const headers = { "content-type": "application/json" };
    if (key()) headers.authorization = `Bearer ${key()}`;
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    await askForKey();
  }
}

async function loadModels() {
  const response = await call("v1/models");
  if (!response.ok) throw new Error(await reason(response));
  for (const card of (await response.json()).data) $("model").append(new Option(card.id, card.id));
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function addTurn(role, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  $("log").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function request() {
  const system = $("system").value.trim();
  const body = {
    model: $("model").value || undefined,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("longest").value !== "") body.max_completion_tokens = Number($("longest").value);
  return JSON.stringify(body);
}

// Yields the values of a stream of server-sent events.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer() {
  running = new AbortController();
  setBusy(true);
  const turn = addTurn("assistant", "");
  const thoughts = document.createElement("div");
  thoughts.className = "reasoning";
  const words = document.createElement("div");
  const began = performance.now();
  let text = "", usage = null, first = 0;
  turn.append(words);
  try {
    const response = await call("v1/chat/completions", { method: "POST", body: request(), signal: running.signal });
    if (!response.ok) throw new Error(await reason(response));
    for await (const chunk of eventsOf(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const delta = chunk.choices.length ? chunk.choices[0].delta : {};
      if (delta.reasoning_content) {
        turn.prepend(thoughts);
        thoughts.textContent += delta.reasoning_content;
      }
      if (delta.content) {
        first = first || performance.now();
        text += delta.content;
        words.textContent = text;
      }
      $("log").scrollTop = $("log").scrollHeight;
    }
    const seconds = (performance.now() - (first || began)) / 1000;
    if (usage) $("status").textContent = `${usage.completion_tokens} tokens, ${(usage.completion_tokens / Math.max(seconds, 0.001)).toFixed(1)} a second`;
  } catch (error) {
    if (error.name === "AbortError") {
      $("status").textContent = "stopped";
    } else {
      const line = document.createElement("div");
      line.className = "error";
      line.textContent = error.message;
      turn.append(line);
    }
  }
  if (text) messages.push({ role: "assistant", content: text });
  else messages.pop();
  running = null;
  setBusy(false);
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  if (!busy) $("text").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  $("text").value = "";
  $("status").textContent = "";
  messages.push({ role: "user", content: text });
  addTurn("user", text);
  answer();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});

$("stop").addEventListener("click", () => running && running.abort());

$("new").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  $("log").replaceChildren();
  $("status").textContent = "";
});

loadModels().catch((error) => { $("status").textContent = error.message; });
