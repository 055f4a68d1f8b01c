// The runs of the folder: a list with a filter, and two or more of them side by side.
import { Chart, csv, library, save, sparkline } from "./chart.js";
import { STATES, badge, scored } from "./runs-parts.js";
import { ago, every, figure, fill, get, h, page, size, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/runs.css" }));

const address = (name) => `/studio/runs/${encodeURIComponent(name)}`;
const link = (name) => h("a", { class: "name", href: address(name) }, name);

const asked = new URLSearchParams(location.search).getAll("run");
if (asked.length > 1) compared(asked); else listed();

// The list

function listed() {
  const chosen = new Set();
  let runs = [], home = "", drawn = "", unread = 0;
  const text = h("input", { id: "find", type: "search", placeholder: "name, model, method, data", oninput: () => draw() });
  const state = h("select", { id: "state", onchange: () => draw() },
    h("option", { value: "" }, "all"), Object.keys(STATES).map((name) => h("option", { value: name }, name)));
  const list = h("div", { "aria-live": "off" }), bar = h("div", { class: "bar row apart hidden" });
  const told = h("span", { class: "soft small", role: "status" });
  fill(page,
    h("div", { class: "row apart" }, h("h1", {}, "Runs"), h("a", { class: "button first", href: "/studio/new" }, "New run")),
    h("div", { class: "row filters" },
      h("div", { class: "find" }, h("label", { for: "find" }, "Find"), text),
      h("div", {}, h("label", { for: "state" }, "State"), state), told),
    list, bar);

  every(2000, async () => {
    try {
      const found = await get("/runs");
      const now = JSON.stringify([found.runs, found.unread]);
      ({ runs, home, unread } = found);
      if (now !== drawn || list.querySelector(".notes.bad")) { drawn = now; draw(); }
    } catch (error) { fill(list, trouble(error)); drawn = ""; }
  });

  function shown() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    return runs.filter((run) => {
      const told = [run.name, run.model, run.method, run.stage, run.data, run.state].join(" ").toLowerCase();
      return (!state.value || run.state === state.value) && words.every((word) => told.includes(word));
    });
  }

  function draw() {
    const found = shown(), focused = document.activeElement?.id;
    told.textContent = found.length === runs.length ? `${runs.length} runs` : `${found.length} of ${runs.length} runs`;
    if (unread) told.textContent += `, reading ${unread} more …`;
    for (const name of chosen) if (!runs.some((run) => run.name === name)) chosen.delete(name);
    if (!runs.length) {
      fill(list, h("div", { class: "card empty" },
        h("h2", {}, "No run yet"), h("p", { class: "soft" }, "Runs appear here as soon as they are in ", h("code", {}, home), "."),
        h("p", {}, h("a", { class: "button first", href: "/studio/new" }, "Start the first one"))));
    } else if (!found.length) {
      fill(list, h("div", { class: "card empty" }, h("p", {}, "No run is like that."),
        h("button", { type: "button", onclick: () => { text.value = ""; state.value = ""; draw(); } }, "Show all")));
    } else {
      const head = ["Run", "State", "Method", "Model", "Data", "Step", "Loss", "Score", "Started", "Size"];
      const hidden = { Method: "w3", Model: "w2", Data: "w1", Score: "w2", Started: "w1", Size: "w1 number" };
      fill(list, h("div", { class: "card scroll" }, h("table", { class: "runs" },
        h("thead", {}, h("tr", {}, h("th", { class: "pick" }, h("span", { class: "said" }, "Compare")),
          head.map((title) => h("th", { scope: "col", class: hidden[title] ?? "" }, title)))),
        h("tbody", {}, found.map(row)))));
      if (focused) document.getElementById(focused)?.focus();
    }
    draw_bar();
  }

  function row(run) {
    const pick = h("input", {
      type: "checkbox", id: `pick-${run.name}`, "aria-label": `Compare ${run.name}`, disabled: run.step === null,
      onchange: (event) => { if (event.target.checked) chosen.add(run.name); else chosen.delete(run.name); draw_bar(); },
    });
    pick.checked = chosen.has(run.name);
    const started = run.started === null ? null : typeof run.started === "number" ? run.started : Date.parse(run.started) / 1000;
    return h("tr", {},
      h("td", { class: "pick" }, pick),
      h("th", { scope: "row" }, link(run.name), run.damage.map((text) => h("div", { class: "worse small" }, text))),
      h("td", {}, badge(run.state)),
      h("td", { class: "w3" }, run.method, run.stage && h("div", { class: "soft small" }, run.stage)),
      h("td", { class: "w2" }, run.model),
      h("td", { class: "w1" }, run.data),
      h("td", {}, run.step === null ? "–" : `${figure(run.step)} / ${run.of === null ? "?" : figure(run.of)}`,
        run.state === "running" && run.of ? h("progress", { value: String(run.step ?? 0), max: run.of, "aria-label": "Steps" }) : null),
      h("td", {}, sparkline(run.curve, `loss, now ${figure(run.loss)}`), h("span", { class: "soft small" }, run.loss === null ? "" : figure(run.loss))),
      h("td", { class: "w2" }, scored(run.score)),
      h("td", { class: "w1 soft" }, started ? ago(started) : "–"),
      h("td", { class: "w1 number soft" }, run.bytes ? size(run.bytes) : "–"));
  }

  function draw_bar() {
    bar.classList.toggle("hidden", !chosen.size);
    const names = [...chosen], where = new URLSearchParams(names.map((name) => ["run", name]));
    fill(bar, h("span", {}, names.length === 1 ? "1 run chosen: choose another one to compare" : `${names.length} runs chosen`),
      h("div", { class: "row" },
        h("button", { type: "button", onclick: () => { chosen.clear(); draw(); } }, "Clear"),
        names.length > 1 && names.length <= 8
          ? h("a", { class: "button first", href: `/studio/runs?${where}` }, "Compare")
          : h("button", { class: "first", disabled: true }, names.length > 8 ? "At most 8" : "Compare")));
  }
}

// Side by side

async function compared(names) {
  const back = h("a", { href: "/studio/runs" }, "← All runs");
  const body = h("div", {}, h("p", { class: "soft" }, "Reading the runs …"));
  fill(page, back, h("h1", {}, `${names.length} runs side by side`), body);
  try {
    const query = new URLSearchParams(names.map((name) => ["run", name]));
    const [found] = await Promise.all([get(`/compare?${query}`), library()]);
    const chart = new Chart({
      title: "Loss", wide: true, height: 300, sync: false,
      lines: names.flatMap((name, i) => [
        { name: `loss ${name}`, label: `${name}, each step`, faint: true, quiet: true, colour: i },
        { name: `loss_mean ${name}`, label: name, colour: i },
      ]),
    });
    fill(body,
      found.warnings.map((text) => h("p", { class: "notes" }, text)),
      chart.element,
      h("div", { class: "row apart" }, h("h2", {}, "Scores and settings that differ"),
        h("button", { type: "button", onclick: () => save("runs.csv", csv(cells(names, found))) }, "Save as CSV")),
      table(names, found), seeds(found));
    const series = {};
    for (const [kind, curves] of Object.entries(found.curves))
      for (const [name, points] of Object.entries(curves)) series[`${kind} ${name}`] = points;
    chart.show(series);
  } catch (error) { fill(body, trouble(error)); }
}

const setting = (value) => (value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));

function table(names, found) {
  const scores = found.metrics.map(({ name, lower }) => {
    const after = names.map((run) => found.scores[run]?.[name]?.[1] ?? null), held = after.filter((value) => value !== null);
    const best = held.length > 1 ? (lower ? Math.min(...held) : Math.max(...held)) : null;
    return h("tr", {}, h("th", { scope: "row" }, name, h("div", { class: "soft small" }, lower ? "less is better" : "more is better")),
      names.map((run, i) => h("td", {},
        h("span", { class: after[i] !== null && after[i] === best ? "best" : "" }, figure(after[i])),
        found.scores[run]?.[name]?.[0] !== null && found.scores[run]?.[name] ? h("div", { class: "soft small" }, `from ${figure(found.scores[run][name][0])}`) : null)));
  });
  const settings = found.columns.map((key) =>
    h("tr", {}, h("th", { scope: "row" }, h("code", {}, key)), names.map((run) => h("td", {}, setting(found.settings[run][key])))));
  if (!scores.length && !settings.length) return h("p", { class: "soft" }, "These runs have the same settings, and no scores yet.");
  return h("div", { class: "card scroll" }, h("table", { class: "side" },
    h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "soft" }, "what")), names.map((name) => h("th", { scope: "col" }, link(name))))),
    h("tbody", {}, scores, settings)));
}

function seeds(found) {
  if (!found.groups.length) return null;
  const rows = found.groups.flatMap((group) => Object.entries(group.mean).map(([metric, mean]) =>
    h("tr", {}, h("td", {}, group.runs.join(", ")), h("td", {}, metric), h("td", { class: "number" }, figure(mean)),
      h("td", { class: "number" }, metric in group.deviation ? `± ${figure(group.deviation[metric])}` : "–"),
      h("td", { class: "number" }, group.runs.length))));
  return [h("h2", {}, "Means over seeds"), h("div", { class: "card scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["runs", "metric", "mean", "deviation", "n"].map((title, i) => h("th", { scope: "col", class: i > 1 ? "number" : "" }, title)))),
    h("tbody", {}, rows)))];
}

function cells(names, found) {
  const scores = found.metrics.flatMap(({ name }) => [`${name} before`, name]);
  return [["run", ...found.columns, ...scores], ...names.map((run) => [
    run, ...found.columns.map((key) => setting(found.settings[run][key])),
    ...found.metrics.flatMap(({ name }) => found.scores[run]?.[name] ?? [null, null])])];
}
