"use strict";
// Draws the curves of a report with uPlot, in the colours of its style sheet.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const COLOURS = 6, PAPER = 640;  // pixels of a chart on paper
  const WHOLE = [...Array(9).keys()].flatMap(i => [1, 2, 5].map(n => n * 10 ** i));  // steps between ticks
  const drawn = [];

  const colour = name => getComputedStyle(root).getPropertyValue(name).trim();
  const number = (value, digits) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e7)) return value.toExponential(Math.min(digits, 3) - 1);
    return value.toLocaleString("en", {maximumSignificantDigits: digits});
  };
  const axisNumbers = (_, values) => values.map(value => value == null ? "" : number(value, 4));
  const axisSize = (_, values) => 24 + 7 * Math.max(3, ...(values ?? []).map(value => value.length));

  // The steps of all charts over steps, so that all of them show the same ones.
  const steps = charts.filter(chart => chart.shared).flatMap(chart => chart.curves.map(curve => curve.x));
  const ends = steps.length ? [Math.min(...steps.map(x => x[0])), Math.max(...steps.map(x => x.at(-1)))] : [];

  // What a legend shows: the value under the pointer, or the one before it; without a pointer the last one.
  function latest(values, at) {
    let place = at ?? values.length - 1;
    while (place > 0 && values[place] == null) place -= 1;
    return values[place];
  }

  function series(curve, chart, position) {
    const stroke = colour(`--c${1 + curve.colour % COLOURS}`);
    const alone = curve.y.length <= 30;
    return {
      label: curve.name,
      scale: curve.right ? "right" : "left",
      stroke: curve.style === "faint" ? stroke + "55" : stroke,
      fill: curve.style === "bars" ? stroke + "66" : undefined,
      width: curve.style === "faint" ? 1 : 2,
      dash: curve.style === "dashed" ? [5, 5] : undefined,
      paths: curve.style === "bars" ? uPlot.paths.bars({size: [0.92]}) : undefined,
      points: {show: alone && curve.style === "line", size: 6, fill: stroke},
      spanGaps: true,
      value: (plot, _, place, at) => number(latest(plot.data[place], at), 5),
    };
  }

  function options(chart, width) {
    const soft = colour("--soft"), line = colour("--line");
    const font = "12px system-ui, sans-serif";
    const axis = {stroke: soft, font, grid: {stroke: line, width: 1}, ticks: {stroke: line, width: 1}};
    const bars = chart.curves.find(curve => curve.style === "bars");
    const beside = bars?.x.length > 1 ? (bars.x[1] - bars.x[0]) / 2 : 0;  // room for half a bar at both ends
    const title = chart.shared ? {} : {label: chart.x, labelSize: 20, labelFont: font, labelGap: 0};
    const whole = chart.shared ? {incrs: WHOLE} : {};
    const axes = [
      {...axis, grid: {show: false}, values: axisNumbers, size: 34, ...title, ...whole},
      {...axis, scale: "left", values: axisNumbers, size: axisSize},
    ];
    if (chart.curves.some(curve => curve.right)) {
      axes.push({...axis, scale: "right", side: 1, grid: {show: false}, values: axisNumbers, size: axisSize});
    }
    return {
      width, height: chart.wide ? 270 : 200, axes,
      scales: {x: {time: false, range: (_, low, high) => low < high ? [low - beside, high + beside] : [low - 1, high + 1]}},
      series: [{label: chart.x, value: (plot, _, __, at) => number(latest(plot.data[0], at), 7)}, ...chart.curves.map((c, i) => series(c, chart, i))],
      cursor: {drag: {x: chart.shared, y: false}, sync: chart.shared ? {key: "steps"} : undefined, points: {size: 7}},
      legend: {show: true, live: true},
    };
  }

  function draw() {
    while (drawn.length) drawn.pop().destroy();
    for (const place of document.querySelectorAll("[data-chart]")) {
      const chart = charts[+place.dataset.chart];
      const tables = chart.curves.map(curve => [curve.x, curve.y]);
      const data = uPlot.join(chart.shared ? [...tables, [ends]] : tables);
      const width = root.classList.contains("print") ? PAPER : place.clientWidth;
      const plot = new uPlot(options(chart, width), data, place);
      plot.place = place;
      drawn.push(plot);
    }
  }

  const folded = [...document.querySelectorAll("details[data-fold]")];
  const fold = open => folded.forEach(part => { part.open = open; });
  const print = on => { root.classList.toggle("print", on); fold(on); draw(); };
  fold(false);  // without this script they stay open
  draw();
  new ResizeObserver(() => {
    if (root.classList.contains("print")) return;
    for (const plot of drawn) {
      const width = plot.place.clientWidth;
      if (width && width !== plot.width) plot.setSize({width, height: plot.height});
    }
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
