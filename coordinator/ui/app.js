// Looks at the server again and again while the page is seen, and shows what it says.
import { get, key, KeyNeeded, NoAnswer } from "./api.js";
import { $, say } from "./charts.js";
import { showCluster } from "./cluster.js";
import { showExperts, startExperts } from "./experts.js";
import { startPlayground } from "./playground.js";
import { showSpeed } from "./speed.js";

const LOOK_MS = 1000;
const EXPERTS_EVERY = 2; // looks

let timer = null;
let looks = 0;
let locked = false; // until there is a key

function setState(text, state) {
  say($("server-state"), text);
  $("server-state").dataset.state = state;
}

async function look() {
  const [activity, cluster, experts] = await Promise.all([
    get("v1/activity"),
    get("v1/cluster"),
    looks % EXPERTS_EVERY === 0 ? get("v1/experts") : null,
  ]);
  looks += 1;
  setState(cluster.ready ? "ready" : cluster.not_ready_reason, cluster.ready ? "serving" : "loading");
  say($("model"), `${cluster.model} (${cluster.family})`);
  document.title = `${cluster.model} · ExpertMesh`;
  if (experts) showExperts(experts);
  showCluster(cluster);
  showSpeed(activity);
}

async function lookAgain() {
  timer = null;
  try {
    await look();
    $("change-key").hidden = !key.get();
  } catch (error) {
    if (error instanceof KeyNeeded) return askForKey();
    setState(error.message, "dead");
    if (!(error instanceof NoAnswer)) console.error(error);
  }
  plan();
}

function plan() {
  if (timer === null && !locked && !document.hidden) timer = setTimeout(lookAgain, LOOK_MS);
}

// The key stays in this tab alone.
function askForKey() {
  locked = true;
  say($("key-note"), key.get() ? "The server does not take this key." : "");
  key.set("");
  setState("needs an API key", "loading");
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  locked = false;
  $("prompt").focus();
  lookAgain();
});
$("change-key").addEventListener("click", () => {
  key.set("");
  askForKey();
});
document.addEventListener("visibilitychange", plan);

startPlayground(askForKey);
startExperts();
lookAgain();
