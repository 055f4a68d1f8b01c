// Chat with one to four models side by side: one prompt for all, a conversation of each.

import { call, copier, fill, get, h, page, seconds, trouble, Refused } from "./studio.js";
import { CHAT, TEXT, answer, asCalls } from "./stream.js";
import { Tokens, shared } from "./tokens.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/chat.css" }));
const MOST = 4;
const TITLE = "Chat";
let facts, columns = [], busy = 0, number = 0;  // busy: how many wait for answers

const heard = h("p", { class: "said", role: "status" });
const board = h("div", { class: "board", role: "group", "aria-label": "Models side by side" });
const adding = h("button", { type: "button", onclick: () => add() }, "Add a column");
const anew = h("button", { type: "button", onclick: begin }, "New conversation");

// The prompt and the settings of all columns

const words = h("textarea", { id: "words", rows: "2", placeholder: "Ask all columns", onkeydown: onKey, oninput: grow });
const send = h("button", { class: "first", type: "submit" }, "Send");
const stop = h("button", { class: "bad", type: "button", disabled: true, onclick: stopAll }, "Stop");

function setting(id, label, hint, attributes) {
  const field = h("input", { id, "aria-describedby": `${id}-hint`, ...attributes });
  return [field, h("div", {}, h("label", { for: id }, label), field, h("p", { class: "hint", id: `${id}-hint` }, hint))];
}
const [warmth, warmthBox] = setting("warmth", "Temperature", "0: the likeliest token, always",
  { type: "number", min: "0", max: "2", step: "0.05", value: "0.7", required: true });
const [nucleus, nucleusBox] = setting("nucleus", "Top p", "Share of the likeliest tokens",
  { type: "number", min: "0.01", max: "1", step: "0.01", value: "1", required: true });
const [seed, seedBox] = setting("seed", "Seed", "One for all columns; empty: chance",
  { type: "number", min: "0", max: "2147483647", step: "1", value: "1" });
const [longest, longestBox] = setting("longest", "Longest answer", "In tokens", { type: "number", min: "1", step: "1", value: "256", required: true });
const system = h("textarea", { id: "system", rows: "2", "aria-describedby": "system-hint" });
const form = h("select", { id: "form", onchange: begin },
  h("option", { value: "chat" }, "As a conversation (chat template)"), h("option", { value: "text" }, "As a text to continue"));

const plain = () => form.value === "text";

function settings() {
  const all = h("details", { class: "settings" }, h("summary", {}, "Settings of all columns"),
    h("div", { class: "columns", style: { "--least": "9rem" } }, warmthBox, nucleusBox, seedBox, longestBox),
    h("div", { class: "columns" },
      h("div", {}, h("label", { for: "system" }, "System message"), system,
        h("p", { class: "hint", id: "system-hint" }, "Goes before each conversation; not before a text to continue")),
      h("div", {}, h("label", { for: "form" }, "How to ask"), form)));
  all.addEventListener("invalid", () => { all.open = true; }, true);  // a field that is not seen could not say why
  return all;
}

function sampling() {
  const chosen = { temperature: Number(warmth.value), top_p: Number(nucleus.value), max_tokens: Number(longest.value) };
  return seed.value === "" ? chosen : { ...chosen, seed: Number(seed.value) };
}

function onKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  box.requestSubmit();
}
function grow() {
  words.style.setProperty("height", "auto");
  words.style.setProperty("height", `${Math.min(words.scrollHeight + 2, innerHeight / 3)}px`);
}

// A column: a model, and its conversation

class Column {
  constructor(model) {
    this.id = number += 1;
    this.turns = [];  // {role, content}
    this.answers = [];  // Tokens of each answer
    this.control = null;
    this.log = h("div", { class: "turns", tabindex: "0", role: "group" });
    this.select = h("select", { id: `model-${this.id}`, onchange: () => this.change(this.select.value) });
    this.close = h("button", { type: "button", class: "close", onclick: () => remove(this) }, "×");
    this.figures = h("p", { class: "figures" });
    this.calls = h("button", { type: "button", class: "plain", disabled: true, onclick: () => showCalls(this) }, "Copy as API call");
    this.element = h("section", { class: "card column" },
      h("div", { class: "column-head" }, h("label", { class: "said", for: `model-${this.id}` }, "Model"), this.select, this.close),
      this.log, h("div", { class: "column-foot" }, this.figures, this.calls));
    this.fill(model);
    this.change(model);
  }

  fill(model) {
    fill(this.select,
      facts.models.map((one) => h("option", { value: one.name }, `${one.name}${one.name === facts.base ? " (base)" : ""}`)),
      facts.finished.length > 0 && h("optgroup", { label: "Finished since the start" },
        facts.finished.map((name) => h("option", { value: name }, `${name} (load it)`))));
    this.select.value = model;
  }

  async change(model) {
    this.stop();
    this.model = model;
    this.element.setAttribute("aria-label", model);
    this.log.setAttribute("aria-label", `Conversation with ${model}`);
    this.close.setAttribute("aria-label", `Remove the column of ${model}`);
    this.calls.setAttribute("aria-label", `Copy as API call to ${model}`);
    this.begin();
    keep();
    if (facts.finished.includes(model)) await this.load();
  }

  async load() {
    fill(this.log, h("p", { class: "soft" }, "It is being loaded …"));
    try {
      await call("POST", "/chat/load", { name: this.model });
      facts = await get("/chat");
      for (const column of columns) column.fill(column.model);
      this.begin();
    } catch (error) {
      fill(this.log, trouble(error), h("button", { type: "button", onclick: () => this.load() }, "Try again"));
    }
  }

  begin() {
    this.stop();
    [this.turns, this.answers, this.asked] = [[], [], null];
    this.calls.disabled = true;
    const info = facts.models.find((one) => one.name === this.model);
    fill(this.figures, info?.batched === false ? "Writes alone: its kind shares no batch with others" : "");
    fill(this.log, h("p", { class: "soft begin" }, info?.methods.length ? `Adapter: ${info.methods.join(", ")}` : "The model without an adapter"));
  }

  stop() { this.control?.abort(); }

  request() {
    if (plain()) return [TEXT, { model: this.model, prompt: this.turns.map((turn) => turn.content).join(""), ...sampling() }];
    const first = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    return [CHAT, { model: this.model, messages: [...first, ...this.turns], ...sampling() }];
  }

  async ask(text) {
    if (!this.turns.length) fill(this.log);
    this.turns.push({ role: "user", content: text });
    this.put(h("div", { class: "turn asked" }, h("p", { class: "text" }, text)));
    await this.answer();
  }

  async answer() {
    const tokens = new Tokens(`Answer of ${this.model}`);
    const place = h("div", { class: "turn" }, tokens.element, h("p", { class: "parts small soft" }));
    place.classList.add("writing");
    this.put(place);
    fill(this.figures, "Waits for the first token …");
    this.control = new AbortController();
    this.asked = this.request();
    this.calls.disabled = false;
    const turns = this.turns;
    let ended = "stopped", figures = null;
    try {
      figures = await answer(...this.asked, (piece) => {
        const low = this.low();
        tokens.add(piece);
        if (low) this.log.scrollTop = this.log.scrollHeight;
      }, this.control.signal);
      ended = { stop: "ended by itself", length: "cut at the longest answer" }[figures.reason] ?? figures.reason;
    } catch (error) {
      if (turns !== this.turns) return;  // another conversation has begun
      if (error.name !== "AbortError") { this.fail(error, place, tokens); return; }
    } finally {
      place.classList.remove("writing");
      this.control = null;
    }
    if (turns !== this.turns) return;
    turns.push({ role: "assistant", content: tokens.text });
    this.answers.push(tokens);
    if (!tokens.text) tokens.element.append(h("em", { class: "soft" }, "(nothing)"));
    const rate = figures?.rate ? `${figures.rate.toFixed(1)} tokens/s` : null;
    const first = figures && `first token after ${seconds(figures.first)}`;
    const count = figures ? figures.tokens : tokens.known.length;
    fill(this.figures, [`${count} tokens`, rate, first, ended].filter(Boolean).join(" · "));
    fill(heard, `${this.model}: ${count} tokens, ${ended}`);
  }

  /** Tell of an error where the answer would stand; what was asked may be asked again. */
  fail(error, place, tokens) {
    if (!tokens.text) tokens.element.remove();
    fill(this.figures, "");
    const again = () => {
      place.remove();
      work(() => this.answer());
    };
    const changed = error instanceof Refused && error.code === "model_not_found" && this.model !== facts.base;
    place.append(trouble(error), h("div", { class: "row again" },
      h("button", { type: "button", onclick: again }, "Try again"),
      changed && h("button", { type: "button", onclick: () => this.load() }, "Load it as it is now")));
    fill(heard, `${this.model}: ${error.message}`);
  }

  /** Forget a turn that got no answer: the next one takes its place. */
  settle() {
    if (this.turns.at(-1)?.role !== "user") return;
    this.turns.pop();
    for (const buttons of this.log.querySelectorAll(".again")) buttons.remove();
  }

  low() { return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 48; }
  put(element) {
    this.log.append(element);
    this.log.scrollTop = this.log.scrollHeight;
  }
}

// All columns together

function add(model = next()) {
  columns.push(new Column(model));
  draw();
}
function next() {
  const taken = columns.map((column) => column.model);
  return facts.models.map((one) => one.name).find((name) => !taken.includes(name)) ?? facts.base;
}
function remove(column) {
  const place = columns.indexOf(column);
  column.stop();
  columns = columns.filter((one) => one !== column);
  draw();
  columns[Math.max(0, place - 1)].select.focus();
}
function draw() {
  fill(board, columns.map((column) => column.element));
  adding.disabled = columns.length >= MOST;
  for (const column of columns) column.close.hidden = columns.length === 1;
  keep();
}
function keep() {  // so that the address leads to the same columns again
  const query = new URLSearchParams(columns.map((column) => ["model", column.model]));
  if (columns.length) history.replaceState(null, "", `?${query}`);
}
function begin() {
  for (const column of columns) column.begin();
  fill(heard, "");
  words.focus();
}
function stopAll() { for (const column of columns) column.stop(); }

async function work(action) {
  busy += 1;
  send.disabled = true;
  stop.disabled = false;
  try {
    await action();
  } finally {
    busy -= 1;
    send.disabled = busy > 0;
    stop.disabled = !busy;
    if (!busy) compare();
  }
}

async function submit(event) {
  event.preventDefault();
  const text = words.value;
  if (busy || !text.trim()) return;
  words.value = "";
  grow();
  for (const column of columns) column.settle();
  await work(() => Promise.all(columns.map((column) => column.ask(text))));
}

/** Mark where the latest answers part: each from the first column's, and that one from all others. */
function compare() {
  const [first, ...others] = columns.map((column) => column.answers.at(-1));
  const [asked, ours] = columns[0].turns.slice(-2);
  if (!first || !others.length || ours?.role !== "assistant") return;
  let common = null;
  others.forEach((tokens, place) => {
    const [question, own] = columns[place + 1].turns.slice(-2);
    if (own?.role !== "assistant" || question.content !== asked.content) return;
    const mine = shared(tokens.texts, first.texts);
    tokens.mark(mine);
    const theirs = shared(first.texts, tokens.texts);
    common = theirs.map((both, at) => both && (common?.[at] ?? true));
    const at = mine.indexOf(false), same = mine.filter(Boolean).length;
    const all = at < 0 && mine.length === first.texts.length;
    fill(tokens.element.nextElementSibling, all ? `The same tokens as ${columns[0].model}`
      : `Parts from ${columns[0].model} at token ${at < 0 ? mine.length + 1 : at + 1}; ${same} of ${mine.length} in common`);
  });
  if (common) first.mark(common);
}

function showCalls(column) {
  const key = sessionStorage.getItem("graft-key") !== null;
  const calls = asCalls(...column.asked, key);
  const part = (title, text) => h("div", { class: "call" }, h("div", { class: "row apart" }, h("h3", {}, title), copier(text)),
    h("pre", { tabindex: "0", "aria-label": title }, text));
  const dialog = h("dialog", { class: "wide", "aria-labelledby": "calls-title", onclose: () => dialog.remove() },
    h("h2", { id: "calls-title" }, `The latest question to ${column.model}`),
    part("curl", calls.curl), part("Python, with the package openai", calls.python),
    h("div", { class: "buttons" }, h("button", { type: "button", class: "first", onclick: () => dialog.close() }, "Close")));
  document.body.append(dialog);
  dialog.showModal();
}

const box = h("form", { class: "card ask", onsubmit: submit },
  h("label", { class: "said", for: "words" }, "Your message"), words,
  h("div", { class: "row apart" },
    h("p", { class: "hint" }, h("kbd", {}, "Enter"), " sends, ", h("kbd", {}, "Shift"), " + ", h("kbd", {}, "Enter"), " begins a line, ",
      h("kbd", {}, "Esc"), " stops"),
    h("div", { class: "row" }, stop, send)));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && busy && !document.querySelector("dialog[open]")) stopAll();
});

async function open() {
  try {
    facts = await get("/chat");
  } catch (error) {
    fill(page, h("h1", {}, TITLE), trouble(error), h("button", { type: "button", onclick: open }, "Try again"));
    return;
  }
  if (!facts.template) {
    form.value = "text";
    form.firstChild.textContent = "As a conversation (in Graft's plain form)";
  }
  longest.max = facts.longest;
  box.append(settings());
  const names = [...facts.models.map((one) => one.name), ...facts.finished];
  const wanted = new URLSearchParams(location.search).getAll("model");
  const unknown = wanted.filter((name) => !names.includes(name));
  const known = wanted.filter((name) => names.includes(name)).slice(0, MOST);
  const chosen = known.length ? known : facts.models.slice(0, 2).map((one) => one.name);
  fill(page, h("div", { class: "row apart title" }, h("h1", {}, TITLE), h("div", { class: "row" }, adding, anew)),
    !facts.template && h("p", { class: "hint" }, "This model has no chat template of its own: each column continues its text. The settings can change that."),
    unknown.length > 0 && h("p", { class: "notes" }, `No such model: ${unknown.join(", ")}. The menu of a column names all.`),
    names.length === 1 && h("p", { class: "hint" }, "Only the base is served. Train an adapter under New run, and it is offered here when it has finished."),
    board, heard, box);
  columns = chosen.map((model) => new Column(model));
  draw();
  words.focus();
}
open();
