"use strict";
// Charts: each has the same figures as a table below it, and is drawn when it comes near the part that is seen.

const CHARTS = [];
const SEEN = new IntersectionObserver(
  (entries) => {
    const seen = new Set(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target));
    for (const drawn of CHARTS) if (!drawn.plot && seen.has(drawn.canvas)) drawn.draw();
  },
  { rootMargin: "400px" },
);
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A chart of `series` {label, values, low, high, whiskers, plain} over `ticks`, the names of the places on the x axis.
function chart(host, { title, ticks, series, unit = "", format = (v) => v.toPrecision(3), min, max, points = true, rows }) {
  const canvas = el("div", { class: "plot", role: "img", "aria-label": title });
  const legend = el(
    "ul",
    { class: "legend", "aria-hidden": "true" },
    series.map((s, i) => el("li", { class: `k${(i % COLOURS.length) + 1}` }, nodes(s.label))),
  );
  const head = ["", ...series.map((s) => s.label)];
  const shown = rows || ticks.map((tick, i) => [tick, ...series.map((s) => interval(s, i, format))]);
  const details = folded(`figures of ${title}`, false, "Figures", table(title, head, shown));
  host.append(
    el("figure", {}, el("figcaption", {}, title), series.length > 1 ? legend : "", canvas, details),
  );
  const drawn = { canvas, plot: null, draw: () => plot(drawn, { ticks, series, unit, format, min, max, points }) };
  CHARTS.push(drawn);
  SEEN.observe(canvas);
}

function interval(s, i, format) {
  const value = s.values[i];
  if (value === null || value === undefined) return "–";
  return s.low ? `${format(value)} [${format(s.low[i])}, ${format(s.high[i])}]` : format(value);
}

function plot(drawn, { ticks, series, unit, format, min, max, points }) {
  if (drawn.plot) drawn.plot.destroy();
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--quiet"), font: "12px system-ui, sans-serif", grid, ticks: { ...grid, size: 4 } };
  const data = [ticks.map((_, i) => i), ...series.map((s) => s.values)];
  const spread = series.flatMap((s) => [...s.values, ...(s.low || []), ...(s.high || [])]).filter(Number.isFinite);
  const top = max ?? Math.max(...spread);
  const bottom = min ?? Math.min(...spread);
  const room = (top - bottom || Math.abs(top) || 1) * 0.08;
  const range = [min ?? bottom - room, max ?? top + room];
  const options = {
    width: Math.max(120, drawn.canvas.clientWidth),
    height: 220,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, range: [-0.35, ticks.length - 0.65] }, y: { range: () => range } },
    axes: [
      { ...axis, grid: { show: false }, values: (_, places) => places.map((i) => (Number.isInteger(i) ? plain(ticks[i] ?? "") : "")), space: 56 },
      { ...axis, values: (_, places) => places.map((v) => trim(v) + unit), size: widest },
    ],
    series: [{}, ...series.map((s, i) => line(s, i, points))],
    hooks: { draw: [(u) => series.forEach((s, i) => s.low && (s.whiskers ? whiskers(u, s, i, series.length) : band(u, s, i)))] },
  };
  drawn.plot = new uPlot(options, data, drawn.canvas);
}

// The room of an axis, for its longest label.
function widest(u, labels, place, cycle) {
  const { font, ticks, gap, _size } = u.axes[place];
  if (cycle > 1) return _size; // else the sizes of two axes may follow each other without end
  u.ctx.font = font[0];
  const widths = (labels || []).map((label) => u.ctx.measureText(label).width / devicePixelRatio);
  return Math.ceil(ticks.size + gap + Math.max(24, ...widths)) + 2;
}

const trim = (v) => String(Number(v.toPrecision(6)));

function line(s, i, points) {
  const stroke = colour(COLOURS[i % COLOURS.length]);
  return {
    stroke: s.whiskers ? "transparent" : stroke,
    width: 2,
    spanGaps: true,
    points: { show: points && !s.whiskers && !s.plain, size: 7, fill: stroke, stroke },
  };
}

// Points with the ends of their intervals, side by side.
function whiskers(u, s, i, n) {
  const context = u.ctx;
  const ratio = devicePixelRatio;
  context.save();
  context.strokeStyle = context.fillStyle = colour(COLOURS[i % COLOURS.length]);
  context.lineWidth = 2 * ratio;
  s.values.forEach((value, place) => {
    if (!Number.isFinite(value)) return;
    const x = u.valToPos(place, "x", true) + (i - (n - 1) / 2) * 12 * ratio;
    const [y, low, high] = [value, s.low[place], s.high[place]].map((v) => u.valToPos(v, "y", true));
    context.beginPath();
    context.moveTo(x, low);
    context.lineTo(x, high);
    for (const end of [low, high]) {
      context.moveTo(x - 4 * ratio, end);
      context.lineTo(x + 4 * ratio, end);
    }
    context.stroke();
    context.beginPath();
    context.arc(x, y, 4.5 * ratio, 0, 2 * Math.PI);
    context.fill();
  });
  context.restore();
}

function band(u, s, i) {
  const context = u.ctx;
  const at = (values) => values.map((v, place) => [u.valToPos(place, "x", true), u.valToPos(v, "y", true)]);
  const whole = s.values.map((v, place) => [v, place]).filter(([v]) => Number.isFinite(v)).map(([, place]) => place);
  const only = (pairs) => whole.map((place) => pairs[place]);
  context.save();
  context.globalAlpha = 0.16;
  context.fillStyle = colour(COLOURS[i % COLOURS.length]);
  context.beginPath();
  [...only(at(s.high)), ...only(at(s.low)).reverse()].forEach(([x, y]) => context.lineTo(x, y));
  context.fill();
  context.restore();
}

function clearCharts() {
  SEEN.disconnect();
  for (const drawn of CHARTS.splice(0)) if (drawn.plot) drawn.plot.destroy();
}

function redraw() {
  for (const drawn of CHARTS) if (drawn.plot) drawn.draw();
}

addEventListener("beforeprint", () => CHARTS.forEach((drawn) => drawn.plot || drawn.draw()));

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redraw, 120);
});
