"""The page's style and its one script; nothing is loaded from elsewhere."""

STYLE = """
:root { color-scheme: light; --line: #d8d8d8; --soft: #f5f6f7; --ink: #1c1c1c; --dim: #595959; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem 1.25rem 4rem; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
a { color: #0b5394; } .dim { color: var(--dim); } .notes { color: var(--dim); font-size: .85rem; }
.notes p { margin: .15rem 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.results th:first-child, .results td:first-child { position: sticky; left: 0; background: inherit; }
thead tr { background: #eceef0; } tbody tr { background: #fff; } tbody tr:nth-child(even) { background: var(--soft); }
.results th { padding: 0; vertical-align: bottom; }
.results th button { all: unset; box-sizing: border-box; cursor: pointer; display: block; width: 100%;
  padding: .35rem .6rem; font-weight: 600; white-space: normal; min-width: 4.2rem; }
.results th button:focus-visible { outline: 2px solid #0b5394; outline-offset: -2px; }
.results th[aria-sort="ascending"] button::after { content: " \\2191"; }
.results th[aria-sort="descending"] button::after { content: " \\2193"; }
figure { margin: .8rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; min-width: 34rem; }
details { border: 1px solid var(--line); border-radius: 4px; margin: .4rem 0; }
summary { cursor: pointer; padding: .45rem .7rem; background: var(--soft); }
summary:focus-visible { outline: 2px solid #0b5394; }
details > div { padding: .3rem .8rem .8rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .4rem 0; font-size: .88rem; }
dt { font-weight: 600; } dd { margin: 0; min-width: 0; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .7rem; }
.sample { border: 1px solid var(--line); border-top: 4px solid; border-radius: 4px; padding: .45rem;
  font-size: .85rem; }
.sample.right { border-top-color: #009e73; } .sample.wrong { border-top-color: #d55e00; }
.sample.partly { border-top-color: #e69f00; }
.sample img { display: block; width: 100%; max-width: 10rem; margin: 0 auto .35rem; image-rendering: auto; }
.sample p { margin: .1rem 0; } .verdict { font-weight: 600; }
.diagram svg { min-width: 0; } .curve { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; }
.curve svg { min-width: 0; }
@media (max-width: 40rem) { body { padding: .6rem .7rem 3rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; } figure svg { min-width: 44rem; } .diagram svg, .curve svg { min-width: 0; } }
@media print { details > div { display: block; } .wide, figure { overflow: visible; } }
"""


SCRIPT = """
for (const table of document.querySelectorAll("table.results")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, index) => button.addEventListener("click", () => {
    const head = button.parentElement;
    const down = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[index].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what was not measured comes last
      const order = index === 0 ? x.localeCompare(y) : Number(x) - Number(y);
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}
"""
