// A conversation with the server that this page came from. The key stays in this tab and is sent to this server alone.
// Whatever comes from a model or from a person becomes text, never markup.
"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "pegboard-key";
const empty = $("empty");
let messages = [];
let running = null;

const key = () => sessionStorage.getItem(KEY) || "";

// Resolves to whether a key was given. refused: whether the one before was wrong.
function askForKey(refused) {
  return new Promise((done) => {
    const dialog = $("ask");
    $("refused").hidden = !refused;
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" ? $("key").value.trim() : "";
      $("key").value = "";
      if (given) sessionStorage.setItem(KEY, given);
      done(given !== "");
    }, { once: true });
    dialog.showModal();
  });
}

// Calls the server, with a key as soon as it asks for one. Throws where there is no answer, or none but an error.
async function call(path, options = {}) {
  for (;;) {
    const headers = { "content-type": "application/json" };
    if (key()) headers.authorization = `Bearer ${key()}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw new Error(await reason(response));
    if (!(await askForKey(key() !== ""))) throw new Error("The server answers nobody without a key.");
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

async function loadModels() {
  const cards = (await (await call("v1/models")).json()).data;
  $("model").replaceChildren(...cards.map((card) => new Option(card.id, card.id)));
}

function element(kind, name, text = "") {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function addTurn(role, text) {
  const turn = element("div", `turn ${role}`, text);
  empty.remove();
  $("log").append(turn);
  $("log").scrollTop = $("log").scrollHeight;
  return turn;
}

// Shows a text whose fenced and quoted parts are code.
function show(place, text) {
  place.replaceChildren(...text.split(/^```[^\n]*\n?/m).flatMap((part, index) => {
    if (index % 2) return [element("pre", "", part.replace(/\n$/, ""))];
    const pieces = part.replace(index ? /^\n/ : "", "").split(/`([^`\n]+)`/);
    return pieces.map((piece, number) => number % 2 ? element("code", "", piece) : document.createTextNode(piece));
  }));
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

// Reads an answer into `turn` while it comes; gives its text, also where it ends early, and what ended it.
async function read(turn, signal) {
  const thoughts = element("div", "reasoning"), words = element("div", "words"), log = $("log");
  turn.append(words);
  let text = "", usage = null, first = 0;
  try {
    const response = await call("v1/chat/completions", { method: "POST", body: request(), signal });
    for await (const chunk of eventsOf(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const delta = chunk.choices.length ? chunk.choices[0].delta : {};
      const below = log.scrollHeight - log.scrollTop - log.clientHeight;
      if (delta.reasoning_content) {
        turn.prepend(thoughts);
        thoughts.textContent += delta.reasoning_content;
      }
      if (delta.content) {
        first = first || performance.now();
        text += delta.content;
        show(words, text);
      }
      // Whoever scrolled up reads there.
      if (below < 60) log.scrollTop = log.scrollHeight;
    }
    if (usage) tell(usage.completion_tokens, performance.now() - first);
    return { text, error: null };
  } catch (error) {
    return { text, error };
  }
}

function tell(tokens, milliseconds) {
  const rate = tokens > 1 ? `, ${((tokens - 1) / Math.max(milliseconds / 1000, 0.001)).toFixed(1)} a second` : "";
  $("status").textContent = `${tokens} token${tokens === 1 ? "" : "s"}${rate}`;
}

async function ask(question) {
  const conversation = messages, mine = running = new AbortController();
  conversation.push({ role: "user", content: question });
  const asked = addTurn("user", question), turn = addTurn("assistant waiting", "");
  setBusy(true);
  const { text, error } = await read(turn, mine.signal);
  turn.classList.remove("waiting");
  if (text) conversation.push({ role: "assistant", content: text });
  else conversation.pop();
  if (error && error.name !== "AbortError") turn.append(element("div", "error", error.message));
  if (running !== mine) return; // another conversation has begun
  if (error && error.name === "AbortError") $("status").textContent = "stopped";
  if (!text && error && conversation === messages) {
    // Nothing came of it: it may be changed and sent again.
    asked.classList.add("failed");
    if (!$("text").value) $("text").value = question;
  }
  running = null;
  setBusy(false);
  if (!error && !$("model").options.length) begin(); // nobody had a key when the page was opened
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  if (!busy && !$("ask").open) $("text").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  $("text").value = "";
  $("status").textContent = "";
  ask(text);
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
  running = null;
  messages = [];
  $("log").replaceChildren(empty);
  $("status").textContent = "";
  setBusy(false);
});

function begin() {
  loadModels().catch((error) => { $("status").textContent = error.message; });
}

$("change-key").addEventListener("click", async () => {
  if (!(await askForKey(false))) return;
  $("status").textContent = "";
  begin();
});

begin();
