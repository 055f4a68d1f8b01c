// What all pages of the studio share. Text of models and files goes into text nodes: never innerHTML.

const meta = (name) => document.querySelector(`meta[name="graft-${name}"]`)?.content ?? "";
export const MODELS = meta("models") === "yes";
export const page = document.getElementById("page");
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

/** Return an element. attributes: `on...` are listeners, true and false are flags; children: nodes, texts, lists. */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value") made.value = value;
    else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Put these children in the place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The error of a request: `message` is the server's own sentence. */
export class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = body?.error?.code ?? null;
    this.param = body?.error?.param ?? null;
  }
}

/** The error of a request that nobody answered. */
export class Stopped extends Error {
  constructor() { super("The server does not answer."); }
}

function headers(extra = {}) {
  const key = sessionStorage.getItem("graft-key");
  const token = meta("token");
  return { ...(token ? { "X-Graft-Token": token } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}), ...extra };
}

/**
 * Ask the server; returns the response, and raises Refused or Stopped. A server with keys is asked again with
 * the key, one that was started anew with its new token.
 */
export async function ask(method, path, body, { signal } = {}) {
  for (let renewed = false; ;) {
    const options = { method, signal, headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }) };
    if (body !== undefined) options.body = JSON.stringify(body);
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      lost();
      throw new Stopped();
    }
    if (answer.ok) return answer;
    const refused = new Refused(answer.status, await answer.json().catch(() => null));
    if (refused.code === "no_token" && !renewed && (await renew())) renewed = true;
    else if (!["no_api_key", "invalid_api_key", "forbidden"].includes(refused.code) || !(await askForKey(refused))) throw refused;
  }
}

/** Take the token of a server that was started anew; returns whether it answers. */
async function renew() {
  try {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const token = fresh.querySelector("meta[name=graft-token]")?.content;
    if (token !== undefined) document.querySelector("meta[name=graft-token]").content = token;
    return answer.ok;
  } catch {
    return false;
  }
}

let bar = null;
/** Say that the server does not answer, for as long as it does not; then `graft-back` is told to the window. */
function lost() {
  if (bar) return;
  bar = h("div", { class: "lost", role: "alert" },
    h("strong", {}, "The server does not answer."),
    " Start it again in its terminal: this page goes on by itself, and keeps what you have typed.");
  document.body.prepend(bar);
  const end = every(2000, async () => {
    if (!(await renew())) return;
    end();
    bar?.remove();
    bar = null;
    say("The server answers again.", "good");
    dispatchEvent(new Event("graft-back"));
  });
}

/** Ask the server, and return the JSON that it answers. path: under /studio/api, or whole. */
export async function call(method, path, body, options) {
  const answer = await ask(method, path.startsWith("/v1/") ? path : `/studio/api${path}`, body, options);
  return answer.status === 204 ? null : answer.json();
}
export const get = (path, options) => call("GET", path, undefined, options);

let asking = null;
/** Ask for the server's key, once for all who wait; returns whether one was given. refused: why. */
function askForKey(refused) {
  const used = sessionStorage.getItem("graft-key");
  const why = { no_api_key: null, invalid_api_key: used && "That key is not known here.",
    forbidden: "This key may look and vote. To start, stop or load something, give the administrator's." }[refused.code];
  asking ??= new Promise((resolve) => {
    const field = h("input", { type: "password", name: "key", autocomplete: "off", required: true, id: "key",
      "aria-describedby": "key-why" });
    const box = h("dialog", { "aria-labelledby": "key-title" },
      h("form", { method: "dialog" },
        h("h2", { id: "key-title" }, "This server wants a key"),
        h("p", { id: "key-why", class: why ? "notes bad" : null },
          why ?? "It was set where the server was started. This tab keeps it until you close it."),
        h("label", { for: "key" }, "Key"), field,
        h("div", { class: "buttons" },
          h("button", { class: "first", value: "go" }, "Go on"),
          h("button", { type: "button", onclick: () => box.close("") }, "Not now"))));
    box.addEventListener("close", () => {
      const given = box.returnValue === "go" && field.value;
      if (given) sessionStorage.setItem("graft-key", field.value);
      box.remove();
      asking = null;
      resolve(Boolean(given));
    });
    document.body.append(box);
    box.showModal();
  });
  return asking;
}

/** Say something that goes away, also to those who listen. kind: "", "good" or "bad". */
export function say(text, kind = "") {
  const said = document.getElementById("said");
  const line = h("p", { class: `toast ${kind}` }, text);
  said.append(line);
  setTimeout(() => line.remove(), 6000);
}

/** Return a button that copies a text. text: what it is, or a function that returns it. */
export function copier(text, label = "Copy") {
  return h("button", { type: "button", onclick: async (event) => {
    const wanted = typeof text === "function" ? text() : text;
    try {
      await navigator.clipboard.writeText(wanted);
      say("Copied.", "good");
    } catch {  // pages that came over plain HTTP from another machine may not
      const near = event.target.parentElement.querySelector("pre");
      if (near) getSelection().selectAllChildren(near);
      say(near ? "The browser copies nothing here: it is selected, copy it with its keys." : "The browser copies nothing here.", "bad");
    }
  } }, label);
}

/** Return a box that tells of an error where its thing would stand. */
export const trouble = (error) => h("p", { class: "notes bad", role: "alert" }, error.message);

/** Do something now and again every `ms` milliseconds, while the page is looked at; returns what ends it. */
export function every(ms, action) {
  let over = false, timer = 0;
  async function turn() {
    try {
      if (!document.hidden) await action();
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;  // the bar at the top tells of it
    } finally {
      if (!over) timer = setTimeout(turn, ms);
    }
  }
  turn();
  return () => { over = true; clearTimeout(timer); };
}

// Words

const units = ["B", "KiB", "MiB", "GiB", "TiB"];
export function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}
export function count(number) { return Math.round(number).toLocaleString("en"); }
export function figure(number, digits = 4) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  return Number.isInteger(number) && Math.abs(number) < 1e6 ? count(number) : String(+number.toPrecision(digits));
}
export function seconds(s) {
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
}
export function ago(unixSeconds) {
  const s = Date.now() / 1000 - unixSeconds;
  if (s < 60) return "now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return new Date(unixSeconds * 1000).toISOString().slice(0, 10);
}
