// Sort a table by the column whose name is pressed; numbers as numbers, missing values last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column], raw = cell.dataset.sort ?? cell.textContent.trim();
    return raw === "" || raw === "–" ? null : isNaN(raw) ? raw.toLowerCase() : Number(raw);
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => a === b ? 0 : a === null ? 1 : b === null ? -1 : typeof a === typeof b ? (a < b ? -sign : sign) : typeof a === "number" ? -1 : 1);
    body.append(...rows.map(([, row]) => row));
  }));
}
