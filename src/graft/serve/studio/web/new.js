// A new run: what it shall be, what that needs beside it, and its start.
import { call, fill, get, h, page, say, size, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/new.css" }));

const query = new URLSearchParams(location.search);
const fields = new Map(); // by dotted key: {input, wrong}
let offered = null, methodName = "lora";

fill(page, h("h1", {}, "New run"), h("p", { class: "soft" }, "Reading what there is …"));
function usual(key) {
  const known = offered.keys[key]?.usual;
  return known === null || known === undefined ? "" : typeof known === "string" ? known : JSON.stringify(known);
}

/** Return a field of the form. kind: input, select or textarea; choices: of a select, or suggestions of an input. */
function field(key, title, { kind = "input", choices = null, value = "", hint = null, whole = false, placeholder = null, ...rest } = {}) {
  const id = `f-${key}`, told = hint ?? offered.keys[key]?.help ?? "";
  const shared = { id, name: key, "aria-describedby": `${id}-hint ${id}-wrong`, oninput: changed, ...rest };
  let input, list = null;
  if (kind === "select") input = h("select", shared, choices);
  else {
    if (choices) {
      list = h("datalist", { id: `${id}-list` }, choices.map((text) => h("option", { value: text })));
      shared.list = `${id}-list`;
    }
    input = h(kind, { ...shared, placeholder: placeholder ?? usual(key), autocomplete: "off", spellcheck: "false" });
  }
  if (value) input.value = value;
  const wrong = h("p", { class: "wrong hidden", id: `${id}-wrong`, role: "alert" });
  fields.set(key, { input, wrong });
  return h("div", { class: `field${whole ? " whole" : ""}` }, h("label", { for: id }, title), input, list,
    h("p", { class: "hint", id: `${id}-hint` }, told), wrong);
}

const options = (names, chosen) => names.map(([value, text]) => h("option", { value, selected: value === chosen }, text ?? value));

const settings = h("div", { class: "fields" }), plan = h("div", { "aria-live": "polite" }), recipe = h("div", {});
const start = h("button", { class: "first", type: "submit", id: "start" }, "Start the run");

function draw() {
  const methods = offered.methods.map(({ name, title, presets }) => {
    const inner = [h("option", { value: name, selected: name === "lora" }, name), ...Object.keys(presets).map((preset) => h("option", { value: preset }, `${preset} (a preset)`))];
    return h("optgroup", { label: title.length > 60 ? `${title.slice(0, 58)} …` : title }, inner);
  });
  const rows = [...offered.files, "seedling:descriptions"];
  const form = h("form", { novalidate: true, onsubmit: begin },
    h("fieldset", {}, h("legend", {}, "What it is"), h("div", { class: "fields" },
      field("name", "Name of the run", { hint: "Its folder; letters, digits, . _ -", placeholder: "my-run", value: query.get("name") ?? "" }),
      field("model", "Model", { choices: offered.models, hint: "A folder, a hub id that is on this machine, or seedling", value: query.get("model") ?? "" }),
      field("quant", "The base is stored as", { kind: "select", choices: options(["none", "nf4", "fp4", "int8", "int4", "int3", "int2"].map((name) => [name === "none" ? "" : name, name === "none" ? "as it is" : name])), hint: "Packed weights need less memory" }))),
    h("fieldset", {}, h("legend", {}, "What it learns from"), h("div", { class: "fields" },
      field("data.train", "Rows", { choices: rows, whole: true, placeholder: "/path/to/rows.jsonl", value: query.get("data") ?? "", hint: "A file or folder of this machine, a file that you sent, or seedling:descriptions" }),
      field("stage", "What the rows are for", { kind: "select", choices: options(offered.stages.map(({ name }) => [name]), query.get("stage") ?? "sft"), hint: "" }),
      field("data.eval", "Held-out rows", { hint: "A share of the rows, or a file" }),
      field("data.max_length", "Longest row", { inputmode: "numeric", hint: "Tokens; longer rows are cut" })),
      h("p", { class: "small" }, h("a", { href: "/studio/rows", id: "look", onclick: lookAtRows }, "Look at the rows as the model sees them"))),
    h("fieldset", {}, h("legend", {}, "How"), h("div", { class: "fields" },
      field("method.name", "Method", { kind: "select", choices: methods, hint: "", onchange: drawMethod })),
      h("details", {}, h("summary", {}, "Settings of the method"), settings)),
    h("fieldset", {}, h("legend", {}, "Training"), h("div", { class: "fields" },
      field("train.max_steps", "Steps", { inputmode: "numeric", placeholder: "by epochs", hint: "Stop after so many" }),
      field("train.epochs", "Epochs", { inputmode: "decimal" }),
      field("train.lr", "Learning rate", { inputmode: "decimal" }),
      field("train.batch_size", "Batch size", { inputmode: "numeric" }),
      field("train.micro_batch_size", "Micro-batch", { inputmode: "numeric" }),
      field("train.seed", "Seed", { inputmode: "numeric", hint: "Of every random choice" })),
      h("details", {}, h("summary", {}, "More settings"), h("div", { class: "fields" },
        field("train.eval_every", "Steps between evaluations", { inputmode: "numeric", hint: "0: after every epoch" }),
        field("train.save_every", "Steps between checkpoints", { inputmode: "numeric", hint: "" }),
        field("more", "Other keys", { kind: "textarea", whole: true, placeholder: "train.warmup=0.1\ntrain.samples=[\"Hello\"]", hint: "One key=value a line, as for graft train; graft train --keys lists them" })))),
    h("div", { id: "form-wrong" }),
    h("div", { class: "row" }, start, h("span", { class: "soft small" }, "It goes on when you close this page, and when the server ends.")));
  fill(page, h("h1", {}, "New run"), h("div", { class: "desk" }, form,
    h("aside", { "aria-label": "What it needs" }, h("div", { class: "card" }, h("h2", {}, "What it needs"), plan), recipe)));
  drawMethod();
  fill(plan, h("p", { class: "soft" }, "Choose rows, and the plan stands here."));
}

function lookAtRows(event) {
  const where = new URLSearchParams({ data: fields.get("data.train").input.value, model: fields.get("model").input.value, stage: fields.get("stage").input.value });
  event.target.href = `/studio/rows?${where}`;
}

function drawMethod() {
  const chosen = fields.get("method.name").input.value;
  const card = offered.methods.find(({ name, presets }) => name === chosen || chosen in presets);
  if (!card) return;
  methodName = card.name;
  for (const key of [...fields.keys()]) if (key.startsWith("method.") && key !== "method.name") fields.delete(key);
  fill(settings, card.settings.map((one) => field(`method.${one.name}`, one.name, {
    hint: one.help, placeholder: one.usual === null ? one.type : typeof one.usual === "string" ? one.usual : JSON.stringify(one.usual) })));
  const hint = document.getElementById("f-method.name-hint");
  hint.textContent = chosen === card.name ? card.title : card.presets[chosen];
}

function values() {
  const found = {};
  for (const [key, { input }] of fields) if (!["name", "more"].includes(key) && input.value.trim()) found[key] = input.value;
  if (found["method.name"] === "lora") delete found["method.name"];
  if (found.stage === "sft") delete found.stage;
  for (const line of (fields.get("more")?.input.value ?? "").split("\n")) {
    const [key, ...rest] = line.split("=");
    if (line.trim()) found[key.trim()] = rest.join("=");
  }
  return found;
}

function tell(problems) {
  const others = [];
  for (const { input, wrong } of fields.values()) {
    wrong.classList.add("hidden");
    wrong.textContent = "";
    input.removeAttribute("aria-invalid");
  }
  for (const [key, text] of Object.entries(problems)) {
    const field = fields.get(key);
    if (!field) { others.push(text); continue; }
    field.input.setAttribute("aria-invalid", "true");
    field.wrong.textContent = text;
    field.wrong.classList.remove("hidden");
    field.wrong.closest("details")?.setAttribute("open", "");
  }
  fill(document.getElementById("form-wrong"), others.map((text) => h("p", { class: "notes bad", role: "alert" }, text)));
}

// What it means, and what it needs

let timer = 0, waiting = null;
function changed() {
  clearTimeout(timer);
  timer = setTimeout(check, 350);
}

async function check() {
  waiting?.abort();
  waiting = new AbortController();
  const { signal } = waiting, body = { values: values(), name: fields.get("name").input.value.trim() };
  if (!body.values["data.train"]) {
    tell({});
    fill(plan, h("p", { class: "soft" }, "Choose rows, and the plan stands here."));
    fill(recipe);
    return;
  }
  try {
    const found = await call("POST", "/recipes", body, { signal });
    tell(found.problems);
    fill(recipe, found.recipe && [
      found.notices.map((text) => h("p", { class: "notes" }, text)),
      h("h2", {}, "The same by hand"), h("div", { class: "copy" }, h("code", { id: "command" }, found.command)),
      h("details", {}, h("summary", {}, "The whole recipe"), h("pre", {}, found.recipe))]);
    if (Object.keys(found.problems).length) {
      fill(plan, h("p", { class: "soft" }, "First correct what is marked."));
      return;
    }
    fill(plan, h("p", { class: "busy" }, "Working it out; the first answer takes some seconds …"));
    const planned = await call("POST", "/plans", body, { signal });
    fill(plan, drawPlan(planned));
  } catch (error) {
    if (error.name !== "AbortError") fill(plan, trouble(error));
  }
}

const PARTS = { process: "Python and its libraries", weights: "base", adapter: "adapter", gradients: "gradients", optimizer: "optimizer", step: "activations of a step", allocator: "reserve of the allocator" };
const TINTS = ["edge", "c1", "c2", "c3", "c4", "c5", "c6"];

function drawPlan(planned) {
  const parts = { process: planned.process, ...planned.parts };
  const peak = Math.max(...Object.values(planned.peaks)), whole = Math.max(peak, planned.available) * 1.02;
  const tint = (i) => `var(--${TINTS[i % TINTS.length]})`;
  const named = Object.keys(PARTS).filter((key) => parts[key]);
  const words = `needs ${size(peak)} of ${size(planned.available)}`;
  return [
    h("p", {}, h("span", { class: `badge ${planned.fits ? "good" : "bad"}`, id: "verdict" }, planned.fits ? "fits" : "does not fit"), ` ${words} (${planned.device.toUpperCase()})`),
    h("div", { class: `memory${planned.fits ? "" : " over"}`, role: "img", "aria-label": `Memory: ${words}` },
      named.map((key, i) => h("span", { title: `${PARTS[key]}: ${size(parts[key])}`, style: { background: tint(i), width: `${(100 * parts[key]) / whole}%` } })),
      h("span", { class: "limit", title: `available: ${size(planned.available)}`, style: { left: `${(100 * planned.available) / whole}%` } })),
    h("table", { class: "parts small" }, h("tbody", {}, named.map((key, i) =>
      h("tr", { style: { "--tint": tint(i) } }, h("td", {}, PARTS[key]), h("td", { class: "number" }, size(parts[key])))))),
    h("dl", { class: "facts small" },
      h("dt", {}, "Trained"), h("dd", {}, `${planned.trained.toLocaleString("en")} of ${planned.parameters.toLocaleString("en")} parameters`),
      planned.pace && [h("dt", {}, "Speed"), h("dd", {}, pace(planned.pace))],
      planned.dtype && [h("dt", {}, "Numbers"), h("dd", {}, `${planned.dtype}: ${planned.why}`)],
      h("dt", {}, "Largest"), h("dd", {}, planned.micro_batch ? `micro-batch ${planned.micro_batch}${planned.longest ? ` or rows of ${planned.longest.toLocaleString("en")} tokens` : ""}` : "not even one row fits")),
    planned.levers.length > 0 && [h("h3", {}, planned.fits ? "To save memory" : "What would help"),
      h("ul", {}, planned.levers.map((lever) => h("li", { class: "small" }, h("code", {}, lever.change), ` saves ${size(lever.saves)}; ${lever.costs} `,
        h("button", { type: "button", class: "plain small", "aria-label": `Use ${lever.change}`, onclick: () => use(lever.change) }, "Use"))))]];
}

function pace({ step, tokens, steps }) {
  const time = step < 1 ? `${Math.round(1000 * step)} ms` : `${step.toFixed(1)} s`, whole = steps ? step * steps : null;
  const total = whole === null ? "" : `; ${steps.toLocaleString("en")} steps in about ${whole < 90 ? `${Math.ceil(whole)} s` : whole < 5400 ? `${Math.round(whole / 60)} min` : `${(whole / 3600).toFixed(1)} h`}`;
  return `${time} a step, ${Math.round(tokens).toLocaleString("en")} tokens/s${total}`;
}

function use(change) {
  const [key, ...rest] = change.split("="), field = fields.get(key);
  if (field) field.input.value = rest.join("=");
  else {
    const more = fields.get("more").input;
    more.value = [...more.value.split("\n").filter((line) => line.trim() && !line.startsWith(`${key}=`)), change].join("\n");
    more.closest("details").open = true;
  }
  changed();
}

async function begin(event) {
  event.preventDefault();
  clearTimeout(timer);
  const name = fields.get("name").input.value.trim();
  if (!name) {
    tell({ name: "The run has no name. Expected: letters, digits, . _ and -. To do: type one." });
    fields.get("name").input.focus();
    return;
  }
  start.disabled = true;
  try {
    const body = { values: values(), name };
    const found = await call("POST", "/recipes", body);
    if (Object.keys(found.problems).length) {
      tell(found.problems);
      document.querySelector("[aria-invalid=true]")?.focus();
    } else {
      await call("POST", "/runs", body);
      location.href = `/studio/runs/${encodeURIComponent(name)}`;
      return;
    }
  } catch (error) {
    if (error.param && fields.has(error.param)) { tell({ [error.param]: error.message }); fields.get(error.param).input.focus(); }
    else say(error.message, "bad");
  }
  start.disabled = false;
}

try {
  offered = await get("/methods");
  draw();
  if (query.get("data")) check();
} catch (error) { fill(page, h("h1", {}, "New run"), trouble(error)); }
