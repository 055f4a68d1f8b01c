// Rows: send a file or name one, then see what the checks say and what a model would learn of them.
import { dataReport } from "./data-report.js";
import { ago, call, fill, get, h, page, Refused, say, size, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/rows.css" }));

const query = new URLSearchParams(location.search);
let offered = null, folder = "", files = [];

const result = h("section", { class: "result", "aria-live": "polite", "aria-busy": "false" });
const list = h("div", {});
const input = (id, extra) => h("input", { id, autocomplete: "off", spellcheck: "false", ...extra });
const data = input("data", { list: "known", required: true, placeholder: "/path/to/rows.jsonl", value: query.get("data") ?? "" });
const model = input("model", { list: "models", placeholder: "seedling", value: query.get("model") ?? "" });
const length = input("length", { type: "number", min: 1, placeholder: "1024" });
const stage = h("select", { id: "stage" });
const file = h("input", { type: "file", id: "file", accept: ".jsonl,.json,.csv,.tsv,.txt,.md,.parquet", onchange: () => send(file.files[0]) });
const sent = h("progress", { class: "hidden", max: 1, "aria-label": "Sent" });
const drop = h("div", { class: "drop" }, h("label", { for: "file" }, "Send a file of rows"), file, sent);
for (const kind of ["dragover", "dragleave", "drop"]) drop.addEventListener(kind, (event) => {
  event.preventDefault();
  drop.classList.toggle("over", kind === "dragover");
  if (kind === "drop") send(event.dataTransfer.files[0]);
});

fill(page, h("h1", {}, "Rows"),
  h("p", { class: "soft" }, "See what the checks find in a file, and what a model reads and learns of it, before anything is trained."),
  h("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); look(); } },
    h("div", { class: "fields" },
      h("div", { class: "whole" }, h("label", { for: "data" }, "Rows"), data, h("datalist", { id: "known" }),
        h("p", { class: "hint" }, "A file or folder of this machine, a file that you sent, or seedling:descriptions")),
      h("div", {}, h("label", { for: "model" }, "Model whose tokens are shown"), model, h("datalist", { id: "models" })),
      h("div", {}, h("label", { for: "stage" }, "What the rows are for"), stage),
      h("div", {}, h("label", { for: "length" }, "Longest row, in tokens"), length)),
    h("div", { class: "row" }, h("button", { class: "first", type: "submit", id: "look" }, "Look at the rows"))),
  h("div", { class: "stack", style: { "margin-top": "1rem" } }, drop, list), result);

async function listed() {
  ({ folder, files } = await get("/files"));
  fill(document.getElementById("known"), [...files.map(({ name }) => `${folder}/${name}`), "seedling:descriptions"].map((value) => h("option", { value })));
  fill(list, files.length > 0 && h("details", { open: files.length < 6 }, h("summary", {}, `${files.length} ${files.length === 1 ? "file was" : "files were"} sent`),
    h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, files.map((one) => h("tr", {},
      h("th", { scope: "row" }, one.name), h("td", { class: "number" }, size(one.bytes)), h("td", { class: "soft" }, ago(one.changed)),
      h("td", {}, h("button", { type: "button", class: "plain", "aria-label": `Look at ${one.name}`, onclick: () => { data.value = `${folder}/${one.name}`; look(); } }, "Look")))))))));
}

/** Send a file as it is. XMLHttpRequest tells how far it is; fetch does not. */
function send(chosen) {
  if (!chosen) return;
  const request = new XMLHttpRequest(), token = document.querySelector('meta[name="graft-token"]')?.content, key = sessionStorage.getItem("graft-key");
  request.open("PUT", `/studio/api/files/${encodeURIComponent(chosen.name)}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  if (token) request.setRequestHeader("X-Graft-Token", token);
  if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
  sent.classList.remove("hidden");
  request.upload.onprogress = (event) => { if (event.lengthComputable) sent.value = event.loaded / event.total; };
  request.onerror = () => over(new Error("the file was not sent: has the server been stopped?"));
  request.onload = async () => {
    let body = null;
    try { body = JSON.parse(request.responseText); } catch { /* said by the status */ }
    if (request.status !== 201) return over(new Refused(request.status, body));
    over(null);
    say(`${body.name} is here.`, "good");
    data.value = body.path;
    await listed();
    look();
  };
  request.send(chosen);
}

function over(error) {
  sent.classList.add("hidden");
  file.value = "";
  if (error) fill(result, trouble(error));
}

let turn = 0;
async function look() {
  const mine = ++turn;
  if (!data.value.trim()) { data.focus(); return; }
  fill(result, h("p", { class: "soft" }, "Reading the rows, token by token; the first time this takes some seconds …"));
  result.setAttribute("aria-busy", "true");
  const asked = { data: data.value.trim(), model: model.value.trim() || "seedling", stage: stage.value || "sft", ...(length.value ? { max_length: +length.value } : {}) };
  try {
    const report = await call("POST", "/rows", asked);
    if (mine !== turn) return;
    const where = new URLSearchParams({ data: asked.data, model: asked.model, stage: asked.stage });
    fill(result, h("div", { class: "row apart" }, h("h2", {}, report.files.join(", ") || asked.data), h("a", { class: "button", href: `/studio/new?${where}` }, "Train on them")), dataReport(report));
  } catch (error) {
    if (mine === turn) fill(result, h("div", { class: "notes bad text", role: "alert" }, error.message));
  }
  if (mine === turn) result.setAttribute("aria-busy", "false");
}

try {
  offered = await get("/methods");
  fill(stage, offered.stages.map(({ name }) => h("option", { value: name, selected: name === (query.get("stage") || "sft") }, name)));
  fill(document.getElementById("models"), offered.models.map((value) => h("option", { value })));
  await listed();
  if (data.value) look();
} catch (error) { fill(result, trouble(error)); }
