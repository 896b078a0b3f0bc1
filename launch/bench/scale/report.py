"""Writes what was found: results.json, results.csv, and report.md, which shows the plots beside it."""
import csv
import json

import figures
import plots

BUSY = 0.25  # of the cores, in other processes' hands

NOTES = """\
- **efficiency** = tokens/s over units, of what it is at one unit. Units: workers; in process, how many times the threads of one.
  Strong: the batch stays the same. Weak: each unit brings the same batch.
- **ceiling**, of an engine: the least time in which this machine could read or compute what a decode step has to (its read
  bandwidth and multiply-add peak measured in the same run, with as many threads as computed). Of a server: `batch` prompts at the
  multiply-add peak, then such steps, by the engine's figures for that batch. A model that fits into caches can be above it.
- **exchange**: dispatch, experts and combine, beyond the longest computation of a worker in each layer: rows packed, on their
  way, waiting for a core. Seen for engines only; in process it is the handing over, and the wait for a core.
- **!**: more processes (of a server's point one is the clients') or compute threads than usable cores. They take turns, so such a
  point says what sharing costs, not what another core or host would bring.
- An engine has dummy weights and random tokens; a server the model's own weights where there are any, and no prefix cache. Every
  point has prompts of its own, always the same ones."""


def write(folder, head, records, cores, failed):
    """head: what the figures belong to, plain data. -> plots.PlotsMissing if there is no matplotlib, else None. All other files
    are written whatever becomes of the plots."""
    made = figures.rows(records, cores)
    found = [{**{name: one[name] for name in one if name != "rows"}, "points": [row["key"] for row in one["rows"]],
              "units": [row["units"] for row in one["rows"]],
              "efficiency": [row[f"{one['mode']}_efficiency"] for row in one["rows"]], "stop": figures.stop(one)}
             for one in figures.series(made)]
    results = {"benchmark": "scale", **head, "points": made, "series": found,
               "frontier": [row["key"] for row in figures.frontier(made)], "failed": failed}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    _write_csv(folder / "results.csv", made)
    for old in folder.glob("*.svg"):
        old.unlink()
    missing, drawn = None, []
    if not head["settings"]["no_plots"]:
        try:
            drawn = plots.draw(folder)
        except plots.PlotsMissing as error:
            missing = error
    (folder / "report.md").write_text(_markdown(results, drawn, missing))
    return missing


def _flat(row):
    flat = {}
    for name, value in row.items():
        if name == "latency_ms":
            flat.update({f"{what}_{p}_ms": ms for what, of in value.items() for p, ms in of.items()})
        elif name == "stage_shares":
            flat.update({f"share_{stage}": share for stage, share in value.items()})
        else:
            flat[name] = value
    return flat


def _write_csv(path, made):
    flat = [_flat(row) for row in made]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


# ---- report.md

def _percent(share):
    return "" if share is None else f"{100 * share:.0f}%"


def _ms(value):
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _table(header, lines):
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(map(str, line)) + " |" for line in lines)])


def _setup(row):
    count, what = (row["workers"], "worker") if row["workers"] else (row["threads"], "thread")
    return f"{row['transport']}, {count} {what}{'s' * (count > 1)}{' !' * row['more_than_cores']}"


PARTS = {"coordinator": "coordinator's own part", "exchange": "exchange", "experts": "experts' computation"}


def _why(stop, cores):
    """-> what the efficiency was lost to, the most first"""
    text = [f"{PARTS[part]} {ms:.2f} ms" for part, ms in sorted(stop["losses_ms"].items(), key=lambda item: -item[1]) if ms > 0.005]
    if stop["more_than_cores"]:
        text.append(f"{stop['processes']} processes with {stop['compute_threads']} compute threads share {cores} cores")
    return "; ".join(text)


def _stops(found, cores):
    """Of engines, whose steps are all alike; servers' efficiencies stand beside their points."""
    lines = []
    for one in (one for one in found if one["kind"] == "engine"):
        stop = one["stop"]
        where = f"stops at {stop['at']}" if stop["stopped"] else f"rises to {stop['at']}, the last measured"
        lines.append((one["mode"], one["transport"], one["input_len"], one["batch"], where, f"{_percent(stop['efficiency'])} at {stop['seen_at']}",
                      _why(stop, cores)))
    return _table(("scaling", "transport", "prompt", "batch of one unit", "throughput", "efficiency", "lost to"), lines)


def _coordinator_bounds(results):
    """No number of workers takes what the coordinator does alone off the step."""
    lines = []
    for row in results["points"]:
        if row["kind"] == "engine" and row["units"] == 1 and row["workers"]:
            alone = 1 - sum(row["stage_shares"].get(name, 0) for name in figures.EXCHANGE_STAGES)
            lines.append((row["transport"], row["input_len"], row["batch"], _percent(alone), f"{1 / alone:.1f} times" if alone > 0 else ""))
    return _table(("transport", "prompt", "batch", "coordinator's own part with one worker", "most that workers can bring"), lines)


def _engine_points(made):
    lines = [(_setup(row), row["input_len"], row["batch"], f"{row['tokens_per_second']:.1f}", _percent(row["share_of_ceiling"]),
              _percent(row["strong_efficiency"]), _percent(row["weak_efficiency"]), _percent(row["of_in_process"]),
              *(_ms(row["latency_ms"]["step"].get(p)) for p in ("p50", "p95", "p99")), _percent(row["exchange_share"]),
              *(_percent(row["stage_shares"].get(stage)) for stage in ("attention", "router", *figures.EXCHANGE_STAGES)))
             for row in made if row["kind"] == "engine"]
    return _table(("setup", "prompt", "batch", "tok/s", "of ceiling", "strong", "weak", "of in-process", "step p50 ms", "p95", "p99",
                   "exchange", "attention", "router", "dispatch", "experts", "combine"), lines)


def _serve_points(made):
    lines = [(_setup(row), row["input_len"], row["batch"], f"{row['tokens_per_second']:.1f}", _percent(row["share_of_ceiling"]),
              _percent(row["strong_efficiency"]), _percent(row["weak_efficiency"]),
              *(" / ".join(_ms(row["latency_ms"][name][p]) for p in ("p50", "p95", "p99")) for name in ("ttft", "itl", "e2el")),
              *(_percent(row["stage_shares"].get(stage)) for stage in ("attention", "router", *figures.EXCHANGE_STAGES)))
             for row in made if row["kind"] == "serve"]
    return _table(("setup", "prompt", "clients", "tok/s", "of ceiling", "strong", "weak", "first token ms p50 / p95 / p99",
                   "between pieces", "whole answer", "attention", "router", "dispatch", "experts", "combine"), lines)


def _frontier(results):
    at = {row["key"]: row for row in results["points"]}
    lines = [(row["input_len"], _setup(row), row["batch"], f"{row['tokens_per_second']:.1f}", _ms(row["latency_ms"]["tpot"]["p50"]),
              _ms(row["latency_ms"]["tpot"]["p99"]), _ms(row["latency_ms"]["ttft"]["p99"])) for row in map(at.get, results["frontier"])]
    return _table(("prompt", "setup", "clients", "tok/s", "token p50 ms", "p99", "first token p99 ms"), lines)


def _busy(results):
    load, cores = max(row["load_before"] for row in results["points"]), results["machine"]["usable_cores"]
    if load < BUSY * cores:
        return ""
    return f"**{load} processes wanted {cores} cores in the minute before it began: the machine was busy, do not trust these figures.**"


def _markdown(results, drawn, missing):
    machine, model, programs, settings = (results[name] for name in ("machine", "model", "programs", "settings"))
    parts = [f"# Scaling of {model['name']}",
             f"{machine['usable_cores']} cores of {machine['processor']}, {machine['memory_gb']} GB, {machine['system']}, Linux "
             f"{machine['kernel']}; {programs['version']} ({programs['digest']}); {results['date']}.\n\n"
             f"`{results['command']}`", _busy(results)]
    parts = [part for part in parts if part]
    shown = {name: f"![{title}]({name})" for name, title in drawn}

    def section(title, *paragraphs):
        parts.append(f"## {title}")
        parts.extend(paragraph for paragraph in paragraphs if paragraph)

    if missing:
        parts.append(f"No plots: {missing}.")
    if results["series"]:
        section("Where scaling stops, and why",
                f"Throughput stops rising where more units bring less than {100 * (figures.STILL_RISES - 1):.0f}%. Lost: what a step "
                "takes beyond the ideal, which is the step of one unit (weak), or that shared out evenly (strong).",
                _stops(results["series"], machine["usable_cores"]), _coordinator_bounds(results))
    section("Throughput", shown.get("throughput.svg"))
    if results["series"]:
        section("Efficiency", shown.get("efficiency.svg"))
    section("Where the time goes", shown.get("stages.svg"), shown.get("exchange.svg"), _engine_points(results["points"]))
    if any(row["kind"] == "serve" for row in results["points"]):
        section("Servers: throughput against latency", "Nothing measured has more throughput at so short a time per token:",
                shown.get("frontier.svg"), _frontier(results), shown.get("latency.svg"), _serve_points(results["points"]))
    if results["failed"]:
        section("Not measured", _table(("point", "why"), [(one["point"], one["why"]) for one in results["failed"]]))
    section("What the figures are", NOTES,
            f"Every point is in `results.json` and `results.csv`. Settings: `{json.dumps(settings)}`")
    return "\n\n".join(parts) + "\n"
