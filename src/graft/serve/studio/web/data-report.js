// What the data checks say of rows, and rows as a model sees them, token by token.
import { count, figure, h } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/data-report.css" }));

/** Return a data report: counts, notes, lengths, rows that cannot be used, rows with what is learnt. */
export function dataReport(report) {
  const rejected = Object.values(report.rejected ?? {}).reduce((sum, one) => sum + one, 0);
  const tile = (title, value) => h("div", {}, h("dt", {}, title), h("dd", {}, value));
  const learnt = report.tokens ? ` (${Math.round((100 * report.tokens_learnt) / report.tokens)} %)` : "";
  return [
    h("dl", { class: "tiles" },
      tile("Rows read", count(report.read)), tile("To learn from", count(report.train)),
      (report.eval ?? 0) > 0 && tile("Held out", count(report.eval)),
      tile("Left out", h("span", { class: rejected ? "worse" : "" }, count(rejected))),
      tile("Repeated", count(report.duplicates ?? 0)),
      tile("Cut", count(report.cut ?? 0)),
      tile("Tokens", count(report.tokens ?? 0)), tile("Tokens learnt", `${count(report.tokens_learnt ?? 0)}${learnt}`)),
    report.notes.map((text) => h("p", { class: "notes" }, text)),
    rejects(report, rejected), lengths(report), masks(report)];
}

function rejects(report, all) {
  if (!all) return null;
  const rows = report.rejects.map((one) => h("tr", {},
    h("th", { scope: "row" }, h("code", {}, one.source)), h("td", {}, one.reason), h("td", {}, one.detail), h("td", {}, one.remedy)));
  return [h("h3", {}, "Rows that cannot be used"), h("div", { class: "card scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["file:line", "reason", "what is wrong", "what to do"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows))),
    report.rejects_all > report.rejects.length && h("p", { class: "soft small" }, `${count(report.rejects_all - report.rejects.length)} more are in rejected.jsonl of a run.`)];
}

function lengths({ histogram, lengths: told, max_length: most }) {
  if (!histogram?.length) return null;
  const tallest = Math.max(...histogram.map(([, rows]) => rows), 1);
  const words = `median ${figure(told?.["50"])}, 90 % up to ${figure(told?.["90"])}, longest ${figure(told?.["100"])}, limit ${figure(most)}`;
  return [h("h3", {}, "Lengths in tokens"),
    h("div", { class: "card" }, h("div", { class: "bars", role: "img", "aria-label": `Lengths of the examples: ${words}` },
      histogram.map(([top, rows]) => h("span", { style: { height: `${(100 * rows) / tallest}%` }, title: `up to ${top} tokens: ${rows}` }))),
    h("div", { class: "row apart soft small" }, h("span", {}, "0"), h("span", {}, words), h("span", {}, figure(histogram.at(-1)[0]))))];
}

/** Return rows as the model sees them, with what is learnt in another colour. */
export function masks({ samples }) {
  if (!samples?.length) return null;
  return [h("h3", {}, "What the model sees, and what it learns"),
    h("p", { class: "row legend" }, h("span", { class: "learnt" }, "learnt: the loss counts it"), h("span", { class: "context" }, "context: only read")),
    h("div", { class: "stack" }, samples.map((sample) => {
      const learnt = sample.pieces.filter(([, yes]) => yes).length;
      return h("article", { class: "card" },
        h("div", { class: "row apart" }, h("code", {}, sample.source), h("span", { class: "soft small" }, `${learnt} of ${sample.pieces.length} pieces learnt`)),
        h("div", { class: "masked", dir: "auto" }, sample.pieces.map(([text, yes]) =>
          h("span", { class: `token ${yes ? "learnt" : "context"}`, title: `${JSON.stringify(text)}, ${yes ? "learnt" : "context"}` }, visible(text)))),
        sample.more > 0 && h("p", { class: "soft small" }, `${count(sample.more)} more tokens.`));
    }))];
}

// A piece of nothing but white space must be seen too; new lines keep their break.
function visible(text) {
  return text.split("\n").flatMap((part, i) => (i ? [h("span", { class: "ctl", "aria-hidden": "true" }, "↵"), "\n", part] : [part]));
}
