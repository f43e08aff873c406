// SPDX-License-Identifier: Apache-2.0
// What the page of the kill matrix has beside the style sheet of the report (runner/report_html_assets.h). Its script
// draws the matrix; tables and lists are there without it.
#pragma once

#include <string_view>

namespace attest {

inline constexpr std::string_view kMatrixStyle = R"css(
:root { --k0: #edf0f3; --k1: #f2b13c; --k2: #a9d8bd; --k3: #5fb488; --k4: #2c8a5d; --k5: #105a3b; --k6: #7a5bd0; --k7: #d0252b; --k8: #ffffff; }
@media (prefers-color-scheme: dark) { :root {
  --k0: #262d36; --k1: #e0a033; --k2: #2b5a45; --k3: #3b8a66; --k4: #59bd8f; --k5: #a5ecca; --k6: #9d84f0; --k7: #ff5f5c; --k8: #1a2027; } }
.broad { max-width: 2060px; margin: 0 auto; padding: 0 24px; }
main + .broad, .broad + main { padding-top: 0; }
.broad + main > h2:first-child, .broad > h2:first-child { margin-top: 0; }
body > main:first-of-type { padding-bottom: 40px; }
.complaints { padding: 12px 18px; max-height: 340px; overflow-y: auto; } .complaints ul { margin: 0; padding-left: 20px; } .complaints li { overflow-wrap: anywhere; }
.bugs .name { font-weight: 650; } .bugs .about { color: var(--soft); max-width: 460px; } .about { color: var(--soft); }
.bugs td:nth-child(4), .bugs td:nth-child(6) { min-width: 150px; }
.bugs tr.area th { background: var(--code); color: var(--soft); font-weight: 600; font-size: 13px; }
.matrix-tools { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 0 0 8px; }
.matrix { display: grid; grid-template-columns: max-content max-content; overflow: auto; max-height: 92vh; }
.matrix canvas { display: block; }
.matrix .corner { position: sticky; left: 0; top: 0; z-index: 3; background: var(--card); border-radius: 10px 0 0; }
#matrix-families { position: sticky; top: 0; z-index: 2; }
#matrix-labels { position: sticky; left: 0; z-index: 1; }
#matrix-cells { cursor: crosshair; }
.matrix-pick { min-height: 3em; margin: 8px 2px 0; }
.matrix-tip { position: fixed; z-index: 5; max-width: 430px; padding: 8px 12px; border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  color: var(--ink); font-size: 13px; line-height: 1.45; pointer-events: none; box-shadow: 0 4px 18px rgb(0 0 0 / 22%); }
.k0 { background: var(--k0); } .k1 { background: var(--k1); } .k2 { background: var(--k2); } .k3 { background: var(--k3); } .k4 { background: var(--k4); }
.k5 { background: var(--k5); } .k6 { background: var(--k6); } .k7 { background: var(--k7); } .k8 { background: var(--k8); outline: 1px solid var(--line); }
@media print { .matrix-tools, .matrix-pick { display: none; } .matrix { max-height: none; } }
)css";

inline constexpr std::string_view kMatrixScript = R"js(
document.documentElement.classList.add("js");
const byId = (id) => document.getElementById(id);
const frame = byId("matrix"), head = byId("matrix-families"), labels = byId("matrix-labels"), grid = byId("matrix-cells");
const tip = byId("matrix-tip"), pick = byId("matrix-pick");
const bugFilter = byId("bug-filter"), caseFilter = byId("case-filter"), weakest = byId("weakest");
const bugs = matrix.bugs.map(([id, area, about, correct, kills, cells], at) => ({ id, area, about, correct, kills, cells, at }));
const cases = matrix.cases.map(([id, family, about, kills], at) => ({ id, family, about, kills, at }));
const ROW = 13, GAP = 7, HEAD = 96, LABELS = 190;
const level = (letter) => (letter === "~" ? Infinity : 10 ** ((letter.charCodeAt(0) - 65) / 6));
const failed = (letter) => letter === "~" || letter >= "A";
for (const bug of bugs) bug.best = Math.max(0, ...[...bug.cells].filter(failed).map(level));
// Rows and columns that are shown, each with its place in pixels.
let rows = [], columns = [], width = 0, height = 0, cell = 2, hover = null;

const colourOf = (bug, letter) => {
  if (letter === "-") return "--k8";
  if (letter === "." || letter === "!") return "--k0";
  if (bug.correct) return "--k7";
  if (letter === "~") return "--k6";
  const margin = level(letter);
  return margin < 20 ? "--k1" : margin < 1e3 ? "--k2" : margin < 1e5 ? "--k3" : margin < 1e7 ? "--k4" : "--k5";
};
const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);
const matches = (text, words) => words.every((word) => text.includes(word));

function place() {
  const bugWords = wordsOf(bugFilter), caseWords = wordsOf(caseFilter);
  const byStrength = weakest.getAttribute("aria-pressed") === "true";
  const shownBugs = bugs.filter((bug) => matches(`${bug.id} ${bug.area}`.toLowerCase(), bugWords));
  if (byStrength) shownBugs.sort((a, b) => a.correct - b.correct || a.best - b.best || a.kills - b.kills || a.at - b.at);
  const shownCases = cases.filter((one) => matches(one.id.toLowerCase(), caseWords));
  const families = new Set(shownCases.map((one) => one.family)).size;
  // As wide as the page allows, two pixels at least; a few cases do not become a wall.
  const room = frame.parentElement.clientWidth - 60 - LABELS - 4 * families;
  cell = Math.max(2, Math.min(14, Math.floor(room / Math.max(1, shownCases.length))));
  rows = [];
  let y = 2, group = null;
  for (const bug of shownBugs) {
    const own = byStrength ? String(bug.correct) : bug.area;
    if (group !== null && own !== group) y += GAP;
    group = own;
    rows.push({ bug, y });
    y += ROW;
  }
  columns = [];
  let x = 2;
  group = null;
  for (const one of shownCases) {
    if (group !== null && one.family !== group) x += 4;
    group = one.family;
    columns.push({ one, x });
    x += cell;
  }
  width = x + 70;  // the last family's name leans out
  height = y + 6;
  byId("matrix-shown").textContent = rows.length === bugs.length && columns.length === cases.length
    ? "" : `${rows.length} × ${columns.length}`;
}

function sheet(canvas, wide, high) {
  const sharp = window.devicePixelRatio || 1;
  canvas.width = Math.round(wide * sharp);
  canvas.height = Math.round(high * sharp);
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${high}px`;
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  return pen;
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const known = {};
  const ink = (name) => (known[name] ??= colour(name));
  const top = sheet(head, width, HEAD);
  top.fillStyle = ink("--card");
  top.fillRect(0, 0, width, HEAD);
  const pen = sheet(grid, width, height);
  top.font = "11px system-ui, sans-serif";
  let family = null;
  for (const { one, x } of columns) {
    if (one.family === family) continue;
    family = one.family;
    top.save();
    top.translate(x + 4, HEAD - 5);
    top.rotate(-Math.PI / 3.2);
    top.fillStyle = ink(hover?.column.one.family === family ? "--ink" : "--soft");
    top.fillText(family, 0, 0);
    top.restore();
    pen.fillStyle = ink("--line");
    pen.fillRect(x - 2, 0, 1, height);
  }
  for (const { bug, y } of rows) {
    let from = 0;
    // Neighbours of one colour are one rectangle.
    while (from < columns.length) {
      const name = colourOf(bug, bug.cells[columns[from].one.at]);
      let to = from + 1;
      while (to < columns.length && cell < 5 && columns[to].x === columns[to - 1].x + cell
        && colourOf(bug, bug.cells[columns[to].one.at]) === name) ++to;
      const wide = columns[to - 1].x + cell - columns[from].x;
      pen.fillStyle = ink(name);
      pen.fillRect(columns[from].x, y, cell < 5 ? wide : wide - 1, ROW - 1);
      from = to;
    }
  }
  const side = sheet(labels, LABELS, height);
  side.fillStyle = ink("--card");
  side.fillRect(0, 0, LABELS, height);
  for (const { bug, y } of rows) {
    const chosen = hover && hover.row.bug === bug;
    side.font = `${chosen ? "bold " : ""}10.5px ui-monospace, Menlo, Consolas, monospace`;
    side.textAlign = "right";
    side.fillStyle = bug.correct ? ink("--faint") : bug.kills < 2 ? ink("--bad") : ink("--ink");
    side.fillText(bug.id, LABELS - 8, y + 10, LABELS - 14);
  }
  if (hover) {
    pen.strokeStyle = ink("--ink");
    pen.lineWidth = 1;
    pen.strokeRect(hover.column.x - 0.5, hover.row.y - 0.5, cell + 1, ROW);
    pen.globalAlpha = 0.14;
    pen.fillStyle = ink("--ink");
    pen.fillRect(0, hover.row.y, width, ROW - 1);
    pen.fillRect(hover.column.x, 0, cell, height);
  }
}

function find(event) {
  const box = grid.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  const row = rows.find((one) => y >= one.y && y < one.y + ROW);
  const column = columns.find((one) => x >= one.x && x < one.x + cell);
  return row && column ? { row, column } : null;
}
function outcome(bug, one) {
  const letter = bug.cells[one.at];
  if (letter === "-") return "not played";
  if (letter === "!") return "not supported";
  if (letter === ".") return "passes";
  if (letter === "~") return "fails without a finite error: NaN, status, guard, unwritten or bits";
  const margin = level(letter);
  return `fails, about ${margin < 1000 ? margin.toPrecision(2) : margin.toExponential(0)} times the allowed error`;
}
function describe(into, { row, column }) {
  const bold = (text) => Object.assign(document.createElement("b"), { textContent: text });
  const line = (...parts) => { const div = document.createElement("div"); div.append(...parts); return div; };
  into.replaceChildren(
    line(bold(row.bug.id), ` on `, bold(column.one.id), `: ${outcome(row.bug, column.one)}`),
    line(row.bug.about),
    line(`${column.one.about} The case kills ${column.one.kills}; ${row.bug.kills} cases ${row.bug.correct ? "flag this" : "kill this bug"}.`));
}
grid.addEventListener("mousemove", (event) => {
  const before = hover;
  hover = find(event);
  tip.hidden = !hover;
  if (hover) {
    describe(tip, hover);
    const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
    const top = event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - 16 - tip.offsetHeight : event.clientY + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }
  if (before?.row !== hover?.row || before?.column !== hover?.column) requestAnimationFrame(draw);
});
grid.addEventListener("mouseleave", () => { hover = null; tip.hidden = true; draw(); });
grid.addEventListener("click", (event) => { const at = find(event); if (at) describe(pick, at); });
const again = () => { hover = null; place(); draw(); };
bugFilter.addEventListener("input", again);
caseFilter.addEventListener("input", again);
weakest.addEventListener("click", () => {
  weakest.setAttribute("aria-pressed", String(weakest.getAttribute("aria-pressed") !== "true"));
  again();
});
addEventListener("resize", again);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
again();
)js";

}  // namespace attest
