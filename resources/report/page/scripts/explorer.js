// Quality against cost, and ratios

const MANY = 8;  // points that all get a label; of more, those of the front do
const explorer = document.getElementById("explorer");
if (explorer) {
  const part = (name) => explorer.querySelector(`[data-part=${name}]`);
  const [group, x, y, against] = ["group", "x", "y", "against"].map(part);
  let hidden = new Set();
  options(group, data.groups.map((one, place) => [place, one.title]), 0);
  group.closest("label").hidden = data.groups.length < 2;

  const current = () => data.groups[group.value];
  // Colours of the solvers, each the same in every chart and in the static figures; `rows`: those that are drawn.
  const colours = (rows) => {
    const solvers = [...new Set(data.groups.flatMap(({ methods }) => methods.map(({ solver }) => solver)))].filter((name) => name !== "unquantized").sort();
    const colour = new Map(solvers.map((name, place) => [name, `var(--c${place % 14})`])).set("unquantized", "currentColor");
    const domain = [...colour.keys()].filter((name) => rows.some(({ solver }) => solver === name));
    return { domain, range: domain.map((name) => colour.get(name)) };
  };

  function chooseGroup() {
    const one = current();
    hidden = new Set();
    const drawn = one.costs.find(({ key }) => one.methods.some(({ base, values }) => !base && values[key])) ?? one.costs[0];
    options(x, one.costs.map(({ key, title }) => [key, title]), drawn?.key);
    options(y, one.metrics.map(({ key, title, unit }) => [key, unit ? `${title} (${unit})` : title]),
      one.metrics[0] && one.metrics[0].key);
    options(against, one.methods.map(({ name }) => [name, name]), one.baseline);
    part("methods").replaceChildren(...one.methods.map(({ name }) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        if (box.checked) hidden.delete(name);
        else hidden.add(name);
        draw();
      });
      return element("label", {}, box, ` ${name}`);
    }));
    draw();
  }

  redraw = draw;
  function draw() {
    drawScatter(current());
    drawRatios(current());
    drawPairs(current());
  }

  const isRatio = (key) => key.endsWith("_ratio");

  function points(one) {
    return one.methods.filter(({ name }) => !hidden.has(name)).map((method) => {
      const values = { ...method.values };
      if (method.base && isRatio(x.value)) values[x.value] = [1, null, null];
      return { ...method, x: values[x.value], y: values[y.value] };
    });
  }

  // Points that no other one is below in cost and at least as good as, or the reverse; by rising cost.
  function front(rows, higher) {
    const sign = higher ? 1 : -1;
    const order = [...rows].sort((a, b) => a.x[0] - b.x[0] || sign * (b.y[0] - a.y[0]));
    let best = -Infinity;
    return order.filter((row) => sign * row.y[0] > best && ((best = sign * row.y[0]), true));
  }

  function drawScatter(one) {
    const box = part("scatter");
    for (const select of [x, y]) select.closest("label").hidden = !one.metrics.length;
    part("legend").hidden = !one.metrics.length;
    part("absolute").hidden = !["energy_j", "latency_s"].includes(x.value);
    part("pointed").textContent = "";
    const rows = points(one), both = rows.filter((row) => row.x && row.y);
    const metric = one.metrics.find(({ key }) => key === y.value);
    const cost = one.costs.find(({ key }) => key === x.value);
    if (!metric || !cost || !both.length) {
      const why = metric && cost ? "No method that is shown has both figures." : "Nothing was scored, so that no quality is drawn.";
      box.replaceChildren(element("p", { class: "note" }, why));
      return;
    }
    const reference = rows.find((row) => row.base && row.x && !row.y);
    const best = front(both, metric.higher);
    const interval = (axis) => both.filter((row) => row[axis][1] !== null);
    const control = one.controls[x.value];
    const tip = (row) => `${row.name}${row.taken ? ` (${row.taken === "first" ? "take" : "second"})` : ""}\n` +
      `${row.solver}, ${row.bits}\n${metric.title}: ${withInterval(row.y, metric.unit)}\n` +
      `${cost.title}: ${withInterval(row.x)}${row.verdicts[x.value] ? `, ${row.verdicts[x.value]}` : ""}` + (row.note ? `\n${row.note}` : "");
    const wide = width(box);
    const across = scale([...both.map((row) => row.x), reference ? reference.x : [], control ?? []], isRatio(x.value));
    const up = scale(both.map((row) => row.y), false);
    const chart = Plot.plot({
      width: wide, height: wide < 500 ? 360 : 430, marginLeft: 56, marginRight: 30, marginBottom: 44, marginTop: 28,
      style: { background: "transparent", fontSize: "13px", overflow: "visible" },
      ariaLabel: `${metric.title} of ${both.length} methods against ${cost.title}`,
      ariaDescription: "The same figures are in the table below.",
      color: { ...colours(both), legend: true },
      x: across,
      y: { ...up, reverse: !metric.higher },
      marks: [
        axis("axisX", across, wide < 500 ? 5 : 9, { label: `${cost.title} →`, labelOffset: 40 }),
        axis("axisY", up, 6, { label: `↑ ${metric.title}${metric.unit ? ` (${metric.unit})` : ""}${metric.higher ? "" : ", less is better"}` }),
        control ? Plot.rect([control], { x1: "0", x2: "1", fill: "currentColor", fillOpacity: 0.1 }) : null,
        Plot.gridX({ ticks: ticks(across, wide < 500 ? 5 : 9), stroke: "currentColor", strokeOpacity: 0.12 }),
        Plot.gridY({ ticks: ticks(up, 6), stroke: "currentColor", strokeOpacity: 0.12 }),
        reference ? Plot.ruleX([reference], { x: (row) => row.x[0], stroke: "currentColor", strokeDasharray: "4 4" }) : null,
        Plot.line(best, { x: (row) => row.x[0], y: (row) => row.y[0], curve: "step-after", stroke: "currentColor", strokeOpacity: 0.45 }),
        Plot.link(interval("x"), { x1: (row) => row.x[1], x2: (row) => row.x[2], y1: (row) => row.y[0], y2: (row) => row.y[0], stroke: "solver", strokeWidth: 1.5 }),
        Plot.link(interval("y"), { y1: (row) => row.y[1], y2: (row) => row.y[2], x1: (row) => row.x[0], x2: (row) => row.x[0], stroke: "solver", strokeWidth: 1.5 }),
        ...[true, false].map((real) => Plot.dot(both.filter((row) => row.real === real), { x: (row) => row.x[0], y: (row) => row.y[0],
          fill: real ? "solver" : "var(--page)", stroke: "solver", strokeWidth: 2, r: (row) => (row.taken === "first" ? 8 : 5),
          symbol: (row) => (row.base ? "star" : "circle") })),
        wide < 560 ? Plot.dot(both, Plot.pointer({ x: (row) => row.x[0], y: (row) => row.y[0], r: 10, stroke: "currentColor", maxRadius: 60 }))
          : Plot.tip(both, Plot.pointer({ x: (row) => row.x[0], y: (row) => row.y[0], title: tip, fontSize: 13, maxRadius: 60 })),
      ],
      r: { type: "identity" }, symbol: { type: "identity" },
    });
    place(box, chart);
    if (wide < 560) chart.addEventListener("input", () => { part("pointed").textContent = chart.value ? tip(chart.value).replaceAll("\n", " · ") : ""; });
    label(chart, best, both.filter((row) => !best.includes(row)), wide);
    if (reference) nameReference(chart, reference, wide);
  }

  // Names beside points, each where it covers neither a point nor another name; one without such a place is left out. Those
  // of the front come first and may stand farther off; of many points, the others only get a place that is close.
  function label(figure, front, others, wide) {
    const svg = [...figure.querySelectorAll("svg")].pop() ?? figure;
    const [sx, sy] = ["x", "y"].map((axis) => figure.scale(axis).apply);
    const rows = [...front, ...others], distances = rows.length > MANY ? [10] : [10, 18, 30];
    const taken = rows.map((row) => ({ x: sx(row.x[0]) - 6, y: sy(row.y[0]) - 6, w: 12, h: 12 }));
    const meets = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
    const ns = "http://www.w3.org/2000/svg";
    const height = Number(svg.getAttribute("height"));
    for (const row of rows) {
      const text = document.createElementNS(ns, "text");
      text.textContent = row.name;
      text.setAttribute("class", "name");
      text.setAttribute("text-anchor", "start");
      svg.append(text);
      const w = text.getComputedTextLength(), h = 14, px = sx(row.x[0]), py = sy(row.y[0]);
      const places = [];
      for (const far of front.includes(row) ? [10, 18, 30] : distances) {
        places.push([px + far, py - 7], [px - far - w, py - 7], [px - w / 2, py - far - h], [px - w / 2, py + far],
          [px + far * 0.7, py - far * 0.7 - h], [px - far * 0.7 - w, py - far * 0.7 - h], [px + far * 0.7, py + far * 0.7], [px - far * 0.7 - w, py + far * 0.7]);
      }
      const fits = places.map(([left, top]) => ({ x: left, y: top, w, h }))
        .find((one) => one.x > 50 && one.x + w < wide - 2 && one.y > 16 && one.y + h < height - 40 && !taken.some((other) => meets(one, other)));
      if (!fits) {
        text.remove();
        continue;
      }
      text.setAttribute("x", fits.x);
      text.setAttribute("y", fits.y + 11);
      taken.push(fits);
    }
  }

  function nameReference(figure, row, wide) {
    const svg = [...figure.querySelectorAll("svg")].pop() ?? figure;
    const at = figure.scale("x").apply(row.x[0]);
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    text.textContent = `${row.name} (unquantized)`;
    text.setAttribute("class", "name");
    text.setAttribute("y", 24);
    text.setAttribute("x", Math.min(at, wide - 4));
    svg.append(text);
    text.setAttribute("text-anchor", at + text.getComputedTextLength() > wide ? "end" : "start");
  }

  function drawRatios(one) {
    const box = part("ratios");
    const facets = { energy_ratio: one.estimated ? "energy, estimated" : "energy", latency_ratio: "time" };
    const keys = Object.keys(facets).filter((key) => one.methods.some(({ values }) => values[key]));
    const rows = one.methods.filter(({ name, base }) => !base && !hidden.has(name)).flatMap((method) =>
      keys.filter((key) => method.values[key]).map((key) => ({ ...method, what: facets[key], ratio: method.values[key], verdict: method.verdicts[key] })));
    if (!rows.length) {
      box.replaceChildren(element("p", { class: "note" }, "No ratio was measured."));
      return;
    }
    const order = [...new Set(rows.filter(({ what }) => what === rows[0].what).sort((a, b) => a.ratio[0] - b.ratio[0]).concat(rows).map(({ name }) => name))];
    const floors = keys.filter((key) => one.controls[key]).map((key) => ({ what: facets[key], low: one.controls[key][0], high: one.controls[key][1] }));
    const longest = Math.max(...order.map((name) => name.length));
    const wide = width(box), narrow = wide < 560;
    const left = Math.min(longest * 7.4 + 14, narrow ? 150 : 260);
    const across = scale([[1], ...rows.map(({ ratio }) => ratio), ...floors.map(({ low, high }) => [low, high])], true, 0.05);
    const chart = Plot.plot({
      width: wide, height: (narrow ? keys.length : 1) * (order.length * 22) + 84 + (narrow ? 30 * keys.length : 0), marginLeft: left, marginRight: 20, marginTop: 34, marginBottom: 50,
      style: { background: "transparent", fontSize: "13px" },
      ariaLabel: `Ratios of ${order.length} methods to ${one.baseline}, with intervals`,
      ariaDescription: "The same figures are in the table below.",
      x: across,
      y: { domain: order, label: null, tickFormat: (name) => (name.length * 7.4 > left - 14 ? `${name.slice(0, Math.floor(left / 7.4) - 3)}…` : name) },
      ...(narrow ? { fy: { domain: keys.map((key) => facets[key]), axis: null, padding: 0.2 } } : { fx: { domain: keys.map((key) => facets[key]), label: null } }),
      color: colours(rows),
      marks: [
        axis("axisX", across, narrow ? 5 : 6, { label: `ratio to ${one.baseline}: less is cheaper →`, labelOffset: 42 }),
        Plot.rect(floors, { x1: "low", x2: "high", [narrow ? "fy" : "fx"]: "what", fill: "currentColor", fillOpacity: 0.13 }),
        Plot.ruleX([1], { stroke: "currentColor", strokeOpacity: 0.6 }),
        narrow ? Plot.text(keys.map((key) => ({ what: facets[key] })), { fy: "what", text: "what", frameAnchor: "top-left", dy: -16 }) : null,
        Plot.ruleY(rows.filter(({ ratio }) => ratio[1] !== null), { y: "name", x1: (row) => row.ratio[1], x2: (row) => row.ratio[2], [narrow ? "fy" : "fx"]: "what", stroke: "solver", strokeWidth: 2 }),
        Plot.dot(rows, { y: "name", x: (row) => row.ratio[0], [narrow ? "fy" : "fx"]: "what", fill: "solver", r: 4.5 }),
        Plot.tip(rows, Plot.pointerY({ y: "name", x: (row) => row.ratio[0], [narrow ? "fy" : "fx"]: "what", fontSize: 13,
          title: (row) => `${row.name}\n${row.what}: ${withInterval(row.ratio)}\n${row.verdict ?? ""}` })),
      ],
    });
    place(box, chart);
  }

  // Method against method

  function drawPairs(one) {
    const other = one.methods.find(({ name }) => name === against.value);
    const keys = [...one.metrics.map(({ key, title, unit }) => [key, title, `${unit ? `${unit}, ` : ""}difference`]),
      ["energy_ratio", "energy", one.estimated ? "ratio, estimated" : "ratio"], ["latency_ratio", "time", "ratio"]];
    // Each image's distance from the baseline's is shown as it is, as the baseline has none to subtract.
    for (const entry of keys) if (other.base && !isRatio(entry[0]) && !other.values[entry[0]]) entry[2] = "of its images to the others";
    const rows = one.methods.filter(({ name }) => name !== against.value && !hidden.has(name));
    const known = keys.filter(([key]) => rows.some((row) => pairOf(one, row, other, key)));
    part("pairs-none").hidden = known.length > 0;
    part("pairs-table").hidden = known.length === 0;
    part("pairs-head").replaceChildren(element("tr", {}, element("th", { scope: "col" }, `against ${other.name}`),
      ...known.map(([, title, what]) => element("th", { scope: "col" }, title, element("small", {}, what)))));
    part("pairs").replaceChildren(...rows.map((row) => [row, known.map(([key]) => pairOf(one, row, other, key))])
      .filter(([, found]) => found.some(Boolean))
      .map(([row, found]) => element("tr", {}, element("th", { scope: "row" }, row.name), ...found.map((pair) => {
        if (!pair) return element("td", {}, DASH);
        const [values, verdict] = pair, word = (verdict ?? "").split(",")[0];
        return element("td", {}, number(values[0], values), element("small", {}, withInterval(values).slice(number(values[0], values).length)),
          element("span", { class: `verdict ${["better", "worse"].includes(word) ? word : ""}` }, verdict ?? ""));
      }))));
  }

  // [[value, low, high], verdict] of a method against another; of a pair the data hold one direction.
  function pairOf(one, row, other, key) {
    if (other.base) {
      const values = isRatio(key) || !other.values[key] ? row.values[key] : row.changes[key];
      return values ? [values, row.verdicts[key]] : null;
    }
    const pairs = one.pairs ?? {};
    const direct = pairs[`${row.name}\n${other.name}`]?.[key];
    if (direct) return direct;
    const reverse = row.base ? pairOf(one, other, row, key) : pairs[`${other.name}\n${row.name}`]?.[key];
    if (!reverse) return null;
    const [[value, low, high], verdict] = reverse;
    const turn = (v) => (v === null ? null : isRatio(key) ? 1 / v : -v);
    const words = { better: "worse", worse: "better" };
    return [[turn(value), turn(high), turn(low)], verdict && verdict.replace(/^(better|worse)/, (word) => words[word])];
  }

  group.addEventListener("change", chooseGroup);
  for (const select of [x, y, against]) select.addEventListener("change", draw);
  explorer.hidden = false;
  chooseGroup();
  let drawn = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== drawn) {
      drawn = window.innerWidth;
      draw();
    }
  });
}
