// Layer by layer: the error and the bits of every layer of up to two methods, in the order of the model

const layerBox = document.getElementById("layer-explorer");
if (layerBox) {
  const part = (name) => layerBox.querySelector(`[data-part=${name}]`);
  const [group, first, second, what] = ["group", "first", "second", "what"].map(part);
  const QUANTITIES = { after: "relative error", bits: "bits of a weight, with scales" };
  options(group, data.layers.map((one, index) => [index, one.title]), 0);
  group.closest("label").hidden = data.layers.length < 2;
  options(what, Object.entries(QUANTITIES), "after");
  const current = () => data.layers[group.value];

  function chooseGroup() {
    const names = current().methods.map(({ name }, index) => [index, name]);
    options(first, names, 0);
    options(second, [["", "none"], ...names], names.length > 1 ? 1 : "");
    draw();
  }

  function rowsOf(index, places) {
    const method = current().methods[index];
    return method.layers.map((layer, place) => ({ layer: current().layers[layer], at: places.indexOf(layer) + 1, method: method.name,
      value: method[what.value][place], error: method.after[place], before: method.before[place], bits: method.bits[place] }));
  }

  function draw() {
    if (!layerBox.clientWidth) return;  // folded: there is no width to draw for
    const chosen = [first.value, ...(second.value === "" || second.value === first.value ? [] : [second.value])];
    const places = [...new Set(chosen.flatMap((index) => current().methods[index].layers))].sort((a, b) => a - b);
    const rows = chosen.flatMap((index) => rowsOf(index, places)).filter(({ value }) => value !== null && value > 0);
    if (!rows.length) {
      part("chart").replaceChildren(element("p", { class: "note" }, "No layer of these methods has this figure."));
      return;
    }
    const wide = width(layerBox), up = scale(rows.map(({ value }) => [value]), what.value === "after");
    const tip = (row) => `${row.layer}\n${row.method}, ${number(row.bits)} bits of a weight\nerror: ${number(row.error)}\nrounded to nearest: ${number(row.before)}`;
    const across = { type: "linear", domain: [0.5, places.length + 0.5] };
    const names = chosen.map((index) => current().methods[index].name);
    place(part("chart"), Plot.plot({
      width: wide, height: 320, marginLeft: 62, marginRight: 16, marginBottom: 44, marginTop: 26,
      style: { background: "transparent", fontSize: "13px" },
      ariaLabel: `${QUANTITIES[what.value]} of every layer of ${names.join(" and ")}`,
      ariaDescription: "The medians and the worst layers are in the table below.",
      color: { domain: names, range: ["var(--c0)", "var(--c1)"], legend: true },
      symbol: { domain: names, range: ["circle", "diamond2"] },
      x: across, y: up,
      marks: [
        axis("axisX", across, wide < 500 ? 5 : 12, { label: "layer, in the order of the model →", labelOffset: 40 }),
        axis("axisY", up, 6, { label: `↑ ${QUANTITIES[what.value]}` }),
        Plot.gridY({ ticks: ticks(up, 6), stroke: "currentColor", strokeOpacity: 0.12 }),
        Plot.dot(rows, { x: "at", y: "value", fill: "method", symbol: "method", r: 4, fillOpacity: 0.85 }),
        wide < 560 ? Plot.dot(rows, Plot.pointer({ x: "at", y: "value", r: 8, stroke: "currentColor", maxRadius: 60 }))
          : Plot.tip(rows, Plot.pointer({ x: "at", y: "value", title: tip, fontSize: 13, maxRadius: 60 })),
      ],
    }));
    const chart = part("chart").firstElementChild;
    if (wide < 560) chart.addEventListener("input", () => { part("pointed").textContent = chart.value ? tip(chart.value).replaceAll("\n", " · ") : ""; });
  }

  group.addEventListener("change", chooseGroup);
  for (const select of [first, second, what]) select.addEventListener("change", draw);
  layerBox.closest("details").addEventListener("toggle", draw);
  window.addEventListener("resize", draw);
  layerBox.hidden = false;
  chooseGroup();
}
