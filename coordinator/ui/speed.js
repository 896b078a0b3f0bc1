// Tokens a second, time to first token, and where a step's time goes: differences of the server's running sums.
import { $, drawSpark, keyed, make, milliseconds, say, short, significant, SPARK_POINTS } from "./charts.js";

const STAGES_SECONDS = 10; // that the bars look back

// What the theoretical time of a stage counts; see coordinator/engine/stage_floors.h.
const WEIGHTS = "reads its weights once, and does the multiply-adds of its tokens";
const FLOORS = {
  embedding: "reads and writes a row for each token",
  attention: "reads its weights and the keys and values that its tokens see, and does their multiply-adds",
  router: WEIGHTS,
  dispatch: "reads each token's row and writes it once",
  shared_expert: WEIGHTS,
  experts: "reads every expert that a token went to, as fast as the workers together do",
  combine: "reads the experts' rows, reads and writes the token's",
  dense_ffn: WEIGHTS,
  lm_head: WEIGHTS,
  sampling: "reads the logits",
};

const tokens = [];
const first = [];
const seen = []; // activities, the latest last

function push(series, value) {
  series.push(value);
  if (series.length > SPARK_POINTS) series.shift();
}

function drawLines(now, before) {
  const seconds = now.seconds - before.seconds;
  push(tokens, (now.generation_tokens - before.generation_tokens) / seconds);
  const waits = now.time_to_first_token.count - before.time_to_first_token.count;
  push(first, waits > 0 ? (now.time_to_first_token.seconds - before.time_to_first_token.seconds) / waits : null);
  say($("tokens-now"), significant(tokens.at(-1)));
  const last = first.findLast((value) => value !== null);
  say($("first-now"), last === undefined ? "–" : milliseconds(last));
  drawSpark($("tokens-line"), tokens, "line");
  drawSpark($("first-line"), first, "bars");
}

function drawStages(now, before) {
  const steps = now.steps.count - before.steps.count;
  if (steps === 0) return; // those of the last steps stay
  const times = Object.entries(now.stage_seconds).map(([stage, seconds]) => ({
    stage,
    seconds: (seconds - before.stage_seconds[stage]) / steps,
    floor: (now.stage_floor_seconds[stage] - before.stage_floor_seconds[stage]) / steps,
  }));
  const all = times.reduce((sum, { seconds }) => sum + seconds, 0);
  const most = Math.max(...times.flatMap(({ seconds, floor }) => [seconds, floor]));
  say($("stages-note"), `${milliseconds(all)} a step, mean of ${short(steps)}`);
  $("floors-note").hidden = times.every(({ floor }) => floor === 0);
  keyed(
    $("stages").tBodies[0],
    times.filter(({ seconds }) => seconds > 0),
    ({ stage }) => stage,
    ({ stage }) => {
      const name = make("th", "", stage.replace("_", " "));
      name.scope = "row";
      return make("tr", "", name, make("td", "bar", make("div"), make("div", "floor")), make("td", "figure"),
        make("td", "figure share"), make("td", "figure"), make("td", "figure share"));
    },
    (row, { stage, seconds, floor }) => {
      const share = all > 0 ? seconds / all : 0;
      const [bar, mark] = row.cells[1].children;
      bar.style.width = `${(100 * seconds) / most}%`;
      mark.hidden = floor === 0;
      row.title = floor > 0 ? `In theory it ${FLOORS[stage]}` : "No floor is known, or it has nothing to do";
      mark.style.width = `${(100 * floor) / most}%`;
      say(row.cells[2], milliseconds(seconds));
      say(row.cells[3], `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`);
      say(row.cells[4], floor > 0 ? milliseconds(floor) : "–");
      say(row.cells[5], floor > 0 ? `×${significant(seconds / floor, 2)}` : "");
    },
  );
}

export function showSpeed(now) {
  say($("running"), short(now.requests.running));
  say($("waiting"), short(now.requests.queued));
  say($("finished"), short(now.requests.finished));
  say($("failed"), short(now.requests.failed));
  say($("kv"), `${(100 * now.kv_usage).toFixed(0)}%`);
  say($("deaths-count"), short(now.worker_deaths));
  if (seen.length && now.seconds < seen.at(-1).seconds) seen.length = 0; // another server in the old one's place
  if (seen.length) {
    drawLines(now, seen.at(-1));
    drawStages(now, seen.find(({ seconds }) => seconds >= now.seconds - STAGES_SECONDS) ?? seen.at(-1));
  } else if (now.steps.count > 0) {
    const none = Object.fromEntries(Object.keys(now.stage_seconds).map((stage) => [stage, 0]));
    drawStages(now, { steps: { count: 0 }, stage_seconds: none, stage_floor_seconds: none });
  }
  seen.push(now);
  while (seen[0].seconds < now.seconds - STAGES_SECONDS) seen.shift();
}
