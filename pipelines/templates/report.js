"use strict";

// Sort a table by a column: its headers become buttons, so that the page is whole without this script.
// A cell's data-sort is what it is sorted by; cells without a value come last, in either direction.
function sortable(table) {
  const headers = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    const numeric = header.classList.contains("number");
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      // What is measured is looked at from the top first.
      const ascending = before === null ? !numeric : before === "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = Array.from(body.rows).map((row) => ({ row, key: row.cells[column].dataset.sort }));
      const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
      rows.sort((a, b) => {
        if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
        return ascending ? compare(a.key, b.key) : compare(b.key, a.key);
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}

function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

document.querySelectorAll("table[data-sortable]").forEach(sortable);
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
