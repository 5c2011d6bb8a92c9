// Whether the server is ready, in the header; and what it has done, as charts of the last minutes and tables of all.

import { read } from "./api.js";
import { draw, EVERY_MS, KEPT } from "./charts.js";
import { byId, ms, showTables, table } from "./dom.js";
import { between, buckets, parse, quantile, sum } from "./exposition.js";

const readings = []; // oldest first; null where there was none
let shown = false;
let wake = () => {};

/** Called when the view appears, which begins to read metrics, and when it goes. */
export function show(now) {
  shown = now;
  if (now) wake();
}

async function watch() {
  for (;;) {
    if (!document.hidden) await readStatus();
    keep(shown && !document.hidden ? await readMetrics() : null); // nobody looks: a gap
    await new Promise((resume) => {
      wake = resume;
      setTimeout(resume, EVERY_MS);
    });
  }
}

/** Asked of the probe, which needs no key and counts for none. */
async function readStatus() {
  let [state, text] = ["bad", "no answer"];
  try {
    const response = await fetch("readyz", { signal: AbortSignal.timeout(5 * EVERY_MS) });
    [state, text] = [response.ok ? "good" : "bad", (await response.text()).trim().replace(/^ok/, "ready")];
  } catch {} // it is shown as no answer
  const status = byId("status");
  status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text; // a live region: said aloud when it changes
}

async function readMetrics() {
  let samples = null;
  try {
    samples = parse(await read("metrics"));
    byId("metrics-problem").textContent = "";
  } catch (problem) {
    byId("metrics-problem").textContent = problem.message;
  }
  return samples && summarise(samples);
}

function keep(reading) {
  readings.push(reading);
  if (readings.length > KEPT) readings.shift();
  if (!shown) return;
  byId("load").textContent = reading ? `${reading.pending} under way, ${reading.waiting} waiting` : "";
  draw(readings);
  if (reading) showTables("tables", tables(reading.samples));
}

function summarise(samples) {
  const all = sum(samples, "serving_requests_total");
  const answered = sum(samples, "serving_requests_total", { code: "ok" });
  return {
    samples,
    atMs: performance.now(),
    answered,
    failed: all - answered,
    latency: buckets(samples, "serving_request_seconds"),
    batches: buckets(samples, "serving_batch_size"),
    images: sum(samples, "serving_batch_size_sum"),
    pending: sum(samples, "serving_pending_requests"),
    waiting: sum(samples, "serving_queue_length"),
  };
}

// Tables, of all since the server's start.

function tables(samples) {
  const labelled = (name) => (samples[name] ?? []).map(([labels]) => labels);
  const models = unique(labelled("serving_requests_total").filter(({ model }) => model), "model", "version");
  const failures = (samples.serving_requests_total ?? []).filter(([{ code }, count]) => code !== "ok" && count);
  const processes = labelled("process_resident_memory_bytes");
  return [
    table("Models", { Model: "", Answered: "number", Failed: "number", "Median": "number", "99th percentile": "number",
                      Decode: "number", Queue: "number", Inference: "number", "Images a batch": "number" },
          models.map((wanted) => modelRow(samples, wanted))),
    failures.length && table("Failed requests", { Reason: "", Model: "", Requests: "number" },
          failures.map(([{ code, model, version }, count]) => [code, named(model, version), whole(count)])),
    table("Engines", { Engine: "", Device: "", State: "", Batches: "number", Images: "number", "Busy for": "number" },
          labelled("serving_engine_ready").map((wanted) => engineRow(samples, wanted))),
    processes.length && table("Processes", { Process: "", Memory: "number", "CPU time": "number", "Open files": "number", Restarts: "number" },
          processes.map((wanted) => processRow(samples, wanted))),
  ];
}

function modelRow(samples, wanted) {
  const answered = sum(samples, "serving_requests_total", { ...wanted, code: "ok" });
  const latency = between([], buckets(samples, "serving_request_seconds", wanted));
  const mean = (name) => sum(samples, `${name}_sum`, wanted) / sum(samples, `${name}_count`, wanted);
  return [
    named(wanted.model, wanted.version),
    whole(answered),
    whole(sum(samples, "serving_requests_total", wanted) - answered),
    ...[0.5, 0.99].map((q) => seconds(quantile(q, latency))),
    ...["decode", "queue", "inference"].map((stage) => seconds(mean(`serving_${stage}_seconds`))),
    known(mean("serving_batch_size"), (value) => value.toFixed(1)),
  ];
}

function engineRow(samples, wanted) {
  const of = (name) => sum(samples, name, wanted);
  return [wanted.engine, wanted.device, of("serving_engine_ready") ? "ready" : "away", whole(of("serving_engine_batches_total")),
          whole(of("serving_engine_images_total")), duration(of("serving_engine_batch_seconds_total"))];
}

function processRow(samples, { process }) {
  const of = (name) => sum(samples, name, { process });
  return [process, `${whole(of("process_resident_memory_bytes") / 1e6)} MB`, duration(of("process_cpu_seconds_total")),
          whole(of("process_open_fds")), whole(of("serving_process_restarts_total"))];
}

function unique(labels, ...names) {
  const found = new Map(labels.map((each) => [names.map((name) => each[name]).join(), each]));
  return [...found.values()].map((each) => Object.fromEntries(names.map((name) => [name, each[name]])));
}

const named = (model, version) => (model ? `${model} version ${version}` : "–");
const known = (value, shown) => (Number.isFinite(value) && value !== null ? shown(value) : "–");
const whole = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => known(value, () => ms(1000 * value));
const duration = (value) => (value < 60 ? `${value.toFixed(1)} s` : value < 3600 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`);

new ResizeObserver(() => shown && draw(readings)).observe(byId("charts"));
watch();
