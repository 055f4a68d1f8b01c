// The blind arena: two answers, a vote, and only then the names.

import { ask, call, count, fill, get, h, page, say, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/arena.css" }));
const TAGS = ["correct", "complete", "style", "length"];
const VERDICTS = [["a", "A is better"], ["b", "B is better"], ["tie", "Tie"], ["bad", "Both bad"]];
const chosen = new URLSearchParams(location.search).getAll("models");

let facts, messages = null;  // messages: of a held-out conversation, while its prompt is not changed
let state = "idle";  // then "writing", "ready" and "voted"
let battle = null, key = null, writing = null, countdown = 0;

const letters = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
function voter() {
  if (!localStorage.getItem("graft-voter")) localStorage.setItem("graft-voter", letters(16));
  return localStorage.getItem("graft-voter");
}

// What is asked

const heard = h("p", { class: "said", role: "status", "aria-live": "polite" });
const prompt = h("textarea", { id: "prompt", required: true, oninput: () => { messages = null; source.textContent = ""; }, onkeydown: onEnter });
const source = h("p", { class: "hint", role: "status" });
const send = h("button", { class: "first", type: "submit" }, "Ask two models");
const stop = h("button", { class: "bad hidden", type: "button", onclick: () => writing?.abort() }, "Stop");
const draw = h("button", { type: "button", onclick: next }, "Draw a prompt");
const form = h("select", { id: "form" },
  h("option", { value: "chat" }, "As a conversation (chat template)"), h("option", { value: "text" }, "As a text to continue"));
const longest = h("input", { id: "longest", type: "number", min: "1", step: "1", value: "256", required: true });
const warmth = h("input", { id: "warmth", type: "number", min: "0", max: "2", step: "0.05", value: "0.7", required: true });
const field = (input, label) => h("div", {}, h("label", { for: input.id }, label), input);

function onEnter(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  box.requestSubmit();
}

const settings = h("details", { class: "settings" }, h("summary", {}, "Settings of both answers"),
  h("div", { class: "columns", style: { "--least": "12rem" } },
    field(form, "How to ask"), field(longest, "Longest answer, in tokens"), field(warmth, "Temperature")));
settings.addEventListener("invalid", () => { settings.open = true; }, true);
const box = h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); fight(); } },
  h("label", { for: "prompt" }, "Prompt"), prompt, source,
  h("div", { class: "buttons" }, send, stop, draw), settings);

// The answers

function side(letter) {
  const told = h("span", { class: "badge" }), name = h("span", {});
  const text = h("div", { class: "text", tabindex: "0", role: "region", "aria-label": `Answer ${letter}` });
  const card = h("section", { class: "card side" },
    h("div", { class: "head" }, h("h2", {}, h("span", { class: "letter", "aria-hidden": "true" }, letter), h("span", { class: "said" }, `Answer ${letter}`), name), told), text);
  return { letter, card, text, told, name };
}
const sides = { a: side("A"), b: side("B") };
const answers = h("div", { class: "hidden" });
const note = h("div", {});

// The vote

const reason = h("input", { id: "reason", maxlength: "2000", autocomplete: "off", placeholder: "Optional" });
const tags = h("div", { class: "tags", role: "group", "aria-label": "Tags" });
const another = h("input", { "aria-label": "Another tag", placeholder: "Another tag", maxlength: "40", autocomplete: "off",
  onkeydown: (event) => { if (event.key === "Enter" && another.value.trim()) { event.preventDefault(); tag(another.value.trim(), true); another.value = ""; } } });
const buttons = VERDICTS.map(([verdict, words], number) =>
  h("button", { type: "button", disabled: true, "aria-keyshortcuts": `${number + 1}`, onclick: () => vote(verdict) }, h("kbd", {}, `${number + 1}`), words));
const verdicts = h("div", { class: "verdicts", role: "group", "aria-label": "Your verdict" }, buttons);
const why = h("div", { class: "why" }, h("div", {}, h("label", { for: "reason" }, "Why"), reason),
  h("div", {}, h("label", {}, "Tags"), tags));
const outcome = h("div", { class: "outcome", tabindex: "-1" });

function tag(name, on = false) {
  const known = [...tags.querySelectorAll("button")].find((button) => button.textContent === name);
  if (known) { if (on) known.setAttribute("aria-pressed", "true"); return; }
  const button = h("button", { type: "button", "aria-pressed": on ? "true" : "false",
    onclick: () => button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "true" ? "false" : "true") }, name);
  tags.insertBefore(button, another);
}
const chosenTags = () => [...tags.querySelectorAll("[aria-pressed=true]")].map((button) => button.textContent);

function become(now) {
  state = now;
  const busy = now === "writing";
  send.disabled = busy;
  draw.disabled = busy;
  stop.classList.toggle("hidden", !busy);
  for (const button of buttons) button.disabled = now !== "ready";
  answers.classList.toggle("hidden", now === "idle");
  verdicts.classList.toggle("hidden", now === "voted");
  why.classList.toggle("hidden", now === "voted");
}

async function next() {
  const before = prompt.value;
  try {
    const found = await get("/prompts/next");
    if (prompt.value !== before) return;  // somebody has typed meanwhile
    if (!found.of) { source.textContent = "No run of this folder holds out rows that ask something: type a prompt."; return; }
    messages = found.messages;
    prompt.value = found.prompt ?? found.messages.map((turn) => (found.messages.length > 1 ? `${turn.role}: ${turn.content}` : turn.content)).join("\n\n");
    form.value = messages ? "chat" : "text";
    source.textContent = `One of ${count(found.of)} prompts of held-out rows, of those with the fewest votes.`;
  } catch (error) { say(error.message, "bad"); }
}

function asked() {
  const common = { max_tokens: Number(longest.value), temperature: Number(warmth.value), ...(chosen.length ? { contestants: chosen } : {}) };
  if (messages) return { ...common, messages };
  return form.value === "chat" ? { ...common, messages: [{ role: "user", content: prompt.value }] } : { ...common, prompt: prompt.value };
}

async function fight() {
  if (state === "writing") return;
  clearInterval(countdown);
  become("writing");
  fill(note); fill(outcome);
  for (const { card, text, told, name } of Object.values(sides)) {
    card.classList.remove("better");
    fill(text); fill(name); text.dataset.empty = "…";
    fill(told, "writes"); told.className = "badge live";
  }
  reason.value = "";
  for (const button of tags.querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
  writing = new AbortController();
  battle = null;
  key = letters(16);
  try {
    const answer = await ask("POST", "/studio/api/battles", asked(), { signal: writing.signal });
    await lines(answer, write);
    if (state === "writing") throw new Error("the answers broke off: ask again");
    verdicts.scrollIntoView({ block: "nearest" });
  } catch (error) {
    become("idle");
    if (error.name !== "AbortError") fill(note, trouble(error));
  }
}

/** Hand on each line of JSON of a response. */
async function lines(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) take(JSON.parse(part));
  }
}

function write(line) {
  if (line.error) throw new Error(line.error.message);
  if (line.battle) battle = line.battle;
  const one = sides[line.side];
  if (line.text) one.text.append(line.text);
  if (line.ended) {
    one.text.dataset.empty = "an empty answer";
    one.told.className = "badge";
    fill(one.told, line.cut ? `cut at ${longest.value} tokens` : "has ended");
    heard.textContent = `${one.letter} has ended.`;
  }
  if (line.ready) {
    become("ready");
    heard.textContent = "Both answers have ended. Vote with the keys 1 to 4: A is better, B is better, tie, both bad.";
    if (line.flagged) fill(note, h("p", { class: "notes" }, "An answer names a model, so this vote is not blind: it is kept, and the leaderboard leaves it out."));
  }
}

async function vote(verdict) {
  if (state !== "ready") return;
  for (const button of buttons) button.disabled = true;
  try {
    const told = await call("POST", "/votes", { battle, verdict, key, voter: voter(), reason: reason.value, tags: chosenTags() });
    become("voted");
    await reveal(told);
  } catch (error) {
    become("ready");  // with the same key, so that a vote that did arrive is not counted twice
    say(error.message, "bad");
  }
}

async function reveal(told) {
  for (const letter of ["a", "b"]) {
    fill(sides[letter].name, told[letter].model);
    sides[letter].card.classList.toggle("better", told.verdict === letter);
  }
  const [a, b] = [told.a.model, told.b.model];
  const said = { a: `You preferred ${a} (A) to ${b}.`, b: `You preferred ${b} (B) to ${a}.`, tie: `A tie: A was ${a}, B was ${b}.`, bad: `Both bad: A was ${a}, B was ${b}.` }[told.verdict];
  heard.textContent = said;
  const undo = h("button", { type: "button", onclick: takeBack }, "");
  const score = h("div", {});
  fill(outcome, h("div", { class: "card" },
    h("div", { class: "row apart" }, h("p", {}, h("strong", {}, said)),
      h("div", { class: "row" }, undo, h("button", { class: "first", type: "button", onclick: anew }, "Next pair"))),
    score));
  let left = Math.round(facts.undo_s);
  const tick = () => {
    if (left <= 0) { clearInterval(countdown); undo.remove(); return; }
    fill(undo, `Undo (${left} s)`);
    left -= 1;
  };
  tick();
  countdown = setInterval(tick, 1000);
  outcome.focus({ preventScroll: true });
  outcome.scrollIntoView({ block: "nearest" });
  await showScore(score);
}

async function takeBack() {
  clearInterval(countdown);
  try {
    await call("POST", "/votes/undo", { battle, key });
    heard.textContent = "Your vote is undone.";
    fill(outcome, h("div", { class: "card" }, h("div", { class: "row apart" },
      h("p", {}, "Your vote is undone and counts nowhere. You have seen the names, so this pair is over."),
      h("button", { class: "first", type: "button", onclick: fight }, "Ask the same again"))));
    outcome.focus({ preventScroll: true });
  } catch (error) { say(error.message, "bad"); }
}

async function showScore(place) {
  try {
    const { models } = await get("/score");
    if (!models.length) return;
    fill(place, h("h3", {}, "So far"), h("div", { class: "scroll" }, h("table", { class: "score" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), ["won", "tied", "lost"].map((word) => h("th", { scope: "col", class: "number" }, word)))),
      h("tbody", {}, models.map((one) => h("tr", {}, h("th", { scope: "row" }, one.model), ["won", "tied", "lost"].map((word) => h("td", { class: "number" }, count(one[word])))))))),
    h("p", { class: "small" }, h("a", { href: "/studio/leaderboard" }, "The leaderboard"), " says how sure that is."));
  } catch (error) { fill(place, trouble(error)); }
}

async function anew() {
  clearInterval(countdown);
  if (source.textContent) await next();
  become("idle");
  prompt.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const number = "1234".indexOf(event.key);
  if (number >= 0 && event.key) vote(VERDICTS[number][0]);
  if (event.key === "u" && state === "voted") outcome.querySelector("button:not(.first)")?.click();
});

async function begin() {
  const title = h("h1", {}, "Arena");
  try {
    facts = await get("/arena");
  } catch (error) { fill(page, title, trouble(error)); return; }
  form.value = facts.chat ? "chat" : "text";
  fill(tags, another);
  for (const name of [...new Set([...TAGS, ...facts.tags])]) tag(name);
  const models = chosen.length || facts.models;
  fill(answers, h("div", { class: "columns sides" }, sides.a.card, sides.b.card), verdicts, why, outcome);
  const between = chosen.length ? [`Two of the ${count(models)} models that you chose answer. `, h("a", { href: "/studio/arena" }, "Take all"), ". "] : `Two of ${count(models)} models answer. `;
  fill(page, title,
    h("p", {}, between, "Which ones, and on which side, is drawn by chance and told after your vote."),
    models < 2 ? h("p", { class: "notes" }, "Only one model is served, so there is nothing to compare: start the studio with a folder of adapters.") : null,
    heard, box, note, answers,
    h("p", { class: "soft small kept" }, `Prompts, answers, votes and reasons are kept in ${facts.file} in the folder of the runs, on the machine of this server. `,
      "Of you it keeps a random number of this browser, as a hash. ", `${count(facts.votes)} votes count so far.`));
  fill(note);
  become("idle");
  await next();
  if (!source.textContent.startsWith("One")) source.textContent = "";
}
begin();
