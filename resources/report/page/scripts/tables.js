// Tables that sort and filter

for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) sortRows(body, column, down ? -1 : 1);
    });
  });
}

function sortRows(body, column, direction) {
  const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
  const key = (row) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return cell.textContent.trim();
  };
  const places = new Map(rows.map((row, place) => [row, place]));
  rows.sort((a, b) => {
    const [first, second] = [key(a), key(b)];
    if (first === null || second === null) return (first === null) - (second === null) || places.get(a) - places.get(b);
    const order = typeof first === "number" ? first - second : first.localeCompare(second);
    return direction * order || places.get(a) - places.get(b);
  });
  body.append(...rows);
}

for (const input of document.querySelectorAll("input[data-filters]")) {
  input.closest("label").hidden = false;
  const table = document.getElementById(input.dataset.filters);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const body of table.tBodies) {
      for (const row of body.rows) {
        if (!row.classList.contains("group")) {
          const text = row.textContent.toLowerCase();
          row.hidden = !words.every((word) => text.includes(word));
        }
      }
    }
    const left = [...table.tBodies].some((body) => [...body.rows].some((row) => !row.hidden && !row.classList.contains("group")));
    document.getElementById(`${table.id}-none`).hidden = left;
  });
}

// Print shows what is folded
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.folded = "";
  }
});
window.addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-folded]")) {
    details.open = false;
    delete details.dataset.folded;
  }
});
