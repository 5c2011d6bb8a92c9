// The API, as Swagger UI shows it: its groups with names for people, and its errors explained once.

import { key, readJson } from "./api.js";
import { byId } from "./dom.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const spec = await readJson("openapi.json").catch((problem) => {
  byId("api").textContent = problem.message;
  throw problem;
});
const names = Object.fromEntries(spec.tags.map((tag) => [tag.name, tag["x-displayName"]]));
for (const tag of spec.tags) tag.name = names[tag.name];
for (const operation of Object.values(spec.paths).flatMap(Object.values)) {
  operation.tags = operation.tags.map((name) => names[name]);
}
for (const response of Object.values(spec.components.responses)) delete response.content; // the same for all of them
spec.info.title = "API";
spec.info.description = spec.info.description.replace(/^## (Errors)$([^]*)/m, "<details><summary><h2>$1</h2></summary>\n$2\n</details>");
spec.servers = [{ url: new URL(".", location).href.replace(/\/$/, "") }];

// What Swagger UI leaves out for those who do not see the page.
new MutationObserver(() => {
  for (const select of document.querySelectorAll("#api select:not([aria-label])")) {
    select.setAttribute("aria-label", select.closest("[data-param-name]")?.dataset.paramName ?? "media type");
  }
  document.querySelector("#api .information-container section")?.setAttribute("aria-label", "About");
  document.querySelector("#api .schemes")?.setAttribute("aria-label", "Keys");
}).observe(byId("api"), { childList: true, subtree: true });
byId("api").removeAttribute("role"); // Swagger UI has a main part of its own

SwaggerUIBundle({
  spec,
  dom_id: "#api",
  deepLinking: false, // its links lie in buttons
  validatorUrl: null,
  defaultModelsExpandDepth: -1,
  requestInterceptor(request) {
    if (key()) request.headers["X-API-Key"] ??= key();
    return request;
  },
});
