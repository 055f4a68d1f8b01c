// What the pages of runs share.
import { figure, h } from "./studio.js";

export const STATES = { running: "live good", starting: "live", finished: "good", stopped: "", failed: "bad", damaged: "bad" };

/** Return the mark of a state. */
export const badge = (state) => h("span", { class: `badge ${STATES[state] ?? ""}`, "data-state": state }, state);

/** Return a score before and after, coloured by whether it got better.  named: with the name of its metric. */
export function scored(score, named = true) {
  if (!score || score.after === null) return h("span", { class: "soft" }, "–");
  const { before, after, lower, metric } = score;
  const better = before === null || before === after ? "" : (after < before) === lower ? "better" : "worse";
  return [named && h("span", { class: "soft small" }, `${metric} `), before === null ? "" : `${figure(before)} → `, h("span", { class: better }, figure(after))];
}
