// An answer as its tokens: what each was worth by hover or by keys, and where two answers part.

import { fill, h } from "./studio.js";

const MOST = 4_000_000;  // cells of the table that compares two answers

/** Return, for each of `mine`, whether `theirs` has it as well, in the same order. Texts of tokens. */
export function shared(mine, theirs) {
  const both = Math.min(mine.length, theirs.length);
  let begin = 0;
  while (begin < both && mine[begin] === theirs[begin]) begin += 1;
  let end = 0;
  while (end < both - begin && mine[mine.length - 1 - end] === theirs[theirs.length - 1 - end]) end += 1;
  const found = mine.map((_, place) => place < begin || place >= mine.length - end);
  const a = mine.slice(begin, mine.length - end), b = theirs.slice(begin, theirs.length - end);
  if (!a.length || !b.length || a.length * b.length > MOST) return found;
  const wide = b.length + 1, best = new Uint16Array((a.length + 1) * wide);  // longest common rest of both
  for (let i = a.length - 1; i >= 0; i -= 1)
    for (let j = b.length - 1; j >= 0; j -= 1)
      best[i * wide + j] = a[i] === b[j]
        ? best[(i + 1) * wide + j + 1] + 1 : Math.max(best[(i + 1) * wide + j], best[i * wide + j + 1]);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { found[begin + i] = true; i += 1; j += 1; }
    else if (best[(i + 1) * wide + j] >= best[i * wide + j + 1]) i += 1;
    else j += 1;
  }
  return found;
}

/** The tokens of an answer that is being written: an element, and what is known of each. */
export class Tokens {
  constructor(label) {
    this.known = [];  // {text, tokens, element}: what was written in one piece
    this.pending = [];  // tokens whose text has not come: parts of one character
    this.element = h("div", {
      class: "text tokens", role: "group", tabindex: "0",
      "aria-label": `${label}. Arrow keys walk through its tokens.`,
      onkeydown: (event) => this.walk(event),
      onpointerover: (event) => this.tell(event.target),
      onpointerout: hide,
      onclick: (event) => this.tell(event.target),
      onfocusin: (event) => this.tell(event.target),
      onfocusout: hide,
    });
  }

  get text() { return this.known.map((one) => one.text).join(""); }
  get texts() { return this.known.map((one) => one.text); }

  /** Add a piece of the answer, see `answer` of stream.js. */
  add({ text, tokens }) {
    this.pending.push(...tokens);
    if (!text) return;
    const spelt = this.pending.map((one) => one.text).join("") === text && this.pending.every((one) => one.text);
    const parts = spelt ? this.pending.map((one) => [one.text, [one]]) : [[text, this.pending]];
    for (const [part, of] of parts) {
      const element = h("span", { class: "token", tabindex: "-1" }, part);
      this.known.push({ text: part, tokens: of, element });
      this.element.append(element);
    }
    this.pending = [];
  }

  /** Mark the tokens that are not shared. found: for each of them, whether it is. */
  mark(found) {
    this.known.forEach((one, place) => {
      one.element.classList.toggle("apart", !found[place]);
      one.element.classList.toggle("parting", !found[place] && found.indexOf(false) === place);
    });
  }

  walk(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") { hide(); this.element.focus(); return; }
    if (!(event.key in steps) || !this.known.length) return;
    event.preventDefault();
    const at = this.known.findIndex((one) => one.element === document.activeElement);
    const to = Math.max(0, Math.min(this.known.length - 1, at + steps[event.key]));
    this.known[to].element.focus();
  }

  tell(element) {
    const one = this.known.find((known) => known.element === element);
    if (one?.tokens.length) show(element, one.tokens);
  }
}

const tip = h("div", { class: "tip hidden", role: "tooltip", id: "token-tip" });

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100 %" : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %";
};
const quoted = (text) => JSON.stringify(text);

function show(element, tokens) {
  if (!tip.isConnected) document.body.append(tip);
  fill(tip, tokens.map((token) => [
    h("p", { class: "tip-head" }, h("code", {}, quoted(token.text)), h("strong", {}, percent(token.logprob))),
    token.others.length > 1 && h("ul", {}, token.others.map(([text, logprob]) =>
      h("li", { class: text === token.text ? "chosen" : null },
        h("span", { class: "bar", style: { width: `${100 * Math.exp(logprob)}%` } }),
        h("code", {}, quoted(text)), h("span", {}, percent(logprob))))),
  ]));
  tip.classList.remove("hidden");
  element.setAttribute("aria-describedby", tip.id);
  const at = element.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - own.width - 8));
  const above = at.bottom + own.height + 10 > innerHeight;
  tip.style.setProperty("left", `${left}px`);
  tip.style.setProperty("top", `${above ? Math.max(8, at.top - own.height - 6) : at.bottom + 6}px`);
}

function hide() {
  tip.classList.add("hidden");
  document.querySelector("[aria-describedby=token-tip]")?.removeAttribute("aria-describedby");
}
