"use strict";
{
  const table = document.querySelector(".queries"), body = table.tBodies[0], rows = [...body.rows];
  const words = document.getElementById("words"), kind = document.getElementById("kind");
  const filter = () => {
    const terms = words.value.toLowerCase().split(/\s+/);
    const matches = (row) => (!kind.value || row.classList.contains(kind.value)) &&
      terms.every((term) => row.textContent.toLowerCase().includes(term));
    for (const row of rows) row.hidden = !matches(row);
    document.getElementById("shown-rows").value = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    const value = ({cells: {[column]: cell}}) => column ? parseFloat(cell.dataset.v ?? cell.textContent) || 0 : cell.textContent;
    button.onclick = () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      body.append(...[...rows].sort((a, b) => sign * (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0)));
    };
  });
  words.oninput = kind.onchange = filter;
  words.closest(".filter").hidden = false;
  filter();
}
