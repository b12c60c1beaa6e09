"use strict";

// Sort and filter tables: headers become buttons and the filter is put in here, so that the page is whole without this
// script. A cell's data-sort is what it is sorted by; cells without a value come last, in either direction.
function sortable(table) {
  const headers = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  function sort(column, ascending) {
    const numeric = headers[column].classList.contains("number");
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    headers[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rows = Array.from(body.rows).map((row) => ({ row, key: row.cells[column].dataset.sort }));
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    rows.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
      return ascending ? compare(a.key, b.key) : compare(b.key, a.key);
    });
    body.append(...rows.map(({ row }) => row));
  }
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      // What is measured is looked at from the top first.
      sort(column, before === null ? !header.classList.contains("number") : before === "descending");
      table.dispatchEvent(new Event("sorted"));
    });
  });
  return { headers, body, sort };
}

// The view of the table of runs is in the page's address, so that it can be kept and sent: #sort=ua&order=descending&filter=svm
function viewable(table) {
  const { headers, body, sort } = sortable(table);
  const rows = Array.from(body.rows).map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const tools = document.createElement("p");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  tools.className = "tools";
  input.type = "search";
  input.autocomplete = "off";
  input.spellcheck = false;
  label.append("Filter: rows with all of these words ", input);
  count.setAttribute("aria-live", "polite");
  tools.append(label, " ", count);
  table.parentElement.before(tools);

  function filter() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach(({ row, text }) => { row.hidden = !words.every((word) => text.includes(word)); });
    const shown = rows.filter(({ row }) => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} run${rows.length === 1 ? "" : "s"}`;
  }
  function keep() {
    const view = new URLSearchParams();
    const sorted = headers.find((header) => header.hasAttribute("aria-sort"));
    if (sorted) {
      view.set("sort", sorted.dataset.key);
      view.set("order", sorted.getAttribute("aria-sort"));
    }
    if (input.value.trim()) view.set("filter", input.value.trim());
    history.replaceState(null, "", `#${view}`);
  }
  function show() {
    const view = new URLSearchParams(location.hash.slice(1));
    const column = headers.findIndex((header) => header.dataset.key === view.get("sort"));
    if (column >= 0) {
      const order = view.get("order");
      sort(column, order ? order === "ascending" : !headers[column].classList.contains("number"));
    }
    if (view.has("filter")) input.value = view.get("filter");
    filter();
  }
  input.addEventListener("input", filter);
  input.addEventListener("change", keep);
  table.addEventListener("sorted", keep);
  window.addEventListener("hashchange", show);
  show();
}

function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

document.querySelectorAll("table[data-sortable]").forEach((table) => {
  if ("view" in table.dataset) viewable(table);
  else sortable(table);
});
window.addEventListener("hashchange", openTarget);
openTarget();

// Paper cannot be opened; what is an aside on the screen is left out of it.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = Array.from(document.querySelectorAll("details:not([open]):not(.more)"));
  closed.forEach((details) => { details.open = true; });
});
window.addEventListener("afterprint", () => {
  closed.forEach((details) => { details.open = false; });
});
