// SPDX-License-Identifier: Apache-2.0
// Style sheet and script of the HTML report, which must be one file. The page is complete without its script: that only
// filters, sorts and copies.
#pragma once

#include <string_view>

namespace attest {

inline constexpr std::string_view kReportStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1a1f26; --soft: #5b6672; --faint: #8a94a0; --line: #dfe3e8; --code: #f0f2f5;
  --good: #1a7f4b; --bad: #c2272d; --warn: #96690a; --accent: #2f5fd0;
  --good-bg: #e2f3e9; --bad-bg: #fbe6e6; --warn-bg: #faf0d6; --bar: #d9dee5;
  --r0: #e6ece8; --r1: #c9dfd0; --r2: #98cbaa; --r3: #56a777; --r4: #ffe58f; --r5: #fdb84a; --r6: #f47f35; --r7: #d93a2b;
  --r8: #85101f; --r9: #c913c9; --hatch: #c3cad2;
  --p0: #4c78c9; --p1: #59a5a0; --p2: #8a6fc0; --p3: #d39a3c; --p4: #3f8f5b; --p5: #b8586b; --p6: #7d8894;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #12161b; --card: #1a2027; --ink: #e4e9ef; --soft: #a2adb9; --faint: #76818d; --line: #2d353f; --code: #11151a;
  --good: #57c98b; --bad: #ff7b78; --warn: #e3b54a; --accent: #86a9ff;
  --good-bg: #17352a; --bad-bg: #43201f; --warn-bg: #3a301a; --bar: #343d48;
  --r0: #26312c; --r1: #2c4b3a; --r2: #36704e; --r3: #4a9d6d; --r4: #f5df8a; --r5: #f4b04c; --r6: #ec7a37; --r7: #d8372b;
  --r8: #961427; --r9: #e23fe2; --hatch: #3a444f;
  --p0: #6a95e8; --p1: #62b8b2; --p2: #a58ae0; --p3: #ddaa55; --p4: #5bb37b; --p5: #d8788b; --p6: #8c97a3;
} }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans",
  "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; letter-spacing: -.01em; overflow-wrap: anywhere; }
h1 small { font-weight: 400; color: var(--soft); font-size: 18px; }
h2 { margin: 40px 0 12px; font-size: 18px; letter-spacing: -.005em; }
h2 small { font-weight: 400; color: var(--soft); font-size: 14px; margin-left: 6px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, .mono { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.banner { padding: 22px 26px 20px; border-left: 8px solid var(--bad); }
.banner.good { border-left-color: var(--good); }
.banner.warn { border-left-color: var(--warn); }
.verdict { display: inline-block; margin-bottom: 10px; padding: 3px 12px; border-radius: 999px; font-weight: 700; font-size: 13px;
  letter-spacing: .07em; background: var(--bad-bg); color: var(--bad); }
.good .verdict { background: var(--good-bg); color: var(--good); }
.warn .verdict { background: var(--warn-bg); color: var(--warn); }
.banner p { margin: 6px 0 0; color: var(--soft); overflow-wrap: anywhere; }
.numbers { display: flex; flex-wrap: wrap; gap: 8px 36px; margin-top: 18px; padding-top: 16px; border-top: 1px solid var(--line); }
.numbers div { min-width: 70px; }
.numbers b { display: block; font-size: 22px; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: 13px; }
.numbers .good b { color: var(--good); } .numbers .bad b { color: var(--bad); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 0 28px; align-items: start; }
.columns > * { min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
tbody th { font-weight: 500; }
tfoot th, tfoot td { font-weight: 650; border-top: 2px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts th { width: 1%; white-space: nowrap; color: var(--soft); font-weight: 400; }
.facts td { overflow-wrap: anywhere; }
.facts tr:first-child th, .facts tr:first-child td { border-top: 0; }
.zero { color: var(--faint); }
.pill { display: inline-block; min-width: 52px; padding: 0 9px; border-radius: 999px; font-size: 12px; line-height: 20px; font-weight: 600;
  text-align: center; white-space: nowrap; background: var(--bad-bg); color: var(--bad); }
.pill.pass { background: var(--good-bg); color: var(--good); }
.pill.unsupported { background: var(--warn-bg); color: var(--warn); }
.red { color: var(--bad); } .green { color: var(--good); } .amber { color: var(--warn); }
.time { padding: 16px 18px 12px; }
.stack { display: flex; height: 18px; border-radius: 5px; overflow: hidden; background: var(--bar); }
.stack i { display: block; height: 100%; }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 12px 0 0; padding: 0; list-style: none; font-size: 14px; }
.key i, .legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; vertical-align: -1px; }
.key b { font-weight: 600; font-variant-numeric: tabular-nums; }
.p0 { background: var(--p0); } .p1 { background: var(--p1); } .p2 { background: var(--p2); } .p3 { background: var(--p3); }
.p4 { background: var(--p4); } .p5 { background: var(--p5); } .p6 { background: var(--p6); }
details.failure { margin: 0 0 14px; border-left: 5px solid var(--bad); }
details.failure.unsupported { border-left-color: var(--warn); }
details.failure > summary { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; padding: 12px 18px; cursor: pointer;
  list-style: none; }
details.failure > summary::-webkit-details-marker { display: none; }
details.failure > summary::after { content: "▸"; margin-left: auto; color: var(--faint); }
details.failure[open] > summary::after { content: "▾"; }
summary .id { font-weight: 650; overflow-wrap: anywhere; }
summary .about { color: var(--soft); }
.body { padding: 2px 18px 18px; }
.diagnosis { padding: 16px 18px 6px; border-left: 8px solid var(--good); }
.diagnosis.open { border-left-color: var(--warn); }
.diagnosis p { margin: 0 0 8px; overflow-wrap: anywhere; }
.diagnosis .claim { font-size: 17px; font-weight: 650; }
.diagnosis summary { cursor: pointer; color: var(--soft); margin: 0 0 10px; }
.trace { overflow-x: auto; margin: 0 0 12px; padding: 10px 14px; background: var(--code); border: 1px solid var(--line);
  border-radius: 7px; font: 12px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.finding { padding: 10px 0 12px; border-top: 1px solid var(--line); }
.finding p { margin: 0; overflow-wrap: anywhere; }
.finding .kind { font-weight: 650; }
.chip { display: inline-block; padding: 0 7px; margin: 0 5px 3px 0; border: 1px solid var(--line); border-radius: 5px; background: var(--code);
  font: 12px/20px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.values { display: flex; flex-wrap: wrap; gap: 6px 30px; margin: 8px 0 0; }
.values div { min-width: 60px; }
.values dt { color: var(--soft); font-size: 12px; }
.values dd { margin: 0; font: 14px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.about-case { display: grid; grid-template-columns: max-content 1fr; gap: 6px 18px; margin: 16px 0 0; padding: 14px 0 0;
  border-top: 1px solid var(--line); align-items: baseline; }
.about-case dt { color: var(--soft); font-size: 13px; }
.about-case dd { margin: 0; min-width: 0; }
.repro { position: relative; margin: 0; min-height: 42px; padding: 10px 74px 10px 14px; background: var(--code); border: 1px solid var(--line); border-radius: 7px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.repro button { position: absolute; top: 7px; right: 7px; }
button, input { font: inherit; font-size: 13px; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
button { padding: 2px 10px; cursor: pointer; font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
button:hover { border-color: var(--faint); }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--card); }
.tools { display: none; flex-wrap: wrap; gap: 8px; align-items: center; margin: 0 0 12px; }
.js .tools { display: flex; }
.tools input { padding: 5px 11px; width: 300px; max-width: 100%; }
.tools output { color: var(--soft); font-size: 13px; margin-left: auto; }
.js th[data-sort] { cursor: pointer; user-select: none; }
.js th[data-sort]:hover { color: var(--ink); }
th[aria-sort=ascending]::after { content: " ↑"; } th[aria-sort=descending]::after { content: " ↓"; }
.cases td:nth-child(2) { width: 99%; }
.cases .about { color: var(--soft); }
.cases .identity { color: var(--faint); font-size: 12px; }
.cases tr:target { background: var(--warn-bg); }
.ratio { position: relative; display: inline-block; width: 120px; height: 7px; margin-left: 10px; border-radius: 4px; background: var(--bar);
  vertical-align: 1px; overflow: hidden; }
.ratio i { position: absolute; left: 0; top: 0; bottom: 0; background: var(--good); }
.ratio.beyond i { background: var(--bad); }
.ratio::after { content: ""; position: absolute; left: 50%; top: 0; bottom: 0; width: 1.5px; background: var(--ink); opacity: .55; }
figure.map { margin: 14px 0 0; padding: 14px 0 0; border-top: 1px solid var(--line); }
figcaption { font-size: 14px; color: var(--soft); }
figcaption b { color: var(--ink); margin-right: 8px; font-weight: 650; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; margin: 8px 0 8px; padding: 0; list-style: none; font-size: 12px; color: var(--soft);
  align-items: center; }
.legend i { margin-right: 5px; }
.legend .what { color: var(--ink); }
.legend .limit { width: 2px; height: 16px; background: var(--ink); opacity: .6; }
.scroll { overflow-x: auto; }
.map svg { display: block; max-width: 100%; height: auto; shape-rendering: crispEdges; }
.map text { font: 10px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; fill: var(--soft); }
.map text.title { font-size: 11px; font-weight: 600; fill: var(--ink); }
.map text.axis { font-size: 10.5px; fill: var(--faint); }
.map tspan { font-weight: 400; } .map tspan.wrong { fill: var(--bad); } .map tspan.right { fill: var(--good); }
.definitions { position: absolute; width: 0; height: 0; }
.hatch { stroke: var(--hatch); stroke-width: 1.6; }
.unchecked { fill: url(#unchecked); }
i.hatched { background: repeating-linear-gradient(135deg, var(--hatch) 0 1.5px, transparent 1.5px 4px); }
.r0 { fill: var(--r0); background: var(--r0); } .r1 { fill: var(--r1); background: var(--r1); }
.r2 { fill: var(--r2); background: var(--r2); } .r3 { fill: var(--r3); background: var(--r3); }
.r4 { fill: var(--r4); background: var(--r4); } .r5 { fill: var(--r5); background: var(--r5); }
.r6 { fill: var(--r6); background: var(--r6); } .r7 { fill: var(--r7); background: var(--r7); }
.r8 { fill: var(--r8); background: var(--r8); } .r9 { fill: var(--r9); background: var(--r9); }
footer { margin-top: 36px; color: var(--faint); font-size: 13px; }
@media (max-width: 700px) { .about-case { grid-template-columns: 1fr; } main { padding: 14px 10px 40px; } .cases .ratio { display: none; } th, td { padding: 6px 9px; } }
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #111; --soft: #444; --faint: #666; --line: #ccc; --code: #f6f6f6;
    --good: #1a7f4b; --bad: #b01e24; --warn: #7c5606; --accent: #111; --good-bg: #e2f3e9; --bad-bg: #fbe6e6; --warn-bg: #faf0d6;
    --bar: #ddd; --r0: #e6ece8; --r1: #c9dfd0; --r2: #98cbaa; --r3: #56a777; --hatch: #bbb; }
  body { font-size: 11px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  table { font-size: 11px; } h2 { margin-top: 20px; }
  .js .tools, .repro button { display: none; }
  details.failure, figure.map, tr, .banner, .time { break-inside: avoid; }
  h2 { break-after: avoid; }
}
)css";

inline constexpr std::string_view kReportScript = R"js(
document.documentElement.classList.add("js");
for (const block of document.querySelectorAll(".repro")) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.onclick = async () => {
    const text = block.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a page from a file may have no clipboard
      const range = document.createRange();
      range.selectNodeContents(block.querySelector("code"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  block.append(button);
}
const table = document.querySelector(".cases");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const search = document.querySelector(".tools input"), shown = document.querySelector(".tools output");
  const buttons = [...document.querySelectorAll(".tools button")];
  let status = "";
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (status !== "" && row.dataset.status !== status) || !words.every((word) => text.includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = count === rows.length ? "" : `${count} of ${rows.length}`;
  };
  search.oninput = filter;
  for (const button of buttons) {
    button.onclick = () => {
      status = button.dataset.status;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      filter();
    };
  }
  for (const head of table.querySelectorAll("th[data-sort]")) {
    head.onclick = () => {
      const down = head.getAttribute("aria-sort") === (head.dataset.sort === "number" ? "descending" : "ascending");
      const order = head.dataset.sort === "number" ? (down ? "ascending" : "descending") : (down ? "descending" : "ascending");
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const key = (row) => row.cells[head.cellIndex].dataset.key;
      const compare = head.dataset.sort === "number" ? (a, b) => Number(key(a)) - Number(key(b)) : (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
      rows.sort((a, b) => (order === "ascending" ? compare(a, b) : compare(b, a)));
      body.append(...rows);
    };
  }
}
// A link to a failing case opens it; printing opens all.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", open);
open();
addEventListener("beforeprint", () => { for (const card of document.querySelectorAll("details")) card.open = true; });
)js";

}  // namespace attest
