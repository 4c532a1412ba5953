// Power over time of up to two methods, the whole minute or a part of it, with what ran

const powerBox = document.getElementById("power-explorer");
if (powerBox) {
  const part = (name) => powerBox.querySelector(`[data-part=${name}]`);
  const [first, second, length, from] = ["first", "second", "length", "from"].map(part);
  const names = data.power.map(({ title }, index) => [index, title]);
  options(first, names, 0);
  options(second, [["", "none"], ...names], names.length > 1 ? 1 : "");
  const ends = ({ seconds }) => seconds[seconds.length - 1];
  const chosen = () => [...new Set([first.value, second.value])].filter((value) => value !== "").map((index) => data.power[index]);

  // What was sampled within the window; the first point before it, too, so that a line enters it.
  function within({ seconds, watts, low, high }, title, [begin, end]) {
    const rows = seconds.map((at, index) => ({ at, watts: watts[index], low: low?.[index], high: high?.[index], title }));
    return rows.filter(({ at }, index) => at <= end && (at >= begin || (rows[index + 1]?.at ?? -1) > begin));
  }

  function chooseMethods() {
    const longest = Math.max(...chosen().map(ends));
    options(length, [["", "all"], ...[30, 10, 3].filter((seconds) => seconds < longest).map((seconds) => [seconds, seconds])], length.value);
    draw();
  }

  function draw() {
    const longest = Math.max(...chosen().map(ends)), shown = Number(length.value) || longest;
    from.max = Math.max(longest - shown, 0);
    from.closest("label").hidden = shown >= longest;
    const window_ = [Number(from.value), Math.min(Number(from.value) + shown, longest)];
    part("at").textContent = `${number(window_[0])} s`;
    if (!powerBox.clientWidth) return;  // folded
    const wide = width(powerBox), curves = chosen();
    const rows = curves.flatMap((one) => within(one, one.title, window_));
    const spans = curves.flatMap(({ spans, title }) => spans.map(([name, begin, end]) => ({ name, title, begin: Math.max(begin, window_[0]), end: Math.min(end, window_[1]) })))
      .filter(({ begin, end }) => end > begin);
    const ran = ({ at, title }) => spans.find((span) => span.title === title && at >= span.begin && at <= span.end)?.name ?? "between blocks";
    const tip = (row) => `${row.title}\n${number(row.at)} s: ${ran(row)}\n${number(row.watts)} W` + (row.low === undefined ? "" : ` [${number(row.low)}, ${number(row.high)}]`);
    const kinds = [...new Set(curves.flatMap((one) => one.spans.map(([name]) => name)))];
    const idle = curves.filter(({ idle_w }) => idle_w !== null);
    const most = Math.max(...rows.map(({ watts, high }) => high ?? watts), ...idle.map(({ idle_w }) => idle_w));
    const across = { type: "linear", domain: window_ }, up = { type: "linear", domain: [0, most * 1.06] };
    const titles = curves.map(({ title }) => title);
    place(part("chart"), Plot.plot({
      width: wide, height: 60 + 190 * curves.length, marginLeft: 52, marginRight: 16, marginBottom: 44, marginTop: 26,
      style: { background: "transparent", fontSize: "13px" },
      ariaLabel: `Power over time of ${titles.join(" and ")}`,
      ariaDescription: "Means and totals are in the tables of this page.",
      color: { domain: kinds, range: kinds.map((_, index) => `var(--c${[0, 6, 7, 8, 2, 3, 4, 5][index % 8]})`), legend: true },
      fy: { domain: titles, axis: null }, x: across, y: up,
      marks: [
        axis("axisX", across, wide < 500 ? 5 : 12, { label: "seconds →", labelOffset: 40, facetAnchor: "bottom" }),
        axis("axisY", up, 5, { label: `↑ power (W${curves.some(({ estimated }) => estimated) ? ", estimated" : ""})` }),
        Plot.rect(spans, { fy: "title", x1: "begin", x2: "end", y1: 0, y2: up.domain[1], fill: "name", fillOpacity: 0.22 }),
        Plot.areaY(rows.filter(({ low }) => low !== undefined), { fy: "title", x: "at", y1: "low", y2: "high", fill: "currentColor", fillOpacity: 0.2 }),
        Plot.lineY(rows, { fy: "title", x: "at", y: "watts", stroke: "currentColor", strokeWidth: 1.2 }),
        Plot.ruleY(idle, { fy: "title", y: "idle_w", stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.text(titles.map((title) => ({ title })), { fy: "title", frameAnchor: "top-left", dx: 6, dy: 4, text: "title", className: "name" }),
        wide < 560 ? Plot.dot(rows, Plot.pointerX({ fy: "title", x: "at", y: "watts", r: 6, stroke: "currentColor", maxRadius: 60 }))
          : Plot.tip(rows, Plot.pointerX({ fy: "title", x: "at", y: "watts", title: tip, fontSize: 13, maxRadius: 60 })),
      ],
    }));
    const chart = part("chart").firstElementChild;
    if (wide < 560) chart.addEventListener("input", () => { part("pointed").textContent = chart.value ? tip(chart.value).replaceAll("\n", " · ") : ""; });
  }

  for (const select of [first, second]) select.addEventListener("change", chooseMethods);
  for (const control of [length, from]) control.addEventListener("input", draw);
  powerBox.closest("details").addEventListener("toggle", draw);
  window.addEventListener("resize", draw);
  powerBox.hidden = false;
  chooseMethods();
}
