// Requests to the server. Where it wants an API key, the person is asked for it, and what was asked for goes on.

import { byId, element } from "./dom.js";

const KEY = "api-key"; // in sessionStorage: this tab's alone, until it is closed

let asking = null; // until a key is given

export class Problem extends Error {
  constructor({ status = 0, title = "No answer", code = "unreachable", detail, request_id = "" }) {
    super(detail);
    Object.assign(this, { status, title, code, detail, request_id });
  }
}

export const key = () => sessionStorage.getItem(KEY);

/** The text of an answer. Throws Problem: the server's own, or one that stands for an answer that is none. */
export async function read(path, options = {}) {
  for (;;) {
    const sent = key();
    const { status, statusText, responseText } = await send(path, options, sent);
    if (status >= 200 && status < 300) return responseText;
    const problem = problemOf(status, statusText, responseText);
    if (problem.code !== "unauthorized") throw problem;
    if (key() === sent) await (asking ??= askForKey(sent));
  }
}

export const readJson = async (path, options) => JSON.parse(await read(path, options));

/** XMLHttpRequest, since fetch does not tell how much of an upload is done. */
function send(path, { body, signal, onProgress }, sent) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const request = new XMLHttpRequest();
    request.open(body ? "POST" : "GET", path);
    if (sent) request.setRequestHeader("X-API-Key", sent);
    if (onProgress) request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
    request.onload = () => resolve(request);
    request.onerror = () =>
      reject(new Problem({ detail: "The server does not answer, or broke the connection off. Is it still running?" }));
    request.onabort = () => reject(new DOMException("another request took its place", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

function problemOf(status, title, text) {
  try {
    const content = JSON.parse(text);
    if (content.code) return new Problem(content);
  } catch {} // it is not from the service
  const detail = `Something between this page and the service answered with status ${status}.`;
  return new Problem({ status, title, code: "not_the_service", detail });
}

/** Show the form for the key in place of everything else, until it has been filled in. */
function askForKey(refused) {
  sessionStorage.removeItem(KEY);
  showWhetherKeyed();
  const input = element("input", [], {
    id: "key-value", type: "password", autocomplete: "off", spellcheck: "false", required: "",
    pattern: "[!-~]+", title: "A key has letters, digits and signs, and no spaces.",
    "aria-describedby": "key-refused key-hint",
  });
  const form = element("form", [element("label", "Key", { for: "key-value" }), input,
                                element("button", "Continue", { class: "button" })]);
  const card = element("section", [
    element("h2", "This server asks for an API key", { id: "key-title" }),
    form,
    element("p", refused ? "The server does not know this key." : "", { id: "key-refused", class: "problem", role: "alert" }),
    element("p", "Whoever runs the server gives out keys. This tab remembers yours until you close it.",
            { id: "key-hint", class: "hint" }),
  ], { id: "key", class: "card", "aria-labelledby": "key-title" });
  document.querySelector("main, [role=main]").prepend(card);
  document.body.dataset.locked = "";
  input.focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value);
      card.remove();
      delete document.body.dataset.locked;
      asking = null;
      showWhetherKeyed();
      resolve();
    });
  });
}

function showWhetherKeyed() {
  document.body.classList.toggle("keyed", Boolean(key()));
}

byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});
showWhetherKeyed();
