// The leaderboard of the blind votes: ratings with intervals, who met whom, and what sways the voters.

import { ask, count, fill, get, h, page, say, trouble } from "./studio.js";

document.head.append(h("link", { rel: "stylesheet", href: "/studio/web/leaderboard.css" }));
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const place = h("div", {});
const tags = h("select", { id: "tag", onchange: () => show() });
const query = () => (tags.value ? `?tag=${encodeURIComponent(tags.value)}` : "");

function range(one, low, high) {
  const at = (rating) => `${(100 * (rating - low)) / (high - low)}%`;
  return h("div", { class: "range", role: "img", "aria-label": `${Math.round(one.rating)}, from ${Math.round(one.low)} to ${Math.round(one.high)}` },
    h("i", { style: { left: at(one.low), width: `${(100 * (one.high - one.low)) / (high - low)}%` } }), h("b", { style: { left: at(one.rating) } }));
}

function places(board) {
  const low = Math.floor(Math.min(...board.places.map((one) => one.low)) / 50) * 50;
  const high = Math.max(low + 50, Math.ceil(Math.max(...board.places.map((one) => one.high)) / 50) * 50);
  const boxes = board.places.map((one) => h("input", { type: "checkbox", "aria-label": `Choose ${one.model}`, value: one.model }));
  const between = h("a", { class: "button", role: "link", "aria-disabled": "true" }, "Vote between the chosen");
  const choose = () => {
    const models = boxes.filter((box) => box.checked).map((box) => `models=${encodeURIComponent(box.value)}`);
    if (models.length < 2) between.removeAttribute("href");
    else between.setAttribute("href", `/studio/arena?${models.join("&")}`);
    between.setAttribute("aria-disabled", String(models.length < 2));
  };
  for (const box of boxes) box.addEventListener("change", choose);
  return h("div", {}, h("div", { class: "scroll" }, h("table", { class: "places" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "said" }, "Choose")), h("th", { scope: "col" }, "Place"), h("th", { scope: "col" }, "Model"),
      h("th", { scope: "col", class: "number" }, "Rating"),
      h("th", { scope: "col", class: "wide" }, h("div", { class: "axis" }, h("span", {}, count(low)), h("span", {}, "95 % interval"), h("span", {}, count(high)))),
      h("th", { scope: "col", class: "number" }, "Votes"), ["Won", "Tied", "Lost"].map((word) => h("th", { scope: "col", class: "number optional" }, word)))),
    h("tbody", {}, board.places.map((one, number) => h("tr", {},
      h("td", {}, boxes[number]), h("td", {}, number && board.places[number - 1].place === one.place ? h("span", { class: "soft", title: "no vote tells it from the one above" }, `= ${one.place}`) : String(one.place)),
      h("th", { scope: "row" }, one.model), h("td", { class: "number" }, count(one.rating)), h("td", {}, range(one, low, high)),
      h("td", { class: "number" }, count(one.votes)), [one.won, one.tied, one.lost].map((number) => h("td", { class: "number optional" }, count(number)))))))),
  h("p", { class: "hint" }, "Models share a place where their intervals overlap with that of the best of them: the votes do not tell them apart yet."),
  board.apart.length ? h("p", { class: "notes" }, `No chain of votes connects these with the others, so they have no place: ${board.apart.join(", ")}.`) : null,
  h("div", { class: "buttons" }, between));
}

function heat(board) {
  const few = (cell) => cell.votes < board.enough;
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Points of each pair" }, h("table", { class: "heat" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "won against"), board.models.map((model) => h("th", { scope: "col" }, model)))),
    h("tbody", {}, board.matrix.map((row, i) => h("tr", {}, h("th", { scope: "row" }, board.models[i]), row.map((cell, j) => {
      if (!cell) return h("td", { class: "soft" }, i === j ? "" : "–");
      const share = cell.points / cell.votes;
      return h("td", { class: few(cell) ? "few" : "", style: { "--tone": share < 0.5 ? "var(--c2)" : "var(--c1)", "--depth": `${Math.round(70 * Math.abs(share - 0.5))}%` } },
        percent(share), h("small", {}, `${count(cell.votes)} ${cell.votes === 1 ? "vote" : "votes"}`));
    })))))); 
}

function tile(term, value, hint) {
  return h("div", {}, h("dt", {}, term), h("dd", {}, value), hint ? h("dd", { class: "hint" }, hint) : null);
}

function draw(board) {
  const { left, unseen } = board;
  const sway = left && (left.low > 0.5 ? "the left is favoured" : left.high < 0.5 ? "the right is favoured" : "no side is favoured");
  const hidden = unseen.undone + unseen.flagged;
  fill(place,
    h("dl", { class: "tiles" },
      tile("Votes", count(board.votes), `on ${count(board.prompts)} prompts`),
      tile("Points of the left side", left ? percent(left.value, 1) : "–", left ? `${percent(left.low, 1)} to ${percent(left.high, 1)}: ${sway}` : null),
      tile("Both bad", count(board.bad), "count as ties"),
      tile("Left out", count(hidden), hidden ? `${count(unseen.undone)} undone, ${count(unseen.flagged)} not blind` : "no vote")),
    board.few.length ? h("p", { class: "notes" }, h("strong", {}, `Fewer than ${board.enough} votes: `),
      board.few.slice(0, 6).map(([a, b, votes]) => `${a} and ${b} (${votes})`).join(", "), board.few.length > 6 ? ` and ${board.few.length - 6} more pairs` : "",
      ". What is said of these pairs may be chance.") : null,
    h("h2", {}, "Places"), places(board),
    h("h2", {}, "Who won against whom"),
    h("p", { class: "soft" }, "Points of the row's model against the column's: a win is one, a tie a half. Dashed: few votes."), heat(board),
    h("details", {}, h("summary", {}, "How this is reckoned"),
      h("p", {}, "Ratings are the most likely ones of Bradley and Terry's model: 400 points more are ten wins for each loss. The mean of all is 1,000."),
      h("p", {}, "An interval holds the rating in 95 of 100 draws of the prompts, with replacement. Votes on answers that name a model, and those that were undone, count nowhere.")));
}

async function show() {
  try {
    const board = await get(`/leaderboard${query()}`);
    const value = tags.value;
    fill(tags, h("option", { value: "" }, "all votes"), board.tags.map(({ tag, votes }) => h("option", { value: tag }, `${tag} (${count(votes)})`)));
    tags.value = value;
    if (board.votes) draw(board);
    else fill(place, h("p", { class: "notes" }, "No vote counts yet. ", h("a", { href: "/studio/arena" }, "Vote in the arena"), ": after some votes the models stand here."));
  } catch (error) { fill(place, trouble(error)); }
}

async function save(path, name) {
  try {
    const answer = await ask("GET", `/studio/api${path}`);
    const address = URL.createObjectURL(await answer.blob());
    h("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  } catch (error) { say(error.message, "bad"); }
}

fill(page,
  h("div", { class: "row apart" }, h("h1", {}, "Leaderboard"),
    h("a", { class: "button first", href: "/studio/preferences" }, "Learn from the votes")),
  h("div", { class: "row picker apart" }, h("div", {}, h("label", { for: "tag" }, "Votes with the tag"), tags),
    h("div", { class: "row" },
      h("button", { type: "button", onclick: () => save(`/leaderboard.csv${query()}`, "leaderboard.csv") }, "Places as CSV"),
      h("button", { type: "button", onclick: () => save("/votes.csv", "votes.csv") }, "Votes as CSV"))),
  place);
fill(tags, h("option", { value: "" }, "all votes"));
show();
