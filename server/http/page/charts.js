// What the server has done in the last minutes, from its Prometheus metrics. Counters only grow, so what happened
// between two readings is their difference.

const EVERY_MS = 2000;
const KEPT = 61; // readings: 2 minutes
const HEIGHT = 150;
const MARGIN = { left: 40, right: 8, top: 10, bottom: 20 };

const byId = (id) => document.getElementById(id);
const readings = []; // oldest first; null where there was none

// Reading.

/** Prometheus' text as {name: [[labels, value], …]}. Values of labels here have no escapes. */
function parse(text) {
  const samples = {};
  for (const line of text.split("\n")) {
    const [, name, labels, value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/) ?? [];
    if (!name) continue;
    const pairs = [...(labels ?? "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, text]) => [key, text]);
    (samples[name] ??= []).push([Object.fromEntries(pairs), Number(value.replace("+Inf", "Infinity"))]);
  }
  return samples;
}

function summarise(samples) {
  const sum = (name, wanted = () => true) =>
    (samples[name] ?? []).reduce((total, [labels, value]) => total + (wanted(labels) ? value : 0), 0);
  const buckets = (name) => { // cumulative counts by upper bound, over all models
    const counts = new Map();
    for (const [{ le }, count] of samples[`${name}_bucket`] ?? []) {
      const bound = le === "+Inf" ? Infinity : Number(le);
      counts.set(bound, (counts.get(bound) ?? 0) + count);
    }
    return [...counts].sort(([a], [b]) => a - b);
  };
  return {
    atMs: performance.now(),
    answered: sum("serving_requests_total", ({ code }) => code === "ok"),
    failed: sum("serving_requests_total", ({ code }) => code !== "ok"),
    latency: buckets("serving_request_seconds"),
    batches: buckets("serving_batch_size"),
    images: sum("serving_batch_size_sum"),
    pending: sum("serving_pending_requests"),
    waiting: sum("serving_queue_length"),
    ready: sum("serving_engine_ready") > 0,
  };
}

/** Counts of each bucket by itself between two readings, as [[lower, upper, count], …]. */
function between(before, after) {
  const old = new Map(before);
  let [lower, below] = [0, 0];
  return after.map(([upper, count]) => {
    const grown = count - (old.get(upper) ?? 0);
    const bucket = [lower, upper, grown - below];
    [lower, below] = [upper, grown];
    return bucket;
  });
}

/** As Prometheus' histogram_quantile: linear inside the bucket, the last bound for what is beyond it. */
function quantile(q, counts) {
  const total = counts.reduce((sum, [, , count]) => sum + count, 0);
  let rank = q * total;
  for (const [lower, upper, count] of counts) {
    if (count > 0 && rank <= count) return upper === Infinity ? lower : lower + (upper - lower) * (rank / count);
    rank -= count;
  }
  return null;
}

async function read() {
  let now = null;
  try {
    const response = await fetch("metrics", { signal: AbortSignal.timeout(5 * EVERY_MS) });
    if (response.ok) now = summarise(parse(await response.text()));
  } catch {} // shown as "no answer"
  keep(now);
  setStatus(now);
  draw();
}

function keep(reading) {
  readings.push(reading);
  if (readings.length > KEPT) readings.shift();
}

async function readForEver() {
  for (;;) {
    if (document.hidden) keep(null); // nobody looks: a gap
    else await read();
    await new Promise((resume) => setTimeout(resume, EVERY_MS));
  }
}

function setStatus(now) {
  const [state, text] = !now ? ["bad", "no answer"] : now.ready ? ["good", "ready"] : ["bad", "the engine is starting or down"];
  const status = byId("status");
  status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text; // a live region: said aloud when it changes
  byId("load").textContent = now ? `${now.pending} under way, ${now.waiting} waiting` : "";
}

// Drawing.

function draw() {
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
  bars("batches");
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

function bars(id) {
  const known = readings.filter(Boolean);
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

new ResizeObserver(draw).observe(byId("throughput"));
readForEver();
