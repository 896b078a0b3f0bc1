// Tokens a second, time to first token, and where a step's time goes: differences of the server's running sums.
import { $, drawSpark, keyed, make, milliseconds, say, short, significant, SPARK_POINTS } from "./charts.js";

const STAGES_SECONDS = 10; // that the bars look back

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
  }));
  const all = times.reduce((sum, { seconds }) => sum + seconds, 0);
  const most = Math.max(...times.map(({ seconds }) => seconds));
  say($("stages-note"), `${milliseconds(all)} a step, mean of ${short(steps)}`);
  keyed(
    $("stages").tBodies[0],
    times.filter(({ seconds }) => seconds > 0),
    ({ stage }) => stage,
    ({ stage }) => {
      const name = make("th", "", stage.replace("_", " "));
      name.scope = "row";
      return make("tr", "", name, make("td", "bar", make("div")), make("td", "figure"), make("td", "figure share"));
    },
    (row, { seconds }) => {
      const share = all > 0 ? seconds / all : 0;
      row.cells[1].firstChild.style.width = `${(100 * seconds) / most}%`;
      say(row.cells[2], milliseconds(seconds));
      say(row.cells[3], `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`);
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
    drawStages(now, { steps: { count: 0 }, stage_seconds: none });
  }
  seen.push(now);
  while (seen[0].seconds < now.seconds - STAGES_SECONDS) seen.shift();
}
