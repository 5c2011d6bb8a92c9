// What is served, as a table, and in a line beside the choice of a model.

import { element, showTables, table } from "./dom.js";

const FITTED = { centre: "", squash: ", squashed", pad: ", padded" };

const count = (number) => number.toLocaleString("en");
const network = ({ architecture, backend, members }) =>
  members ? `${backend} of ${members.map(({ name }) => name).join(", ")}` : architecture;
const millions = (parameters) => (parameters / 1e6).toFixed(1);
const input = ({ crop }) => `${crop[1]}×${crop[0]}`;
const accuracy = ({ published_accuracy, accuracy, precision }) => {
  const { top1 } = published_accuracy ?? accuracy ?? {};
  const what = !published_accuracy ? " on its own images" : precision === "fp32" ? "" : " (FP32)"; // of its weights
  return top1 && `${top1.toFixed(1)}%${what}`;
};

export function describe(model) {
  const { parameters, precision, preprocessing, activation } = model;
  return [
    network(model),
    parameters && `${millions(parameters)} million parameters`,
    precision?.toUpperCase(),
    preprocessing && `${input(preprocessing)} pixels${FITTED[preprocessing.crop_mode]}`,
    activation === "sigmoid" && "each class has a probability of its own",
    accuracy(model) && `${accuracy(model)} top-1`,
  ].filter(Boolean).join(" · ");
}

/** Fill the view; `choose` is called with the model that is to be tried. */
export function showModels({ models, refused }, choose) {
  const reasons = Object.entries(refused);
  showTables("models", [
    models.length ? table("Served", { Name: "", Version: "number", Network: "", "Million parameters": "number", Precision: "",
                                      "Runs by": "", "Input pixels": "", Classes: "number", "Top-1": "number", Also: "" },
                          models.map((model) => modelRow(model, choose)))
      : element("p", "No model is served."),
    reasons.length && table("Not served", { Name: "", Reason: "" }, reasons),
  ]);
}

function modelRow(model, choose) {
  const { name, version, default: chosen, parameters, precision, backend, preprocessing, num_classes, state, shadow, canary } = model;
  const link = element("a", name, { href: "#try" });
  link.addEventListener("click", () => choose(model));
  const also = [model.features && "features", model.activation_maps && "heat map", model.calibration && calibrated(model.calibration)];
  return [
    [link, ...badges({ default: chosen, untrained: model.random_weights, loading: state === "loading", "not loaded": state === "unloaded",
                       [`shadow of ${shadow?.of}`]: shadow, [`canary of ${canary?.of}`]: canary })],
    `${version}`,
    network(model),
    parameters ? millions(parameters) : "–",
    precision?.toUpperCase() ?? "–",
    backend,
    preprocessing ? input(preprocessing) : "–",
    num_classes ? count(num_classes) : "–",
    accuracy(model) ?? "–",
    also.filter(Boolean).join(", ") || "–",
  ];
}

/** Calibrated probabilities are still off from how often they are right, on average by this much. */
const calibrated = ({ expected_calibration_error: error }) =>
  `calibrated: probabilities ${(100 * error).toFixed(1)} points off on average`;
const badges = (held) => Object.keys(held).filter((name) => held[name]).flatMap((name) => [" ", element("small", name, { class: "badge" })]);
