// Where time and energy go: the phases of every method, as stacked bars or as ratios to the baseline's phases

const phaseBox = document.getElementById("phase-explorer");
if (phaseBox && data.phases.length) {
  const part = (name) => phaseBox.querySelector(`[data-part=${name}]`);
  const [group, what] = ["group", "what"].map(part);
  const COSTS = { latency_s: ["time", "s"], energy_j: ["energy", "J"] };
  options(group, data.phases.map((one, index) => [index, one.title]), 0);
  group.closest("label").hidden = data.phases.length < 2;
  const current = () => data.phases[group.value];
  const estimated = (key) => (key === "energy_j" && current().estimated ? ", estimated" : "");
  const parts = () => current().methods.flatMap(({ name, phases }) => phases.map((phase) => ({ ...phase, phase: phase.name, method: name })));

  function chooseGroup() {
    const known = Object.keys(COSTS).filter((key) => parts().some((row) => row[key] !== null));
    options(what, known.flatMap((key) => [
      [`${key} bars`, `${COSTS[key][0]} (${COSTS[key][1]}${estimated(key)})`],
      [`${key} ratio`, `${COSTS[key][0]}, ratio to the baseline's${estimated(key)}`],
    ]), what.value || `${known[0]} bars`);
    draw();
  }

  const told = (row, key) => `${row.method}: ${row.phase}${row.apart ? " (not part of the whole)" : ""}\n`
    + `${COSTS[key][0]}: ${number(row[key])} ${COSTS[key][1]}${estimated(key)}\n`
    + `ratio: ${withInterval(row.ratio[key])}\nmean power: ${number(row.mean_w)} W`;

  // Bars in the order of the phases, with the whole as an upright line.
  function bars(key, names) {
    const rows = parts().filter((row) => row[key] !== null);
    const starts = {};
    for (const row of rows) {
      row.from = starts[row.method] ?? 0;
      starts[row.method] = row.to = row.from + row[key];
    }
    const wholes = current().methods.filter(({ whole }) => whole[key] !== null).map(({ name, whole }) => ({ method: name, whole: whole[key] }));
    const most = Math.max(...rows.map(({ to }) => to), ...wholes.map(({ whole }) => whole));
    return {
      rows, x: (row) => (row.from + row.to) / 2, y: "method", height: 60 + 30 * names.length,
      axes: { x: { domain: [0, most * 1.03] }, y: { domain: names, label: null } },
      marks: [
        Plot.barX(rows, { x1: "from", x2: "to", y: "method", fill: "phase", fillOpacity: (row) => (row.apart ? 0.45 : 0.9), inset: 1 }),
        Plot.tickX(wholes, { x: "whole", y: "method", stroke: "currentColor", strokeWidth: 2, insetTop: -2, insetBottom: -2 }),
      ],
      label: `${COSTS[key][0]} (${COSTS[key][1]}${estimated(key)}); upright line: the whole`,
    };
  }

  // A row per method and phase: the ratio with its interval.
  function ratios(key, names, phases) {
    const rows = parts().filter((row) => row.ratio[key]).map((row) => {
      const [value, low, high] = row.ratio[key];
      return { ...row, value, low, high };
    });
    if (!rows.length) return null;
    const across = scale(rows.flatMap(({ value, low, high }) => [[value, low, high], [1]]), true);
    const shown = names.filter((name) => rows.some(({ method }) => method === name));
    return {
      rows, x: "value", y: "phase", fy: "method", height: 70 + (14 * phases.length + 8) * shown.length,
      axes: { x: across, y: { domain: phases, axis: null }, fy: { domain: shown, label: null, padding: 0.2 } },
      marks: [
        Plot.ruleX([1], { stroke: "currentColor", strokeOpacity: 0.5 }),
        Plot.ruleY(rows, { fy: "method", y: "phase", x1: "low", x2: "high", stroke: "phase", strokeWidth: 2 }),
        Plot.dot(rows, { fy: "method", y: "phase", x: "value", fill: "phase", r: 3.5 }),
      ],
      label: `${COSTS[key][0]}, ratio to the baseline's${estimated(key)}; with its 95 % interval`,
    };
  }

  function draw() {
    if (!phaseBox.clientWidth) return;  // folded
    const [key, kind] = what.value.split(" ");
    const names = current().methods.map(({ name }) => name);
    const phases = [...new Set(parts().map(({ phase }) => phase))];
    const chosen = kind === "bars" ? bars(key, names) : ratios(key, names, phases);
    part("pointed").textContent = "";
    if (!chosen) {
      part("chart").replaceChildren(element("p", { class: "note" }, "No phase has this figure."));
      return;
    }
    const wide = width(phaseBox), longest = Math.max(...names.map((name) => name.length));
    const { rows, x, y, fy } = chosen;
    const pointed = { x, y, ...(fy ? { fy } : {}) };
    place(part("chart"), Plot.plot({
      width: wide, height: chosen.height, marginBottom: 44, marginRight: 16,
      marginLeft: Math.min(wide * 0.4, 20 + 7.5 * longest),
      style: { background: "transparent", fontSize: "13px" },
      ariaLabel: `${what.selectedOptions[0].text} of the phases of ${names.length} methods`,
      ariaDescription: "The figures are in the table below.",
      color: { domain: phases, range: phases.map((_, index) => `var(--c${[7, 8, 2, 3, 6, 4][index % 6]})`), legend: true },
      ...chosen.axes, x: { ...chosen.axes.x, axis: null },
      marks: [
        axis("axisX", { type: "linear", ...chosen.axes.x }, wide < 500 ? 4 : 8, { label: `${chosen.label} →`, labelOffset: 40, ...(fy ? { facetAnchor: "bottom" } : {}) }),
        ...chosen.marks,
        wide < 560 ? Plot.dot(rows, Plot.pointer({ ...pointed, r: 6, stroke: "currentColor", maxRadius: 60 }))
          : Plot.tip(rows, Plot.pointer({ ...pointed, title: (row) => told(row, key), fontSize: 13, maxRadius: 60 })),
      ],
    }));
    const chart = part("chart").firstElementChild;
    if (wide < 560) chart.addEventListener("input", () => { part("pointed").textContent = chart.value ? told(chart.value, key).replaceAll("\n", " · ") : ""; });
  }

  group.addEventListener("change", chooseGroup);
  what.addEventListener("change", draw);
  phaseBox.closest("details").addEventListener("toggle", draw);
  window.addEventListener("resize", draw);
  phaseBox.hidden = false;
  chooseGroup();
}
