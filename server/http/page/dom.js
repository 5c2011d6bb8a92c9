// Elements. Whatever the server says is put into the page as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function element(name, content = [], attributes = {}) {
  const made = document.createElement(name);
  made.append(...[content].flat());
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A table of rows of texts or elements; `columns` has the class of each column by its title. */
export function table(caption, columns, rows) {
  const titles = Object.keys(columns);
  const cell = (content, at) =>
    element(at ? "td" : "th", content, { class: columns[titles[at]], "data-title": titles[at], ...(at ? {} : { scope: "row" }) });
  return element("table", [
    element("caption", caption),
    element("thead", element("tr", titles.map((title) => element("th", title, { scope: "col", class: columns[title] })))),
    element("tbody", rows.map((row) => element("tr", row.map(cell)))),
  ]);
}

/** Fill an element with tables, each in a card of its own; what is false is left out. */
export function showTables(id, tables) {
  byId(id).replaceChildren(...tables.filter(Boolean).map((each) => element("div", each, { class: "card" })));
}

export const percent = (share) => `${(100 * share).toFixed(1)}%`;
export const ms = (value) => `${value.toFixed(1)} ms`;
