// What is served, as a table, and in a line beside the choice of a model.

import { element, percent, showTables, table } from "./dom.js";

const FITTED = { centre: "", squash: ", squashed", pad: ", padded" };

const count = (number) => number.toLocaleString("en");
const size = (parameters) => `${(parameters / 1e6).toFixed(1)} million`;
const network = ({ architecture, backend, members }) =>
  members ? `${backend} of ${members.map(({ name }) => name).join(", ")}` : architecture;
const input = ({ crop, crop_mode }) => `${crop[1]}×${crop[0]} pixels${FITTED[crop_mode]}`;
const accuracy = ({ published_accuracy, accuracy }) => {
  const { top1 } = published_accuracy ?? accuracy ?? {};
  return top1 && `${top1.toFixed(1)}%`;
};

export function describe(model) {
  const { parameters, precision, preprocessing, activation } = model;
  return [
    network(model),
    parameters && `${size(parameters)} parameters`,
    precision?.toUpperCase(),
    preprocessing && input(preprocessing),
    activation === "sigmoid" && "each class has a probability of its own",
    accuracy(model) && `${accuracy(model)} top-1`,
  ].filter(Boolean).join(" · ");
}

/** Fill the view; `choose` is called with the model that is to be tried. */
export function showModels({ models, refused }, choose) {
  const reasons = Object.entries(refused);
  showTables("models", [
    models.length ? table("Served", { Name: "", Network: "", Parameters: "number", Precision: "", Runs: "", Input: "", Classes: "number",
                                      "Top-1": "number", Also: "" },
                          models.map((model) => modelRow(model, choose)))
      : element("p", "No model is served."),
    reasons.length && table("Not served", { Name: "", Reason: "" }, reasons),
  ]);
}

function modelRow(model, choose) {
  const { name, version, default: chosen, parameters, precision, backend, preprocessing, num_classes } = model;
  const link = element("a", name, { href: "#try" });
  link.addEventListener("click", () => choose(model));
  const also = [model.features && "features", model.activation_maps && "heat map", model.calibration && calibrated(model.calibration)];
  return [
    [link, ` version ${version}`, ...badges({ default: chosen, untrained: model.random_weights })],
    network(model),
    parameters ? size(parameters) : "–",
    precision?.toUpperCase() ?? "–",
    backend,
    preprocessing ? input(preprocessing) : "–",
    num_classes ? count(num_classes) : "–",
    accuracy(model) ?? "–",
    also.filter(Boolean).join(", ") || "–",
  ];
}

const calibrated = ({ expected_calibration_error }) => `calibrated to ${percent(expected_calibration_error)}`;
const badges = (held) => Object.keys(held).filter((name) => held[name]).map((name) => element("small", name, { class: "badge" }));
