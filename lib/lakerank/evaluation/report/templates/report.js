"use strict";
{
  const table = document.getElementById("query-table"), body = table.tBodies[0], rows = [...body.rows];
  const words = document.getElementById("words"), kind = document.getElementById("kind");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const terms = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    rows.forEach((row, number) => {
      row.hidden = !((!kind.value || row.classList.contains(kind.value)) && terms.every((term) => texts[number].includes(term)));
      shown += !row.hidden;
    });
    document.getElementById("shown-rows").value = `${shown} of ${rows.length}`;
  };
  const value = (row, column) => {
    const cell = row.cells[column], number = parseFloat(cell.dataset.v ?? cell.textContent);
    return column ? (Number.isNaN(number) ? -1e9 : number) : cell.textContent.toLowerCase();
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const keys = new Map(rows.map((row) => [row, value(row, column)]));
      body.append(...[...rows].sort((a, b) => sign * (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0)));
    };
  });
  words.oninput = kind.onchange = filter;
  words.closest(".filter").hidden = false;
  filter();
}
