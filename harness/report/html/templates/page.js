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
