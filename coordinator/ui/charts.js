// Small drawings and small helpers. All text goes in as text: nothing here, or on this page, makes markup of a string.

export const $ = (id) => document.getElementById(id);

// Sets text only where it changes, so that a screen reader and a selection are left alone.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// <tag class="…">text or children</tag>
export function make(tag, className = "", ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export const SPARK_POINTS = 120;
const HEIGHT = 40;

// values: the latest last; null where there is none. kind: "line" with its area, or "bars".
export function drawSpark(svg, values, kind) {
  const most = Math.max(1e-9, ...values.map((value) => value ?? 0));
  const x = (i) => SPARK_POINTS - values.length + i;
  const y = (value) => HEIGHT - 1 - (value / most) * (HEIGHT - 4);
  svg.setAttribute("viewBox", `0 0 ${SPARK_POINTS} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  let path = "";
  if (kind === "bars") {
    values.forEach((value, i) => {
      if (value !== null) path += `M${x(i)} ${HEIGHT}V${y(value).toFixed(2)}h.8V${HEIGHT}z`;
    });
    svg.replaceChildren(shape("path", { d: path, class: "bar" }));
    return;
  }
  values.forEach((value, i) => (path += `${i ? "L" : "M"}${x(i)} ${y(value ?? 0).toFixed(2)}`));
  const area = path && `${path}L${x(values.length - 1)} ${HEIGHT}L${x(0)} ${HEIGHT}z`;
  svg.replaceChildren(shape("path", { d: area, class: "area" }), shape("path", { d: path, class: "line" }));
}

// 1234567 -> "1.23 M"; counts stay counts
export function short(number, digits = 3) {
  if (Number.isInteger(number) && Math.abs(number) < 1e3) return String(number);
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (Math.abs(number) >= size) return `${significant(number / size, digits)} ${unit}`;
  return significant(number, digits);
}
export function significant(number, digits = 3) {
  if (number === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(number))) + 1;
  return number.toFixed(Math.max(0, Math.min(digits - whole, 6)));
}
export const bytes = (number) => `${short(number)}B`;
export function milliseconds(seconds) {
  if (seconds >= 1) return `${significant(seconds)} s`;
  if (seconds > 0 && seconds < 1e-5) return `${significant(seconds * 1e6, 2)} µs`;
  return `${significant(seconds * 1e3, seconds < 1e-3 ? 2 : 3)} ms`;
}

// A list of keyed children: those that are there are kept, others made or removed; in the items' order.
export function keyed(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, i) => {
    const name = String(keyOf(item));
    let child = old.get(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    old.delete(name);
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
    update(child, item);
  });
  for (const child of old.values()) child.remove();
}

// One colour a worker: neighbours by number are far apart in hue.
export const workerColour = (id) => `hsl(${(210 + id * 137.5) % 360} 55% ${dark() ? 60 : 46}%)`;

const scheme = matchMedia("(prefers-color-scheme: dark)");
export const dark = () => scheme.matches;
export const onScheme = (callback) => scheme.addEventListener("change", callback);
