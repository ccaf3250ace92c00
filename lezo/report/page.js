"use strict";
// Tables sort by a click on a header; the address remembers it, as #sort-TABLE-COLUMN-ascending, for a reload.
function sortTable(table, column, direction) {
  const sign = direction === "descending" ? -1 : 1;
  const key = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
    if (x !== undefined || y !== undefined) return x !== undefined ? -1 : 1; // what has no number is last
    const missing = (row) => row.cells[column].textContent === "-";
    if (missing(a) !== missing(b)) return missing(a) ? 1 : -1;
    return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
  };
  const body = table.tBodies[0];
  body.append(...Array.from(body.rows).sort(compare));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
}
function sortByAddress() {
  const found = /^#sort-([a-z-]+)-(\d+)-(ascending|descending)$/.exec(location.hash);
  const table = found && document.getElementById(found[1]);
  if (table && Number(found[2]) < table.tHead.rows[0].cells.length) sortTable(table, Number(found[2]), found[3]);
}
for (const table of document.querySelectorAll("table")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      history.replaceState(null, "", `#sort-${table.id}-${column}-${direction}`);
      sortTable(table, column, direction);
    });
  });
}
window.addEventListener("hashchange", sortByAddress);
sortByAddress();
