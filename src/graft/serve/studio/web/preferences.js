// From votes to a preference run: what would be learnt, its settings, one button.

import { call, count, figure, fill, get, h, page, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/preferences.css" }));
const seen = h("div", { "aria-live": "polite" }), said = h("div", {});
let facts, asking = 0;

const objective = h("select", { id: "objective", onchange: () => { preset(); look(); } },
  h("option", { value: "dpo" }, "Pairs: the better answer becomes likelier (DPO)"),
  h("option", { value: "kto" }, "Single answers, good or bad (KTO)"));
const number = (id, attributes) => h("input", { id, type: "number", required: true, "aria-describedby": `${id}-hint`, ...attributes });
const majority = number("majority", { min: "51", max: "100", step: "1", value: "60", onchange: look });
const held = number("held_out", { min: "0", max: "50", step: "1", value: "10", onchange: look });
const name = h("input", { id: "name", required: true, maxlength: "64", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", autocomplete: "off", value: `votes-${new Date().toISOString().slice(0, 10)}`, "aria-describedby": "name-hint" });
const start = h("select", { id: "start", "aria-describedby": "start-hint" });
const lr = number("lr", { min: "0", step: "any" });
const epochs = number("epochs", { min: "0.1", step: "any" });
const beta = number("beta", { min: "0", step: "any" });
const button = h("button", { class: "first", type: "submit" }, "Write the rows and start the run");
const field = (input, label, hint) => h("div", {}, h("label", { for: input.id }, label), input, hint ? h("p", { class: "hint", id: `${input.id}-hint` }, hint) : null);

const form = h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); begin(); } },
  field(objective, "What is learnt from"),
  field(majority, "Agreement, %", "Of the votes on one prompt and two models, so many must prefer the same one."),
  field(held, "Held-out prompts, %", "Whole prompts that the run is measured on and never learns from."),
  field(start, "Start from", "A new adapter, or one that goes on learning: it is then also the reference."),
  h("details", {}, h("summary", {}, "Steps"),
    field(lr, "Learning rate"), field(epochs, "Passes over the rows"), field(beta, "β", "How strongly the model is held near its reference.")),
  field(name, "Name of the run", "Letters, digits, '.', '_' and '-'."),
  said, h("div", { class: "buttons" }, button));
form.addEventListener("invalid", (event) => { const inside = event.target.closest("details"); if (inside) inside.open = true; }, true);

function preset() {
  const usual = facts?.presets[objective.value];
  if (!usual) return;
  lr.value = usual.lr; epochs.value = usual.epochs; beta.value = usual.beta;
}

async function look() {
  if (![majority, held].every((input) => input.reportValidity())) return;
  const mine = ++asking;
  try {
    const found = await get(`/preferences?objective=${objective.value}&majority=${majority.value / 100}&held_out=${held.value / 100}`);
    if (mine !== asking) return;
    const first = !facts;
    facts = found;
    if (first) {
      preset();
      fill(start, h("option", { value: "" }, "A new adapter (LoRA)"), found.adapters.map((one) => h("option", { value: one }, one)));
    }
    draw(found);
  } catch (error) { fill(seen, trouble(error)); }
}

const words = (value) => (typeof value === "string" ? value : value.map((turn) => turn.content).join("\n\n"));
function row(one) {
  const [better, worse] = one.from;
  const asked = h("div", { class: "asked" }, h("p", { class: "small soft" }, one.votes > 1 ? `Prompt, ${one.votes} votes` : "Prompt"), h("div", { class: "text", tabindex: "0" }, words(one.prompt)));
  const side = (kind, label, text) => h("div", { class: kind }, h("p", { class: "small soft" }, label), h("div", { class: "text", tabindex: "0" }, words(text)));
  if ("completion" in one) return h("article", { class: "card pair" }, asked, side(one.label ? "good" : "worse-one", one.label ? "Good" : "Bad", one.completion));
  return h("article", { class: "card pair" }, asked, side("good", `Chosen, by ${better}`, one.chosen), side("worse-one", `Rejected, by ${worse}`, one.rejected));
}

function draw(found) {
  const what = objective.value === "kto" ? "answers" : "pairs";
  button.disabled = !found.train || found.base === null;
  const tile = (term, value) => h("div", {}, h("dt", {}, term), h("dd", {}, count(value)));
  fill(seen,
    found.base === null ? h("p", { class: "notes" }, "No model is served: start the studio with one, to learn on it.") : null,
    found.train ? null : h("p", { class: "notes" }, "No vote makes a row yet. ", h("a", { href: "/studio/arena" }, "Vote for some answers"), " first."),
    h("dl", { class: "tiles" }, tile("Votes", found.votes), tile("Used", found.used), tile(`Learnt ${what}`, found.train), tile(`Held-out ${what}`, found.held_out), tile("Prompts", found.prompts)),
    found.left_out.length ? [h("h2", {}, "Left out"), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "number" }, "Votes"), h("th", { scope: "col" }, "Why"))),
      h("tbody", {}, found.left_out.map((one) => h("tr", {}, h("td", { class: "number" }, count(one.votes)), h("td", {}, one.why))))))] : null,
    found.rows.length ? [h("h2", {}, `The first ${what}`), h("div", { class: "rows" }, found.rows.map(row))] : null);
}

async function begin() {
  button.disabled = true;
  fill(said);
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  try {
    const begun = await call("POST", "/preferences", {
      name: name.value, objective: objective.value, majority: majority.value / 100, held_out: held.value / 100, start: start.value || null,
      lr: Number(lr.value), epochs: Number(epochs.value), beta: Number(beta.value) });
    const link = h("a", { href: `/studio/runs/${encodeURIComponent(begun.run)}` }, "See how it learns");
    fill(said, h("p", { class: "notes good", role: "status" }, `${begun.run} learns from ${figure(begun.train)} rows. It goes on when you leave this page. `, link));
    link.focus();
  } catch (error) {
    const input = error.param && document.getElementById(error.param);
    if (input) { input.setAttribute("aria-invalid", "true"); input.focus(); }
    fill(said, trouble(error));
  }
  button.disabled = false;
}

fill(page, h("h1", {}, "Preferences"),
  h("p", {}, "What was voted on becomes rows of a better and a worse answer, and a run learns to prefer the better ones. Every row keeps where it is from: who wrote both answers, how, when, and who voted, as a hash."),
  h("div", { class: "learn" }, form, seen));
look();
