"use strict";
// The address remembers how the tables are sorted and filtered, as #sort=TABLE,COLUMN,ascending&task=NAME, for a reload.
const remembered = () => new URLSearchParams(location.hash.slice(1));
function remember(key, value) {
  const address = remembered();
  if (value) address.set(key, value); else address.delete(key);
  history.replaceState(null, "", `#${address}`);
}

// Tables sort by a click on a header.
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
  const [name, column, direction] = (remembered().get("sort") ?? "").split(",");
  const table = name && document.getElementById(name);
  const heads = table?.tHead?.rows[0].cells;
  if (heads?.[column] && ["ascending", "descending"].includes(direction)) sortTable(table, Number(column), direction);
}
for (const table of document.querySelectorAll("table")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      remember("sort", `${table.id},${column},${direction}`);
      sortTable(table, column, direction);
    });
  });
}

// A table that goes on beyond the right edge fades out there.
function fade(wide) { wide.classList.toggle("more", wide.scrollLeft + wide.clientWidth < wide.scrollWidth - 2); }
const widths = new ResizeObserver((changed) => changed.forEach(({ target }) => fade(target)));
for (const wide of document.querySelectorAll(".wide")) {
  wide.addEventListener("scroll", () => fade(wide), { passive: true });
  widths.observe(wide);
}

// Filters: of each kind a choice where there are several; typed words narrow the tables' rows; figures follow.
const form = document.getElementById("filters");
const rows = Array.from(document.querySelectorAll("tbody tr"));
const runs = rows.filter((row) => row.closest("table").id === "runs");
const kinds = ["task", "model", "method", "status"];
function addChoice(kind) {
  const values = [...new Set(rows.flatMap((row) => (row.dataset[kind] === undefined ? [] : kind === "status" ? row.dataset[kind].split(" ") : [row.dataset[kind]])))].sort();
  if (values.length < 2) return;
  const choice = document.createElement("select");
  choice.name = kind;
  choice.ariaLabel = kind;
  choice.append(new Option(`every ${kind}`, ""), ...values.map((value) => new Option(value, value)));
  form.elements.words.before(choice, " ");
}
function chosen(kind) { return form.elements[kind]?.value ?? ""; }
function fits(data, kind) {
  const [has, wanted] = [data[kind], chosen(kind)];
  return !wanted || has === undefined || (kind === "status" ? has.split(" ").includes(wanted) : has === wanted);
}
function filter() {
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : "";
    const fit = kinds.every((kind) => fits(row.dataset, kind)) && words.every((word) => text.includes(word));
    row.classList.toggle("off", !fit);
  }
  for (const part of document.querySelectorAll(".task, svg [data-method], .legend [data-method]")) {
    part.classList.toggle("off", !["task", "model", "method"].every((kind) => fits(part.dataset, kind)));
  }
  for (const wide of document.querySelectorAll(".wide")) fade(wide);
  const shown = runs.filter((row) => !row.classList.contains("off")).length;
  form.querySelector("output").textContent = shown < runs.length ? `${shown} of ${runs.length} runs` : "";
  const narrowed = [...kinds, "words"].some(chosen);
  for (const note of document.querySelectorAll(".unfiltered")) note.hidden = !narrowed;
}
function filterByAddress() {
  for (const name of [...kinds, "words"]) {
    if (form.elements[name]) form.elements[name].value = remembered().get(name) ?? "";
  }
  filter();
}
for (const kind of kinds) addChoice(kind);
form.hidden = false;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  remember(event.target.name, event.target.value);
  filter();
});

// A pointer over a figure is told the nearest point: a mark's own words, or a curve's values as the axes give them.
const tip = document.body.appendChild(document.createElement("div"));
const point = document.body.appendChild(document.createElement("div"));
[tip.id, point.id, tip.hidden, point.hidden] = ["tip", "point", true, true];
function value(scale, at) {
  const share = (at - scale.at[0]) / (scale.at[1] - scale.at[0]);
  const [low, high] = scale.log ? scale.is.map(Math.log) : scale.is;
  const found = low + share * (high - low);
  return Number((scale.log ? Math.exp(found) : found).toPrecision(4));
}
function outside(scale, at) { return at < Math.min(...scale.at) - 0.5 || at > Math.max(...scale.at) + 0.5; }
function pointsOf(svg) {
  const { x, y } = JSON.parse(svg.dataset.plot);
  const points = [];
  for (const title of svg.querySelectorAll("title")) {
    points.push({ mark: title.parentElement, words: title.textContent });
    title.remove(); // or the browser would tell it too
  }
  for (const line of svg.querySelectorAll("[data-series]")) {
    const path = line.querySelector(":scope > path");
    for (const [, px, py] of path?.getAttribute("d").matchAll(/[ML] (-?[\d.]+) (-?[\d.]+)/g) ?? []) {
      if (outside(x, px) || outside(y, py)) continue;
      const words = `${line.dataset.series}: ${x.label} ${value(x, px)}, ${y.label} ${value(y, py)}`;
      points.push({ line, x: Number(px), y: Number(py), words });
    }
  }
  return points;
}
function nearest(svg, points, event) {
  const matrix = svg.getScreenCTM();
  const far = { distance: 24 };
  return points.reduce((best, one) => {
    if ((one.mark ?? one.line).closest(".off")) return best;
    const box = one.mark?.getBoundingClientRect();
    const at = box ? { x: box.x + box.width / 2, y: box.y + box.height / 2 } : new DOMPoint(one.x, one.y).matrixTransform(matrix);
    const within = box && box.width > 24 && event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    const distance = within ? 0 : Math.hypot(at.x - event.clientX, at.y - event.clientY);
    return distance < best.distance ? { ...one, at, distance } : best;
  }, far);
}
function tell(event) {
  const svg = event.currentTarget;
  svg.points ??= pointsOf(svg);
  const found = nearest(svg, svg.points, event);
  tip.hidden = point.hidden = !found.at;
  if (!found.at) return;
  tip.textContent = found.words;
  [point.style.left, point.style.top] = [`${found.at.x}px`, `${found.at.y}px`];
  const left = Math.min(found.at.x + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
  [tip.style.left, tip.style.top] = [`${Math.max(left, 8)}px`, `${Math.max(found.at.y - tip.offsetHeight - 12, 4)}px`];
}
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  svg.addEventListener("pointermove", tell);
  svg.addEventListener("pointerdown", tell);
  svg.addEventListener("pointerleave", () => { tip.hidden = point.hidden = true; });
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
addEventListener("scroll", () => { tip.hidden = point.hidden = true; }, { passive: true });

for (const act of [sortByAddress, filterByAddress]) {
  addEventListener("hashchange", act);
  act();
}
