// An image in, its classes out. Whatever the server says is put into the page as text, never as markup.

import { paint } from "./heatmap.js";

const TOP_K = 5;
const FITTED = { centre: "", squash: ", squashed", pad: ", padded" };
const WORTH_ANOTHER_TRY = new Set([0, 408, 429, 500, 502, 503, 504]);

const byId = (id) => document.getElementById(id);
const [drop, preview, modelChoice, crops, heat, heatmap] =
  ["drop", "preview", "model", "crops", "heat", "heatmap"].map(byId);

let served = [];
let image = null; // the last one given
let underWay = null; // its request, which a newer one aborts

class Problem extends Error {
  constructor({ status = 0, title = "No answer", code = "unreachable", detail, request_id = "" }) {
    super(detail);
    Object.assign(this, { status, title, code, detail, request_id });
  }
}

/** The JSON of an answer. Throws Problem: the server's own, or one that stands for an answer that is none. */
async function ask(path, options) {
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response?.ok && content) return content;
  if (content?.code) throw new Problem(content);
  if (!response) {
    throw new Problem({ detail: "The server does not answer, or broke the connection off. Is it still running?" });
  }
  const { status, statusText } = response;
  throw new Problem({ status, title: statusText, code: "not_the_service",
                      detail: `Something between this page and the service answered with status ${status}.` });
}

// Image.

function take(file) {
  if (!file) return;
  image = file;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `Chosen image: ${file.name}`;
  preview.hidden = false;
  heatmap.hidden = true; // it is of another photo
  byId("no-preview").hidden = true;
  classify();
}

preview.addEventListener("error", () => {
  preview.hidden = heatmap.hidden = true;
  byId("no-preview").hidden = false;
});

for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
}

document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

document.addEventListener("dragover", (event) => {
  event.preventDefault(); // else the browser leaves the page and shows the file
  drop.classList.toggle("over", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files[0]);
});

// Classes.

async function classify() {
  if (!image) return;
  underWay?.abort();
  const mine = (underWay = new AbortController());
  const { name, version, calibration } = served[modelChoice.selectedIndex] ?? {};
  const query = new URLSearchParams({ top_k: TOP_K, crops: crops.checked ? 10 : 1 });
  if (calibration && !crops.checked) query.set("reject", true); // it is calibrated for one crop
  if (name) query.set("model", name);
  if (version) query.set("version", version);
  if (heat.checked && !heat.disabled) query.set("include", "heatmap");
  show({ busy: true });
  try {
    show({ answer: await ask(`classify?${query}`, { method: "POST", body: image, signal: mine.signal }) });
  } catch (error) {
    if (error.name !== "AbortError") show({ problem: error });
  }
}

function show({ answer = null, problem = null, busy = false }) {
  byId("bars").setAttribute("aria-busy", busy);
  byId("placeholder").hidden = Boolean(answer || problem || busy);
  byId("again").hidden = !WORTH_ANOTHER_TRY.has(problem?.status);
  byId("problem").replaceChildren(...(problem ? problemLines(problem) : []));
  byId("problem").parentElement.scrollIntoView({ block: "nearest" }); // on a phone it is below
  if (busy) {
    byId("summary").textContent = "Classifying…";
    return; // with the old answer in sight, dimmed, so that nothing jumps
  }
  byId("bars").replaceChildren(...(answer?.predictions ?? []).map(bar));
  byId("facts").replaceChildren(...(answer ? facts(answer) : []));
  byId("unsure").hidden = answer?.known !== false;
  byId("meaning").textContent = answer?.known === undefined ? "" : meaning(answer);
  byId("summary").textContent = answer
    ? `${answer.predictions[0].label}, ${percent(answer.predictions[0].probability)}` : "";
  showUntrained(answer?.random_weights);
  showHeatmap(answer);
}

function showHeatmap(answer) {
  heatmap.hidden = !answer?.heatmap || preview.hidden;
  if (heatmap.hidden) return;
  paint(heatmap, answer.heatmap);
  heatmap.setAttribute("aria-label", `Heat map: where in the image ${answer.predictions[0].label} was seen`);
}

function problemLines(problem) {
  const id = problem.request_id && ` · request ${problem.request_id}`;
  return [element("strong", problem.title), element("p", problem.detail), element("small", problem.code + id)];
}

function bar({ label, wordnet_id, probability }) {
  const meter = element("div", "", { role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1,
                                     "aria-valuenow": probability, "aria-valuetext": percent(probability) });
  meter.style.setProperty("--filled", probability);
  const item = element("li");
  const name = element("span", label, { class: "label" });
  name.append(" ", element("small", wordnet_id ?? ""));
  item.append(name, element("span", percent(probability), { class: "percent" }), meter);
  return item;
}

/** What the bars of a calibrated model mean. */
function meaning({ model, version, predictions: [{ probability }] }) {
  const one = served.find((each) => each.name === model && each.version === version);
  const error = one?.calibration ? `, give or take ${(100 * one.calibration.expected_calibration_error).toFixed(1)} points` : "";
  return `Calibrated: of a hundred answers as sure as this one, ${Math.round(100 * probability)} are right${error}.`;
}

function facts({ model, version, timings_ms: { total, decode_wait, decode, queue, inference }, batch_size }) {
  const rows = { Model: `${model} version ${version}`, Total: ms(total), "Decoder wait": ms(decode_wait),
                 Decode: ms(decode), Queue: ms(queue), Inference: ms(inference), Batch: `${batch_size}` };
  return Object.entries(rows).map(([name, value]) => {
    const row = element("div");
    row.append(element("dt", name), element("dd", value));
    return row;
  });
}

const percent = (probability) => `${(100 * probability).toFixed(1)}%`;
const ms = (value) => `${value.toFixed(1)} ms`;

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

byId("again").addEventListener("click", classify);

// Models.

async function loadModels() {
  try {
    served = (await ask("models")).models;
  } catch (problem) {
    show({ problem });
    return;
  }
  modelChoice.replaceChildren(...served.map(({ name, version, default: chosen }) => {
    const option = element("option", `${name} · version ${version}`);
    option.selected = chosen;
    return option;
  }));
  if (!served.some((model) => model.default)) modelChoice.selectedIndex = 0;
  modelChoice.disabled = !served.length;
  aboutModel();
}

function aboutModel() {
  const model = served[modelChoice.selectedIndex];
  byId("about").textContent = model ? describe(model) : "No model is served: see Models for the reasons.";
  offerHeatmap();
  showUntrained();
}

function offerHeatmap() {
  const has = served[modelChoice.selectedIndex]?.activation_maps;
  heat.disabled = !has || crops.checked;
  byId("heat-hint").textContent = !has ? "this model has none" : crops.checked ? "of one crop only"
    : "what speaks for the first class";
}

function describe({ architecture, backend, parameters, precision, published_accuracy, accuracy, members, preprocessing,
                    activation }) {
  const top1 = (published_accuracy ?? accuracy)?.top1;
  return [
    members ? `${backend} of ${members.map((member) => member.name).join(", ")}` : architecture,
    parameters && `${(parameters / 1e6).toFixed(1)} million parameters`,
    precision?.toUpperCase(),
    preprocessing && `${preprocessing.crop[1]}×${preprocessing.crop[0]} pixels${FITTED[preprocessing.crop_mode]}`,
    activation === "sigmoid" && "each class has a probability of its own",
    top1 && `${top1.toFixed(1)}% top-1`,
  ].filter(Boolean).join(" · ");
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
  classify();
});
crops.addEventListener("change", () => {
  offerHeatmap();
  classify();
});
heat.addEventListener("change", () => {
  if (heat.checked) classify();
  else heatmap.hidden = true;
});

loadModels();
