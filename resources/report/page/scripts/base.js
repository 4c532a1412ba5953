// What a reader can do with the page: choose axes and methods, move the limit, compare methods and images, sort tables.
// Everything that it shows is also in the page without it, as figures, text and tables.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const MINUS = "\u2212", DASH = "\u2014";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function number(value, like = [value]) {
  if (value === null || value === undefined) return DASH;
  const known = like.filter((each) => each !== null && each !== undefined);
  const largest = Math.max(...known.map(Math.abs));
  let decimals = largest ? 2 - Math.floor(Math.log10(largest)) : 0;
  const half = (Math.max(...known) - Math.min(...known)) / 2;
  if (half) decimals = Math.min(Math.max(decimals, Math.ceil(-Math.log10(half))), decimals + 2);
  const text = value.toFixed(Math.min(Math.max(decimals, 0), 7));
  return text.replace("-", MINUS);
}

function withInterval(values, unit = "") {
  if (!values) return DASH;
  const [value, low, high] = values;
  const interval = low === null || high === null ? "" : ` [${number(low, values)}, ${number(high, values)}]`;
  return number(value, values) + (unit ? ` ${unit}` : "") + interval;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, title]) =>
    element("option", { value: String(value), selected: String(value) === String(chosen) }, title)));
}
