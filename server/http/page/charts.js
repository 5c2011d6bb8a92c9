// Three charts of what the server did between readings of its metrics.

import { byId } from "./dom.js";
import { between, quantile } from "./exposition.js";

export const EVERY_MS = 2000;
export const KEPT = 61; // readings: 2 minutes
const HEIGHT = 150;
const MARGIN = { left: 40, right: 8, top: 10, bottom: 20 };

/** Draw readings, EVERY_MS apart, oldest first, null where there was none. */
export function draw(readings) {
  const steps = readings.slice(1).map((after, index) => {
    const before = readings[index];
    if (!before || !after || after.answered < before.answered) return null; // a gap; it was restarted
    const seconds = (after.atMs - before.atMs) / 1000;
    const latency = between(before.latency, after.latency);
    return {
      answered: (after.answered - before.answered) / seconds,
      failed: (after.failed - before.failed) / seconds,
      p50: scaled(quantile(0.5, latency), 1000),
      p99: scaled(quantile(0.99, latency), 1000),
    };
  });
  const series = (key) => steps.map((step) => step?.[key] ?? null);
  lines("throughput", "/s", [["answered", series("answered")], ["failed", series("failed")]]);
  lines("latency", " ms", [["p50", series("p50")], ["p99", series("p99")]]);
  bars("batches", readings.filter(Boolean));
}

const scaled = (value, factor) => (value === null ? null : value * factor);
const latest = (values) => values.findLast((value) => value !== null);
const short = (value) => (value === undefined ? "–" : value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1));

/** The least of 1, 2, 5, 10, … that is not below the value. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 5, 10].map((factor) => factor * power).find((bound) => bound >= value);
}

function lines(id, unit, series) {
  legend(id, series.map(([name, values]) => [name, `${short(latest(values))}${unit}`]));
  const most = roundedUp(Math.max(1, ...series.flatMap(([, values]) => values)));
  const { svg, left, right, y } = frame(id, most);
  const x = (index) => right - ((right - left) * (series[0][1].length - 1 - index)) / (KEPT - 2);
  series.forEach(([, values], rank) => {
    runs(values).forEach((run) => {
      const points = run.map(([index, value]) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" L");
      if (run.length === 1) add(svg, "circle", { class: `dot series-${rank}`, cx: x(run[0][0]), cy: y(run[0][1]), r: 2.5 });
      else {
        const [from, to] = [x(run[0][0]), x(run.at(-1)[0])];
        if (!rank) add(svg, "path", { class: "area", d: `M${from},${y(0)} L${points} L${to},${y(0)}Z` });
        add(svg, "path", { class: `line series-${rank}`, d: `M${points}` });
      }
    });
  });
  add(svg, "text", { class: "tick", x: left, y: HEIGHT - 5 }, `${((KEPT - 1) * EVERY_MS) / 60000} min ago`);
  add(svg, "text", { class: "tick end", x: right, y: HEIGHT - 5 }, "now");
}

/** Stretches of values without a gap, as [[[index, value], …], …]. */
function runs(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index && values[index - 1] !== null) found.at(-1).push([index, value]);
    else found.push([[index, value]]);
  });
  return found;
}

function bars(id, known) {
  const [first, last] = [known[0], known.at(-1)];
  const grown = first && last.images >= first.images;
  const counts = (grown ? between(first.batches, last.batches) : []).filter(([, upper]) => upper !== Infinity);
  while (counts.length > 4 && !counts.at(-1)[2]) counts.pop(); // sizes that never came
  const total = counts.reduce((sum, [, , count]) => sum + count, 0);
  legend(id, [["mean", total ? short((last.images - first.images) / total) : "–"], ["batches", `${total}`]]);
  const { svg, left, right, y } = frame(id, roundedUp(Math.max(1, ...counts.map(([, , count]) => count))));
  const width = (right - left) / Math.max(1, counts.length);
  counts.forEach(([lower, upper, count], index) => {
    const middle = left + width * (index + 0.5);
    const wide = Math.min(width * 0.7, 44);
    add(svg, "rect", { class: "column", x: middle - wide / 2, y: y(count), width: wide, height: y(0) - y(count), rx: 2 });
    const name = upper - lower > 1 ? `${lower + 1}–${upper}` : `${upper}`;
    add(svg, "text", { class: "tick middle", x: middle, y: HEIGHT - 5 }, name);
  });
}

/** An empty chart: grid and ticks from 0 to `most`. */
function frame(id, most) {
  const svg = byId(id);
  const width = svg.clientWidth;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  const [left, right] = [MARGIN.left, width - MARGIN.right];
  const y = (value) => HEIGHT - MARGIN.bottom - (value / most) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  for (const value of [0, most / 2, most]) {
    add(svg, "line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
    add(svg, "text", { class: "tick end", x: left - 6, y: y(value) + 4 }, short(value));
  }
  return { svg, left, right, y };
}

/** The figures of now, which also name the chart for those who do not see it. */
function legend(id, entries) {
  byId(`${id}-now`).replaceChildren(...entries.map(([name, value], rank) => {
    const entry = document.createElement("span");
    entry.className = `key series-${rank}`;
    entry.textContent = `${name} ${value} `;
    return entry;
  }));
}

function add(svg, name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  svg.append(made);
}
