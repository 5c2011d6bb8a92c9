// Photos in, their classes out.

import { Problem, readJson } from "./api.js";
import { byId, element, ms, percent, table } from "./dom.js";
import { paint } from "./heatmap.js";
import * as metrics from "./metrics.js";
import { describe, showModels } from "./models.js";

const TOP_K = 5;
const WORTH_ANOTHER_TRY = new Set([0, 408, 429, 500, 502, 503, 504]);
const IN_WORDS = {
  not_an_image: (name) => `${name} is not a photo that this server can read.`,
  empty_body: (name) => `${name} is empty.`,
  broken_image: (name) => `${name} is damaged.`,
  body_too_large: () => "This is more than the server takes at once.",
  too_many_pixels: (name) => `${name} has more pixels than this server takes.`,
  queue_full: () => "The server is busy. Try again in a moment.",
  overloaded: () => "The server is busy. Try again in a moment.",
  rate_limited: () => "Your API key has no requests left for the moment.",
  unreachable: () => "The server does not answer.",
};
const NOT_PHOTOS = new Set(["not_an_image", "empty_body"]);

const [view, preview, modelChoice, crops, heat, heatmap] =
  ["view-try", "preview", "model", "crops", "heat", "heatmap"].map(byId);

let served = [];
let given = []; // the photos that were last chosen, dropped or pasted
let photo = null; // the one of them that is on show
let listed = ""; // what was asked for about all of them
let underWay = null; // the last request, which a newer one aborts

// Photos.

function take(files) {
  given = [...files];
  photo = null;
  scrollTo(0, 0);
  if (given.length === 1) open(given[0]);
  else if (given.length) classifyAll();
}

function open(file) {
  if (document.activeElement.closest("#samples, #several")) byId("photo-title").focus(); // what has the focus goes
  photo = file;
  scrollTo(0, 0);
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `Your photo: ${file.name}`;
  preview.hidden = false;
  heatmap.hidden = true; // it is of another photo
  byId("no-preview").hidden = true;
  classify();
}

/** From one of several photos to all of them, else to the start. */
function back() {
  underWay?.abort();
  if (!photo || given.length === 1) given = [];
  photo = null;
  show({});
  showState();
  scrollTo(0, 0);
  if (given.length && listed !== `${query({ top_k: 1 })}`) classifyAll();
}

function showState() {
  view.dataset.state = photo ? "photo" : given.length ? "several" : "empty";
  byId("back").textContent = photo && given.length > 1 ? "All photos" : "Back";
  byId("choose").textContent = view.dataset.state === "empty" ? "Choose a photo" : "New photo";
  byId("photo-title").textContent = photo ? photo.name : given.length ? `${given.length} photos` : "What is in your photo?";
}

preview.addEventListener("load", () => {
  byId("photo").style.setProperty("--ratio", preview.naturalWidth / preview.naturalHeight);
});
preview.addEventListener("error", () => {
  preview.hidden = heatmap.hidden = true;
  byId("no-preview").hidden = false;
});

for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}

byId("back").addEventListener("click", () => {
  back();
  byId("file").focus();
});

byId("samples").addEventListener("click", async ({ target }) => {
  const name = target.closest("button")?.value;
  if (!name) return;
  try {
    const response = await fetch(`static/photos/${name}`);
    take([new File([await response.blob()], name)]);
  } catch {
    show({ problem: new Problem({ detail: "Is it still running?" }) });
  }
});

/** What was dropped or pasted: photos, or something that is none and gets a sentence. */
function receive(data) {
  if (view.hidden) location.hash = "try";
  if ([...data.items].some((item) => item.webkitGetAsEntry?.()?.isDirectory)) {
    tell("That is a folder. Open it, and drop the photos that are in it.");
  } else if (data.files.length) take(data.files);
  else if (/^https?:/.test(data.getData("text/uri-list") || data.getData("text/plain"))) {
    tell("That is a link. Save the photo that it leads to, and drop the file here.");
  } else tell("That is text. Drop or paste a photo.");
}

function tell(sentence) {
  show({ problem: new Problem({ status: 400, title: sentence, code: "", detail: "" }) });
}

document.addEventListener("paste", (event) => {
  if (!event.target.closest("input")) receive(event.clipboardData);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // else the browser leaves the page and shows the file
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  receive(event.dataTransfer);
});

// Requests.

function query(more = {}) {
  const { name, version, calibration } = served[modelChoice.selectedIndex] ?? {};
  const asked = new URLSearchParams({ top_k: TOP_K, crops: crops.checked ? 10 : 1, ...more });
  if (calibration && !crops.checked) asked.set("reject", true); // it is calibrated for one crop
  if (name) asked.set("model", name);
  if (version) asked.set("version", version);
  return asked;
}

async function classify() {
  showState();
  const mine = photo;
  const more = heat.checked && !heat.disabled ? { include: "heatmap" } : {};
  await upload(`classify?${query(more)}`, mine, (answer) => show({ answer }), mine.name);
}

async function classifyAll() {
  showState();
  const [mine, form] = [given, new FormData()];
  for (const file of mine) form.append("file", file);
  for (const picture of byId("several").querySelectorAll("img")) URL.revokeObjectURL(picture.src);
  byId("several").replaceChildren();
  listed = `${query({ top_k: 1 })}`;
  await upload(`classify/batch?${listed}`, form, ({ results }) => {
    show({});
    byId("summary").textContent = `${results.length} photos are classified`;
    byId("several").replaceChildren(...results.map((result, at) => oneOfSeveral(mine[at], result)));
  });
}

async function upload(path, body, done, name) {
  underWay?.abort();
  const { signal } = (underWay = new AbortController());
  show({ busy: true });
  try {
    done(await readJson(path, { body, signal, onProgress: showProgress }));
  } catch (problem) {
    if (problem.name === "AbortError") return;
    if (NOT_PHOTOS.has(problem.code)) back();
    show({ problem, name });
  }
}

async function again() {
  if (!served.length) await loadModels();
  if (photo) classify();
  else if (given.length) classifyAll();
}

byId("again").addEventListener("click", again);

// Answers.

function show({ answer = null, problem = null, busy = false, name = "" }) {
  byId("bars").setAttribute("aria-busy", busy);
  byId("progress").hidden = !busy;
  byId("again").hidden = !WORTH_ANOTHER_TRY.has(problem?.status);
  byId("problem").replaceChildren(...(problem ? problemLines(problem, name) : []));
  if (problem) byId("problem").scrollIntoView({ block: "nearest" });
  if (busy) {
    showProgress(0);
    byId("summary").textContent = "Classifying…";
    return; // with the old answer in sight, dimmed, so that nothing jumps
  }
  byId("classes").hidden = !answer;
  byId("bars").replaceChildren(...(answer?.predictions ?? []).map(bar));
  byId("unsure").hidden = answer?.known !== false;
  byId("meaning").textContent = answer?.known ? meaning(answer) : "";
  byId("summary").textContent = answer
    ? `${answer.predictions[0].label}, ${percent(answer.predictions[0].probability)}` : "";
  if (answer) showDetails(answer);
  showUntrained(answer?.random_weights);
  showHeatmap(answer);
  byId("bars").firstElementChild?.scrollIntoView({ block: "nearest" }); // on a phone it may be below
}

function showProgress(share) {
  const [bar, label] = [byId("done"), byId("progress").firstElementChild];
  label.textContent = share < 1 ? "Uploading…" : "Classifying…";
  if (share < 1) bar.value = share;
  else bar.removeAttribute("value"); // how long it takes the server is not known
}

function showHeatmap(answer) {
  heatmap.hidden = !answer?.heatmap || preview.hidden;
  offerHeatmap();
  if (heatmap.hidden) return;
  paint(heatmap, answer.heatmap);
  const where = `where ${answer.predictions[0].label} was seen`;
  heatmap.setAttribute("aria-label", `Heat map: ${where}`);
  byId("heat-hint").textContent = where;
}

function problemLines({ title, detail, code, request_id }, name) {
  const words = IN_WORDS[code]?.(name || "This file");
  const small = [words && title, code, request_id && `request ${request_id}`].filter(Boolean).join(" · ");
  return [element("strong", words ?? title), detail && element("p", detail), small && element("small", small)].filter(Boolean);
}

function bar({ label, probability }) {
  const meter = element("div", [], { role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1,
                                     "aria-valuenow": probability.toFixed(4), "aria-valuetext": percent(probability) });
  meter.style.setProperty("--filled", probability);
  return element("li", [element("span", label, { class: "label" }),
                        element("span", percent(probability), { class: "percent" }), meter]);
}

function oneOfSeveral(file, { name, classification, problem }) {
  const picture = element("img", [], { src: URL.createObjectURL(file), alt: "" });
  picture.addEventListener("error", () => picture.replaceWith(element("i"))); // an empty frame
  const best = classification?.predictions[0];
  const sure = best && classification.known !== false;
  const said = best ? [element("b", best.label), ` ${percent(best.probability)}${sure ? "" : ", not sure"}`]
    : [IN_WORDS[problem.code]?.("This") ?? problem.detail];
  const text = element("span", [...said, element("small", name)], { class: best ? "" : "failed" });
  const choice = element("button", [picture, text], { type: "button" });
  choice.addEventListener("click", () => open(file));
  return element("li", choice);
}

/** What the bars of a calibrated model mean. */
function meaning({ model, version, predictions: [{ probability }] }) {
  const one = served.find((each) => each.name === model && each.version === version);
  const error = one?.calibration ? `, give or take ${(100 * one.calibration.expected_calibration_error).toFixed(1)} points` : "";
  return `Calibrated: of a hundred answers as sure as this one, ${Math.round(100 * probability)} are right${error}.`;
}

function showDetails({ model, version, predictions, timings_ms, batch_size, request_id }) {
  const { total, decode_wait, decode, queue, inference } = timings_ms;
  const rows = { Model: `${model} version ${version}`, Total: ms(total), "Decoder wait": ms(decode_wait),
                 Decode: ms(decode), Queue: ms(queue), Inference: ms(inference), Batch: `${batch_size}`, Request: request_id };
  byId("ids").replaceChildren(table("Numbers of the classes", { Class: "", WordNet: "", Index: "number" },
    predictions.map(({ label, wordnet_id, class_id }) => [label, wordnet_id ?? "–", `${class_id}`])));
  byId("facts").replaceChildren(...Object.entries(rows).map(([name, value]) =>
    element("div", [element("dt", name), element("dd", value)])));
}

// Models.

async function loadModels() {
  let found;
  try {
    found = await readJson("models");
  } catch (problem) {
    show({ problem });
    byId("models").replaceChildren(element("p", problem.message, { class: "problem" }));
    return;
  }
  const before = served[modelChoice.selectedIndex];
  served = found.models;
  modelChoice.replaceChildren(...served.map(({ name, version }) => element("option", `${name} · version ${version}`)));
  const same = served.findIndex(({ name, version }) => name === before?.name && version === before.version);
  modelChoice.selectedIndex = same >= 0 ? same : Math.max(0, served.findIndex((model) => model.default));
  modelChoice.disabled = !served.length;
  aboutModel();
  showModels(found, (model) => {
    modelChoice.selectedIndex = served.indexOf(model);
    aboutModel();
    again();
  });
}

function aboutModel() {
  const model = served[modelChoice.selectedIndex];
  byId("about").textContent = model ? describe(model) : "No model is served: Models has the reasons.";
  offerHeatmap();
  showUntrained();
}

function offerHeatmap() {
  const has = served[modelChoice.selectedIndex]?.activation_maps;
  heat.disabled = !has || crops.checked;
  const hint = byId("heat-hint");
  if (heat.disabled || heatmap.hidden) hint.textContent = !has ? "this model has none" : crops.checked ? "of one crop only" : "";
}

/** Warn where the chosen model, a member of it, or the model that answered has untrained weights. */
function showUntrained(answered = false) {
  const model = served[modelChoice.selectedIndex];
  const names = new Set([model?.name, ...(model?.members ?? []).map((member) => member.name)]);
  const random = served.some(({ name, random_weights }) => names.has(name) && random_weights);
  byId("untrained").hidden = !(answered || random);
}

modelChoice.addEventListener("change", () => {
  aboutModel();
  again();
});
crops.addEventListener("change", () => {
  offerHeatmap();
  again();
});
heat.addEventListener("change", () => {
  if (heat.checked) again();
  else {
    heatmap.hidden = true;
    offerHeatmap();
  }
});

// Views: the part after # in the address says which.

function route() {
  const wanted = ["models", "metrics"].find((name) => location.hash === `#${name}`) ?? "try";
  for (const each of document.querySelectorAll(".view")) each.hidden = each.id !== `view-${wanted}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  metrics.show(wanted === "metrics");
  return wanted;
}

addEventListener("hashchange", () => {
  const wanted = route();
  scrollTo(0, 0);
  byId(`view-${wanted}`).querySelector("h2").focus({ preventScroll: true });
  if (wanted === "models") loadModels();
});
route();
loadModels();
