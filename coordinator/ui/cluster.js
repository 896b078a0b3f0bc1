// The coordinator, its workers, and who died.
import { $, bytes, keyed, make, onScheme, say, significant, workerColour } from "./charts.js";

const FRESH_SECONDS = 8; // that a death is marked on its worker's card

let workerShares = new Map(); // worker -> its share of the experts' load, 0 to 1
export const setShares = (shares) => (workerShares = shares);

function card(title) {
  const rows = make("dl");
  return make("article", "card", make("header", "", make("i", "swatch"), make("h3", "", title), make("p", "state")), rows, make("p", "died"));
}

function fill(card, process, facts) {
  const state = card.querySelector(".state");
  say(state, process.state);
  state.dataset.state = process.state;
  card.dataset.state = process.state;
  keyed(
    card.querySelector("dl"),
    facts.filter(([, value]) => value !== undefined && value !== ""),
    ([name]) => name,
    ([name]) => make("div", "", make("dt", "", name), make("dd")),
    (row, [, value]) => say(row.lastChild, value),
  );
}

const kernels = (process) => (process.device === process.isa ? process.device : `${process.device}, ${process.isa}`);

// "mpi (no shared memory: …)" -> "mpi"; the reason is for the whole text of /v1/cluster.
const way = (text) => text.split(/[ ,(:]/)[0];

function rows(process) {
  const messages = way(process.transport);
  const rows = way(process.row_transport || process.transport);
  return messages === rows ? messages : `${messages}, rows ${rows}`;
}

function showCoordinator(coordinator, profile) {
  const box = $("coordinator");
  if (!box.firstChild) box.append(card("Coordinator"));
  fill(box.firstChild, coordinator, [
    ["device", kernels(coordinator)],
    ["memory", bytes(coordinator.resident_bytes)],
    ["experts", coordinator.experts ? String(coordinator.experts) : ""],
    ["weights", profile.dtype],
    ["process", `${coordinator.host} ${coordinator.pid}`],
  ]);
}

function share(worker) {
  const part = workerShares.get(worker.id);
  return part === undefined ? "" : `${(100 * part).toFixed(part < 0.0995 ? 1 : 0)}% of the rows`;
}

function speed(worker) {
  const capacity = worker.capacity === undefined ? "" : `reads ${significant(worker.capacity)} GB/s`;
  return worker.speed < 1 ? `slow: ${significant(worker.speed, 2)} of the others'` : capacity;
}

function showWorker(item, worker, deaths) {
  fill(item.firstChild, worker, [
    ["device", kernels(worker)],
    ["memory", worker.resident_bytes ? bytes(worker.resident_bytes) : ""],  // not known before it has joined, nor its process
    ["experts", `${worker.experts}`],
    ["load", share(worker)],
    ["speed", speed(worker)],
    ["heard", worker.heartbeat_age_ms === undefined ? "" : `${worker.heartbeat_age_ms} ms ago`],
    ["link", rows(worker)],
    ["process", worker.pid ? `${worker.host} ${worker.pid}` : ""],
    ["life", worker.incarnation > 1 ? `${worker.incarnation}` : ""],
  ]);
  item.querySelector(".swatch").style.background = workerColour(worker.id);
  const last = deaths.findLast((death) => death.worker === worker.id);
  const fresh = last !== undefined && last.seconds_ago < FRESH_SECONDS;
  item.firstChild.classList.toggle("fresh-death", fresh);
  say(item.querySelector(".died"), fresh ? `process ${last.pid} is dead: ${last.reason}` : "");
}

function showDeaths(deaths) {
  $("deaths-title").hidden = deaths.length === 0;
  keyed(
    $("deaths"),
    [...deaths].reverse(),
    (death) => `${death.worker}.${death.incarnation}`,
    (death) => {
      const when = new Date(Date.now() - 1e3 * death.seconds_ago);
      const item = make(
        "li",
        "",
        make("time", "", when.toLocaleTimeString()),
        make("span", "state", "dead"),
        make("b", "", `worker ${death.worker}`),
        make("span", "", `${death.host} ${death.pid || ""}, life ${death.incarnation}: ${death.reason}`),
      );
      item.querySelector(".state").dataset.state = "dead";
      item.dataset.pid = death.pid;
      return item;
    },
    () => {},
  );
}

export function showCluster(cluster) {
  showCoordinator(cluster.coordinator, cluster.profile);
  keyed(
    $("workers"),
    cluster.workers.filter((worker) => worker.state !== "left"),
    (worker) => worker.id,
    (worker) => make("li", "", card(`Worker ${worker.id}`)),
    (item, worker) => showWorker(item, worker, cluster.deaths),
  );
  showDeaths(cluster.deaths);
  const serving = cluster.workers.filter((worker) => worker.state === "serving").length;
  const moved = cluster.placement.experts_moved;
  say(
    $("cluster-note"),
    cluster.workers.length === 0
      ? "no workers: the coordinator holds the experts"
      : `${serving} of ${$("workers").children.length} workers serve` +
          (cluster.placement.moving ? ", experts are moving" : moved ? `, ${moved} experts moved so far` : ""),
  );
}

onScheme(() => {
  for (const item of $("workers").children) item.querySelector(".swatch").style.background = workerColour(Number(item.dataset.key));
});
