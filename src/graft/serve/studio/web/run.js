// One run, as it goes: curves, samples, data, checkpoints, what happened, its command; stop and continue it.
import { Chart, csv, library, save } from "./chart.js";
import { badge, scored } from "./runs-parts.js";
import { dataReport } from "./data-report.js";
import { ago, call, every, figure, fill, get, h, page, say, seconds, size, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/run.css" }));

const name = decodeURIComponent(location.pathname.split("/").pop());
const api = `/runs/${encodeURIComponent(name)}`;
document.title = `${name} · Graft studio`;
const MANY = 4000; // points of a curve from which on the whole view is asked again
const WORKS = ["running", "starting"];

const head = h("div", {}), tiles = h("div", {}), places = {};
const place = (key) => (places[key] ??= h("section", { id: key }));
const curves = h("div", { class: "charts", id: "curves" });
fill(page, h("p", {}, h("a", { href: "/studio/runs" }, "← All runs")), head, tiles,
  place("views"), curves, ...["samples", "scores", "data", "checkpoints", "events", "settings", "log"].map(place));
fill(head, h("h1", {}, name), h("p", { class: "soft" }, "Reading the run …"));

// The curves

const view = { axis: "step", log: false, from: null, to: null };
let known = { generation: null, step: -1, series: {} }, charts = [], shape = "";

async function follow() {
  const query = new URLSearchParams({ axis: view.axis });
  const zoomed = view.from !== null || view.to !== null, whole = zoomed || view.axis !== "step";
  if (view.from !== null) query.set("from", view.from);
  if (view.to !== null) query.set("to", view.to);
  if (!whole && known.generation !== null) {
    query.set("since", known.step);
    query.set("generation", known.generation);
  }
  const asked = JSON.stringify(view);
  const found = await get(`${api}/curves?${query}`);
  if (asked !== JSON.stringify(view)) return; // another view was chosen meanwhile
  if (found.whole) known = { series: found.series };
  else append(found.series);
  known.generation = found.generation;
  known.step = found.step ?? -1;
  if (found.charts) build(found.charts);
  if (found.whole || Object.keys(found.series).length) for (const chart of charts) chart.show(known.series);
  if (Object.values(known.series).some(([x]) => x.length > MANY)) known.generation = null;
}

function append(news) {
  for (const [key, [x, y]] of Object.entries(news)) {
    const held = (known.series[key] ??= [[], []]);
    held[0].push(...x);
    held[1].push(...y);
    if (!charts.some((chart) => chart.lines.some((line) => line.name === key))) known.generation = null; // a new chart
  }
}

function build(plans) {
  const now = JSON.stringify([plans, view.axis, view.log]);
  if (now === shape) return;
  shape = now;
  charts = plans.map((plan) => new Chart({
    title: plan.title, wide: plan.wide, axis: view.axis, log: view.log && plan.left.some(([key]) => key.includes("loss")),
    height: plan.wide ? 300 : 200, onzoom: zoom,
    lines: ["left", "right"].flatMap((side) => plan[side].map(([key, label], i) => ({
      name: key, label, right: side === "right" && plan.left.length > 0,
      faint: plan[side].some(([other]) => other === `${key}_mean`), points: key.startsWith("eval_"),
      colour: (side === "right" ? 3 : 0) + plan[side].slice(0, i + 1).filter(([each]) => !each.endsWith("_mean")).length - 1,
    }))),
  }));
  fill(curves, charts.map((chart) => chart.element));
}

function zoom(from, to) {
  const whole = (value) => (view.axis === "seconds" || value === null ? value : Math.round(value));
  Object.assign(view, { from: whole(from), to: whole(to) });
  ends();
  again();
}
function again() { known = { generation: null, step: -1, series: known.series }; follow().catch(lost); }

const from = h("input", { class: "ends", type: "number", id: "from", placeholder: "start", onchange: typed });
const to = h("input", { class: "ends", type: "number", id: "to", placeholder: "end", onchange: typed });
const all = h("button", { type: "button", onclick: () => zoom(null, null) }, "Show all");
function typed() { zoom(from.value === "" ? null : +from.value, to.value === "" ? null : +to.value); }
function ends() {
  from.value = view.from ?? "";
  to.value = view.to ?? "";
  all.disabled = view.from === null && view.to === null;
}
fill(place("views"), h("div", { class: "row apart" }, h("h2", {}, "Curves"),
  h("div", { class: "row views" },
    h("label", { for: "axis" }, "over"),
    h("select", { id: "axis", onchange: (event) => { view.axis = event.target.value; shape = ""; zoom(null, null); } },
      [["step", "steps"], ["tokens", "tokens"], ["seconds", "time"]].map(([value, text]) => h("option", { value }, text))),
    h("label", { for: "from" }, "from"), from, h("label", { for: "to" }, "to"), to, all,
    h("button", { type: "button", "aria-pressed": "false", id: "log-loss", onclick: (event) => {
      view.log = !view.log;
      event.target.setAttribute("aria-pressed", String(view.log));
      shape = "";
      again();
    } }, "Log"),
    h("button", { type: "button", onclick: saveNumbers }, "CSV"))),
  h("p", { class: "soft small" }, "Drag over a curve to enlarge a part of all of them; a double click shows all."));
ends();

async function saveNumbers() {
  try {
    const { series } = await get(`${api}/curves?most=1000000`);
    const names = Object.keys(series).filter((key) => !key.endsWith("_mean")), rows = new Map();
    names.forEach((key, i) => series[key][0].forEach((step, at) => {
      if (!rows.has(step)) rows.set(step, [step, ...names.map(() => null)]);
      rows.get(step)[i + 1] = series[key][1][at];
    }));
    save(`${name}.csv`, csv([["step", ...names], ...[...rows.values()].sort((a, b) => a[0] - b[0])]));
  } catch (error) { say(error.message, "bad"); }
}

// The facts

let facts = null;
const drawn = {};

async function look() {
  facts = await get(api);
  part("head", [facts.state, facts.report, facts.origin, facts.holder], () => fill(head, title()));
  part("tiles", [facts.state, facts.step, facts.of, facts.loss, Math.round(facts.seconds ?? 0), facts.left_s, facts.bytes], () => fill(tiles, numbers()));
  if (!facts.begun) {
    for (const key of ["views", "samples", "scores", "data", "checkpoints", "events", "settings"]) place(key).classList.add("hidden");
    part("log", facts.log, () => fill(place("log"), logged()));
    return;
  }
  place("views").classList.toggle("hidden", facts.step === null);
  section("samples", facts.samples, samples);
  section("scores", facts.scores, scores);
  section("data", facts.data, () => (facts.data.read ? [h("h2", {}, "Data"), dataReport(facts.data)] : null));
  section("checkpoints", [facts.checkpoints, facts.adapter], checkpoints);
  section("events", [facts.events, facts.notes], events);
  section("settings", [facts.recipe, facts.command, facts.about], settings);
  section("log", facts.log, logged);
}

function part(key, value, draw) {
  const now = JSON.stringify(value);
  if (drawn[key] !== now) { drawn[key] = now; draw(); }
}
function section(key, value, draw) {
  part(key, value, () => {
    const found = draw();
    fill(place(key), found);
    place(key).classList.toggle("hidden", !found);
  });
}

function title() {
  const works = WORKS.includes(facts.state), go = facts.state === "stopped" || facts.state === "damaged";
  return [
    h("div", { class: "row apart" },
      h("div", { class: "title" }, h("h1", {}, name), badge(facts.state)),
      h("div", { class: "row" },
        facts.report && h("a", { class: "button", href: `/studio/api${api}/report`, target: "_blank", rel: "noopener" }, "Report"),
        facts.state === "running" && h("button", { type: "button", id: "stop", onclick: () => ask_stop(false) }, "Stop"),
        facts.state === "running" && h("button", { type: "button", class: "bad", id: "kill", onclick: () => ask_stop(true) }, "Kill"),
        go && facts.begun && h("button", { type: "button", class: "first", id: "resume", onclick: resume }, "Continue"))),
    h("p", { class: "soft" }, [facts.method, facts.model, facts.stage, facts.data?.files ? "" : facts.data].filter((text) => typeof text === "string" && text).join(" · ")),
    facts.origin && origin(facts.origin),
    facts.damage.map((text) => h("p", { class: "notes bad" }, text)),
    facts.state === "failed" && h("p", { class: "notes bad", role: "alert" }, "It ended before the first step: its log below says why."),
    works && facts.holder && h("p", { class: "soft small" }, `${facts.holder} works on it; closing this page or the server does not stop it.`)];
}

function origin(found) {
  const where = typeof found.from === "string" && found.from.startsWith("/studio/") ? found.from : null;
  const words = [found.votes ? `${found.votes} votes` : "", found.pairs ? `${found.pairs} pairs` : ""].filter(Boolean).join(", ");
  return h("p", { class: "notes" }, `Made of ${words || "what people said"}. `, where && h("a", { href: where }, "Where it comes from"));
}

function numbers() {
  const { step, of, loss, state } = facts, tile = (title, value) => h("div", {}, h("dt", {}, title), h("dd", {}, value));
  return [
    of && step !== null && h("div", { class: "steps" }, h("progress", { value: String(step), max: of, "aria-label": `Step ${step} of ${of}` })),
    h("dl", { class: "tiles" },
      tile("Step", step === null ? "–" : `${figure(step)} / ${of === null ? "?" : figure(of)}`),
      tile("Loss", figure(loss)),
      facts.score && tile(`Score, ${facts.score.metric}`, scored(facts.score, false)),
      facts.seconds > 0 && tile("Time in steps", seconds(facts.seconds)),
      state === "running" && facts.left_s !== null && tile("Left, about", seconds(facts.left_s)),
      facts.about?.time && tile("Started", ago(Date.parse(facts.about.time) / 1000)),
      facts.bytes > 0 && tile("On the disk", size(facts.bytes)))];
}

function samples() {
  if (!facts.samples.steps?.length) return null;
  return [h("h2", {}, "Samples while it learns"), facts.samples.prompts.map((prompt, i) => [
    h("h3", { class: "text" }, prompt),
    h("div", { class: "answers", tabindex: "0", role: "group", "aria-label": `Answers to ${prompt}` }, facts.samples.steps.map(({ step, answers }) =>
      h("article", {}, h("h4", {}, `Step ${figure(step)}`), h("div", { class: "text", dir: "auto" }, answers[i]))))])];
}

function scores() {
  const names = Object.keys(facts.scores.after);
  if (!names.length) return null;
  return [h("h2", {}, "Before and after"), h("div", { class: "card scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["metric", "before", "after"].map((text, i) => h("th", { scope: "col", class: i ? "number" : "" }, text)))),
    h("tbody", {}, names.map((key) => h("tr", {}, h("th", { scope: "row" }, key),
      h("td", { class: "number" }, figure(facts.scores.before[key])), h("td", { class: "number" }, figure(facts.scores.after[key]))))))),
    facts.scores.rows && h("p", { class: "soft small" }, `On ${figure(facts.scores.rows)} held-out rows.`)];
}

function checkpoints() {
  if (!facts.checkpoints.length && !facts.adapter) return null;
  const state = (one) => one.wrong ? [h("span", { class: "badge bad" }, "damaged"), h("div", { class: "small" }, one.wrong)]
    : h("span", { class: "badge good", title: one.hashed ? "Every byte is as it was written" : "The sizes of all files are as they were written" }, one.hashed ? "whole" : "sizes agree");
  return [h("h2", {}, "Checkpoints"),
    facts.checkpoints.length > 0 && h("div", { class: "card scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["step", "size", "state", "digest"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, facts.checkpoints.map((one) => h("tr", {}, h("th", { scope: "row" }, figure(one.step)),
        h("td", {}, size(one.bytes)), h("td", {}, state(one)), h("td", {}, h("code", {}, one.digest || "–"))))))),
    facts.adapter && h("p", {}, "The adapter: ", h("code", {}, facts.adapter.folder), ` (${size(facts.adapter.bytes)})`)];
}

const KINDS = { start: "Started", resumed: "Continued", warning: "", end: "Ended" };
function events() {
  if (!facts.events.length && !facts.notes.length) return null;
  const when = (time) => time && h("span", { class: "soft small" }, ` ${new Date(time).toLocaleString()}`);
  return [h("h2", {}, "What happened"), h("ul", { class: "events" },
    facts.notes.map((text) => h("li", { class: "warning" }, text)),
    facts.events.map(({ kind, text, time }) => h("li", { class: kind }, [KINDS[kind], text].filter(Boolean).join(" "), when(time))))];
}

function settings() {
  const { machine = {}, versions = {} } = facts.about ?? {};
  const rows = [
    ["Command", copied(facts.command)],
    facts.typed && facts.typed !== facts.command ? ["As it was started", copied(facts.typed)] : null,
    facts.about?.base && ["Base", `${facts.about.base}, ${figure(facts.about.parameters)} parameters in ${facts.about.stored}; ${figure(facts.about.trained)} trained on ${figure(facts.about.sites)} sites`],
    machine.processor && ["Machine", `${machine.processor}, ${machine.threads} of ${machine.cores} cores${machine.gpus?.length ? `, ${machine.gpus.join(", ")}` : ""}`],
    Object.keys(versions).length > 0 && ["Versions", Object.entries(versions).map(([key, value]) => `${key} ${value}`).join(", ")],
    ["Folder", h("code", {}, facts.folder)]].filter(Boolean);
  return [h("h2", {}, "Settings"), h("dl", { class: "facts" }, rows.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    facts.recipe && h("details", {}, h("summary", {}, "The whole recipe"), h("pre", {}, facts.recipe))];
}

export function copied(text) {
  return h("div", { class: "copy" }, h("code", {}, text), h("button", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(text); say("The command is copied.", "good"); } catch { say("The browser does not let it be copied: mark it and copy it.", "bad"); }
  } }, "Copy"));
}

function logged() {
  return facts.log ? [h("h2", {}, "Log"), h("pre", { class: "log", tabindex: "0", "aria-label": "The end of the log" }, facts.log)] : null;
}

function ask_stop(atOnce) {
  const box = h("dialog", { "aria-labelledby": "ask" },
    h("form", { method: "dialog" }, h("h2", { id: "ask" }, atOnce ? `Kill ${name}?` : `Stop ${name}?`),
      h("p", {}, atOnce ? "It ends at once. Steps since the newest checkpoint are lost." : "It ends its step and saves a checkpoint. It can be continued later."),
      h("div", { class: "buttons" }, h("button", { value: "yes", class: atOnce ? "bad" : "first" }, atOnce ? "Kill it" : "Stop it"), h("button", { value: "" }, "Let it run"))));
  box.addEventListener("close", async () => {
    box.remove();
    if (box.returnValue !== "yes") return;
    try {
      await call("POST", `${api}/stop`, { at_once: atOnce });
      say(atOnce ? "It was killed." : "It ends after its step.", "good");
      await look();
    } catch (error) { say(error.message, "bad"); }
  });
  document.body.append(box);
  box.showModal();
}

async function resume() {
  try {
    await call("POST", `${api}/resume`, {});
    say("It goes on.", "good");
    await look();
  } catch (error) { say(error.message, "bad"); }
}

// As it goes

let wrong = false;
function lost(error) {
  if (!facts) fill(head, h("h1", {}, name), trouble(error));
  else if (!wrong) say(error.message, "bad");
  wrong = true;
}

let turn = 0;
library().then(() => every(500, async () => {
  try {
    const works = !facts || WORKS.includes(facts.state);
    if (turn % (works ? 4 : 12) === 0 || wrong) await look();
    if (facts.begun && (works || known.generation === null || turn % 6 === 0)) await follow();
    wrong = false;
  } catch (error) { lost(error); }
  turn += 1;
})).catch(lost);
