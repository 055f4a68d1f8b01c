// Charts of numbers over steps, by uPlot; small curves of a list; files to save.
import { figure, fill, h } from "./studio.js";

document.head.append(
  h("link", { rel: "stylesheet", href: "/studio/web/uPlot.min.css" }),
  h("link", { rel: "stylesheet", href: "/studio/web/chart.css" }));

let loading = null;
/** Load the library of charts, once. */
export function library() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(h("script", {
      src: "/studio/web/uPlot.iife.min.js",
      onload: () => resolve(window.uPlot),
      onerror: () => reject(new Error("the charts cannot be loaded: is the server still there?")),
    }));
  });
  return loading;
}

const NS = "http://www.w3.org/2000/svg";
const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

/** Return a small curve of some numbers, without axes. */
export function sparkline(values, label) {
  const width = 120, height = 28, low = Math.min(...values), high = Math.max(...values);
  const place = (value, i) => {
    const x = values.length > 1 ? (i / (values.length - 1)) * (width - 4) + 2 : width / 2;
    return `${x.toFixed(1)},${(high > low ? 2 + (1 - (value - low) / (high - low)) * (height - 4) : height / 2).toFixed(1)}`;
  };
  const box = { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label };
  if (!values.length) return h("span", { class: "soft" }, "–");
  const places = values.map(place), [x, y] = places[places.length - 1].split(",");
  return svg("svg", box,
    svg("polyline", { points: places.join(" ") }), svg("circle", { cx: x, cy: y, r: 2 }));
}

/** Save a text or a blob as a file. */
export function save(name, content, type = "text/csv") {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}

/** Return a table as CSV. A cell that a spreadsheet would carry out as a formula is marked as text. */
export function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\n").join("");
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const COLOURS = ["c1", "c2", "c3", "c4", "c5", "c6"];
const synced = () => window.uPlot.sync("graft-run");

/**
 * A chart in a figure of its own.
 * lines: [{name, label, right, faint, colour}], drawn from `show({name: [places, values]})`; onzoom(from, to) is called
 * when somebody drags over it, with nulls when all is to be seen again.
 */
export class Chart {
  constructor({ title, lines, wide = false, axis = "step", log = false, height = 220, onzoom = null, sync = true }) {
    Object.assign(this, { title, lines, axis, log, height, onzoom, sync, plot: null, data: null });
    this.place = h("div", { class: "plot" });
    this.said = h("span", { class: "soft small" });
    this.element = h("figure", { class: `card chart${wide ? " wide" : ""}` },
      h("figcaption", {}, h("strong", {}, title), this.said,
        h("button", { class: "plain small", type: "button", "aria-label": `Save the chart ${title} as a picture`, onclick: () => this.picture() }, "PNG")),
      this.place);
    new ResizeObserver(() => {
      const width = this.place.clientWidth;
      if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
    }).observe(this.place);
    matchMedia("(prefers-color-scheme:dark)").addEventListener("change", () => this.draw());
  }

  /** Draw other numbers. */
  show(series) {
    const held = this.lines.filter((line) => series[line.name]?.[0].length);
    const tables = held.map((line) => {
      const [x, y] = series[line.name];
      return [x, this.log ? y.map((value) => (value > 0 ? value : null)) : y];
    });
    const same = this.plot && held.length === this.held?.length && held.every((line, i) => line === this.held[i]);
    this.held = held;
    this.data = tables.length ? window.uPlot.join(tables) : [[]];
    this.element.classList.toggle("hidden", !held.length);
    const last = held.filter((line) => !line.faint).map((line) => `${line.label} ${figure(series[line.name][1].at(-1))}`);
    this.said.textContent = last.slice(0, 2).join(" · ");
    this.place.setAttribute("role", "img");
    this.place.setAttribute("aria-label", `${this.title}: ${last.join(", ") || "no numbers yet"}`);
    if (same) this.plot.setData(this.data); else this.draw();
  }

  draw() {
    if (!this.data || !this.held?.length) return;
    this.plot?.destroy();
    const axes = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
    const right = this.held.some((line) => line.right);
    const values = (plot, ticks) => ticks.map((value) => (value === null ? "" : short(value)));
    const scale = this.log ? { distr: 3 } : {};
    const options = {
      width: this.place.clientWidth || 400, height: this.height,
      legend: { show: this.held.length > 1, live: true },
      cursor: {
        drag: { x: Boolean(this.onzoom), y: false, setScale: false }, focus: { prox: 24 },
        ...(this.sync ? { sync: { key: synced().key, setSeries: false } } : {}),
        bind: { dblclick: () => () => { this.onzoom?.(null, null); } },
      },
      scales: { x: { time: false }, y: scale, right: {} },
      axes: [
        { ...axes, values: this.axis === "seconds" ? (plot, ticks) => ticks.map(clock) : values },
        { ...axes, values, size: 56 },
        ...(right ? [{ ...axes, values, side: 1, scale: "right", size: 56, grid: { show: false } }] : []),
      ],
      series: [
        { label: this.axis },
        ...this.held.map((line, i) => ({
          label: line.label, class: line.quiet ? "quiet" : undefined, scale: line.right ? "right" : "y", spanGaps: true,
          stroke: colour(COLOURS[(line.colour ?? i) % COLOURS.length]) + (line.faint ? "59" : ""),
          width: line.faint ? 1 : 2, dash: line.dashed ? [6, 4] : undefined,
          points: { show: line.points ? true : undefined, size: 6 },
          value: (plot, value, place, at) => figure(latest(plot.data[place], at), 5),
        })),
      ],
      hooks: {
        setSelect: [(plot) => {
          if (plot.select.width < 4 || !this.onzoom) return;
          const ends = [plot.select.left, plot.select.left + plot.select.width].map((x) => plot.posToVal(x, "x"));
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          this.onzoom(...ends);
        }],
      },
    };
    this.plot = new window.uPlot(options, this.data, fill(this.place));
  }

  picture() {
    const drawn = this.place.querySelector("canvas");
    if (!drawn) return;
    const copy = h("canvas", { width: drawn.width, height: drawn.height });
    const pen = copy.getContext("2d");
    pen.fillStyle = colour("card");
    pen.fillRect(0, 0, copy.width, copy.height);
    pen.drawImage(drawn, 0, 0);
    copy.toBlob((blob) => save(`${this.title.toLowerCase().replaceAll(/\W+/g, "-")}.png`, blob));
  }
}

/** What a legend shows: the value under the pointer or the one before it; without a pointer the last one. */
function latest(values, at) {
  let place = at ?? values.length - 1;
  while (place > 0 && (values[place] ?? null) === null) place -= 1;
  return values[place];
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size && size < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(4));
}
function clock(s) {
  if (s === null || s === undefined) return "";
  if (s < 60) return `${+s.toPrecision(3)} s`;
  if (s < 3600) return `${+(s / 60).toPrecision(3)} min`;
  return `${+(s / 3600).toPrecision(3)} h`;
}
