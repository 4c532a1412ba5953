// Scales, axes and pictures that all charts share

const width = (box) => Math.max(280, Math.min(box.clientWidth, 1100));
// The domain of values with their intervals, with room for names, and a scale on which one that lies far from the others
// leaves these apart; intervals that reach below 0 ask for a linear one.
function scale(values, log, room = 0.08) {
  const known = values.flat().filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  if (low > 0 && (log || high / low > 20)) {
    const by = Math.max((high / low) ** room, 1.05);
    return { type: "log", domain: [low / by, high * by] };
  }
  const by = (high - low || Math.abs(high) || 1) * room;
  return { type: "linear", domain: [low - by, high + by] };
}

const NICE = [1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
// At most some round numbers in a domain of a logarithmic scale, 1 among them where it lies in it.
function logTicks([low, high], most) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const digit of NICE) all.push(Number((digit * 10 ** power).toPrecision(3)));
  }
  const inside = all.filter((value) => value >= low && value <= high);
  const gap = Math.log(high / low) / most;
  const kept = inside.includes(1) ? [1] : inside.slice(0, 1);
  for (const value of inside) {
    if (kept.every((other) => Math.abs(Math.log(value / other)) >= gap * 0.8)) kept.push(value);
  }
  return kept.sort((a, b) => a - b);
}

const tickFormat = (value) => String(Number(value.toPrecision(4))).replace("-", MINUS);
// An axis with all its ticks named: on a logarithmic scale d3 leaves out names that it finds too many.
const axis = (kind, { type, domain }, most, options) =>
  type === "log" ? Plot[kind](logTicks(domain, most), { ...options, text: tickFormat }) : Plot[kind]({ ...options, ticks: most, tickFormat });
const ticks = ({ type, domain }, most) => (type === "log" ? logTicks(domain, most) : most);

// One picture with a name for screen readers, which find the figures in the tables.
function place(box, chart) {
  for (const svg of [chart, ...chart.querySelectorAll("svg")].filter((node) => node.matches("svg[aria-label]"))) svg.setAttribute("role", "img");
  for (const part of chart.querySelectorAll("g[aria-label]")) part.removeAttribute("aria-label");
  box.replaceChildren(chart);
}
