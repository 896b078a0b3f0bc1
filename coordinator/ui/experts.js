// Layers by experts: what each expert was given to do, and by whom it is held.
import { setShares } from "./cluster.js";
import { $, dark, keyed, make, onScheme, say, short, significant, workerColour } from "./charts.js";

const LATELY_SECONDS = 30;
const SCALE = { light: ["#e6edf5", "#7fb0e6", "#1257a8", "#081f45"], dark: ["#1d242e", "#1f4f86", "#4e9be8", "#d8ecff"] };

const seen = []; // {at, layers} of the last LATELY_SECONDS, the latest last
let layers = []; // what is drawn: of now, or differences
let cursor = null; // {row, expert}

const measure = () => document.querySelector("input[name=measure]:checked").value;

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

// Squared coefficient of variation (Shazeer et al. 2017).
function squaredCv(values) {
  const m = mean(values);
  return m === 0 ? 0 : mean(values.map((value) => (value - m) ** 2)) / (m * m);
}

function difference(now, before) {
  return now.map((layer, l) => {
    const importance = layer.importance.map((value, e) => value - before[l].importance[e]);
    const load = layer.load.map((value, e) => value - before[l].load[e]);
    return { ...layer, importance, load, importance_cv2: squaredCv(importance), load_cv2: squaredCv(load) };
  });
}

const channels = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

// 0…1 -> a colour
function heat(share) {
  const stops = SCALE[dark() ? "dark" : "light"];
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [channels(stops[i]), channels(stops[i + 1])];
  return `rgb(${from.map((value, c) => Math.round(value + (to[c] - value) * (place - i))).join(" ")})`;
}

// Times the mean of its layer, for every expert; and the most of all.
function ratios() {
  const name = measure();
  const all = layers.map((layer) => {
    const m = mean(layer[name]);
    return layer[name].map((value) => (m === 0 ? 0 : value / m));
  });
  return { all, most: Math.max(2, ...all.map((row) => Math.max(...row))) };
}

function drawRow(canvas, numExperts, paint, marked) {
  const density = devicePixelRatio;
  const width = Math.round(canvas.clientWidth * density);
  const height = Math.round(canvas.clientHeight * density);
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const draw = canvas.getContext("2d");
  draw.clearRect(0, 0, width, height);
  const gap = width / numExperts > 6 * density ? density : 0;
  for (let e = 0; e < numExperts; ++e) {
    const [begin, end] = [Math.round((e * width) / numExperts), Math.round(((e + 1) * width) / numExperts)];
    paint(draw, e, begin, end - begin - gap, height);
    if (marked !== e) continue;
    draw.strokeStyle = dark() ? "#ffd34d" : "#b34700";
    draw.lineWidth = 2 * density;
    draw.strokeRect(begin + density, density, end - begin - gap - 2 * density, height - 2 * density);
  }
}

function paintHolders(layer) {
  return (draw, e, x, width, height) => {
    const holders = layer.holders[e];
    holders.forEach((id, i) => {
      draw.fillStyle = workerColour(id);
      draw.fillRect(x, (i * height) / holders.length, width, Math.ceil(height / holders.length));
    });
  };
}

function draw() {
  const name = measure();
  const { all, most } = name === "holders" ? { all: [], most: 0 } : ratios();
  const height = layers.length > 24 ? 12 : 20;
  keyed(
    $("map-rows"),
    layers.map((layer, row) => ({ layer, row })),
    ({ layer }) => layer.layer,
    ({ layer }) => {
      const label = make("th", "", String(layer.layer));
      label.scope = "row";
      const canvas = make("canvas");
      canvas.setAttribute("aria-hidden", "true");
      return make("tr", "", label, make("td", "map", canvas), make("td", "figure"), make("td", "figure"));
    },
    (tr, { layer, row }) => {
      const canvas = tr.cells[1].firstChild;
      canvas.style.height = `${height}px`;
      const paint =
        name === "holders"
          ? paintHolders(layer)
          : (context, e, x, width, h) => {
              context.fillStyle = heat(all[row][e] / most);
              context.fillRect(x, 0, width, h);
            };
      drawRow(canvas, layer.experts, paint, cursor?.row === row ? cursor.expert : null);
      say(tr.cells[2], layer.importance_cv2.toFixed(3));
      say(tr.cells[3], layer.load_cv2.toFixed(3));
    },
  );
  drawLegend(name, most);
  describeCell();
}

function drawLegend(name, most) {
  $("map-legend").hidden = name === "holders";
  if (name === "holders") return;
  const canvas = $("legend-scale");
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; ++x) {
    context.fillStyle = heat(x / (canvas.width - 1));
    context.fillRect(x, 0, 1, canvas.height);
  }
  say($("legend-high"), `${significant(most, 2)} × the mean of its layer`);
}

function describeCell() {
  if (!cursor || !layers[cursor.row]) return;
  const layer = layers[cursor.row];
  const e = cursor.expert;
  const times = (values) => {
    const m = mean(values);
    return m === 0 ? "" : ` (${significant(values[e] / m, 2)} × the mean)`;
  };
  const who = layer.holders[e].map((id) => (id === 0 ? "the coordinator" : `worker ${id}`)).join(" and ");
  say(
    $("map-cell"),
    `Layer ${layer.layer}, expert ${e}: ${short(layer.load[e])} tokens${times(layer.load)}, ` +
      `importance ${short(layer.importance[e])}${times(layer.importance)}, ` +
      (who ? `held by ${who}` : "held by no worker: the coordinator reads it from the checkpoint"),
  );
}

function moveCursor(row, expert) {
  row = Math.min(Math.max(row, 0), layers.length - 1);
  cursor = { row, expert: Math.min(Math.max(expert, 0), layers[row].experts - 1) };
  draw();
}

function shares(now) {
  const sums = new Map();
  let all = 0;
  for (const layer of now)
    layer.holders.forEach((holders, e) => {
      all += layer.load[e];
      for (const id of holders) sums.set(id, (sums.get(id) ?? 0) + layer.load[e] / holders.length);
    });
  return new Map(all > 0 ? [...sums].map(([id, sum]) => [id, sum / all]) : []);
}

export function showExperts(answer) {
  $("experts").hidden = answer.layers.length === 0;
  if (answer.layers.length === 0) return;
  const at = performance.now() / 1e3;
  const before = seen.at(-1)?.layers;
  if (before && answer.layers[0].load.some((value, e) => value < before[0].load[e])) seen.length = 0; // another server
  seen.push({ at, layers: answer.layers });
  while (seen.length > 2 && seen[1].at <= at - LATELY_SECONDS) seen.shift();
  setShares(shares(answer.layers));
  show();
}

function show() {
  if (!seen.length) return;
  layers = $("lately").checked ? difference(seen.at(-1).layers, seen[0].layers) : seen.at(-1).layers;
  draw();
}

export function startExperts() {
  const map = $("map");
  map.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e9], End: [0, 1e9] }[event.key];
    if (!step || !layers.length) return;
    event.preventDefault();
    if (cursor) moveCursor(cursor.row + step[0], cursor.expert + step[1]);
    else moveCursor(0, 0);
  });
  $("map-rows").addEventListener("pointermove", (event) => {
    if (event.target.tagName !== "CANVAS") return;
    const row = event.target.closest("tr").sectionRowIndex;
    moveCursor(row, Math.floor((event.offsetX / event.target.clientWidth) * layers[row].experts));
  });
  for (const input of document.querySelectorAll("input[name=measure], #lately")) input.addEventListener("change", show);
  new ResizeObserver(() => layers.length && draw()).observe(map);
  onScheme(() => layers.length && draw());
}
