"""What follows from the points: rows with their ceilings and efficiencies, series, and where scaling stops. Pure: records
in, plain data out. A record is {key, settings, measured} as the store has it."""

EXCHANGE_STAGES = ("dispatch", "experts", "combine")  # the only ones that workers take part in
STILL_RISES = 1.1  # throughput against that of the step before, below which scaling has stopped


def efficiency(throughput, units, base_throughput, base_units):
    """Throughput for each unit, of what it was at the base. Strong: the load is the same at both. Weak: it has grown as the
    units have, so this is the base's time of a step over this one's."""
    return throughput / base_throughput * base_units / units


def serve_ceiling(engine, input_len, output_len, batch):
    """Tokens of answers a second of a server that reaches the machine's ceilings: `batch` prompts at the multiply-add peak,
    then decode steps as short as what they read and compute allows. engine: measured, of the same setup and batch."""
    seconds = batch * input_len / engine["prefill_ceiling_tokens_per_second"] + output_len * engine["floor_ms"] / 1e3
    return batch * output_len / seconds


def _shares(measured):
    whole = max(measured["step_ms"], sum(measured["stage_ms"].values()))
    return {name: ms / whole for name, ms in measured["stage_ms"].items()}


def _row(record, cores):
    settings, measured = record["settings"], record["measured"]
    setup = settings["setup"]
    processes = 1 + setup["workers"] + (settings["kind"] == "serve")  # whoever sends a server requests is here, too
    compute_threads = setup["threads"] + setup["workers"] * setup["worker_threads"]
    return {"key": record["key"], "kind": settings["kind"], **setup, "processes": processes, "compute_threads": compute_threads,
            "usable_cores": cores, "more_than_cores": max(processes, compute_threads) > cores,
            **{name: settings[name] for name in ("batch", "input_len", "output_len", "requests", "dtype", "seed")},
            "tokens_per_second": measured["tokens_per_second"], "step_ms": measured["step_ms"],
            "stage_shares": _shares(measured), "exchange_share": measured.get("exchange_share"),
            "latency_ms": measured["latency_ms"], "load_before": measured["load_before"]}


def _place(row, **changes):
    """What two rows have in common that are compared"""
    names = ("kind", "transport", "input_len", "output_len", "dtype", "seed", "units", "batch")
    return tuple({**row, **changes}[name] for name in names)


def rows(records, cores):
    """-> a row for each record, in order. None where what a figure is held against was not measured."""
    made = [_row(record, cores) for record in records]
    at = {_place(row): row for row in made}
    measured = {row["key"]: record["measured"] for row, record in zip(made, records)}
    for row in made:
        engine = measured[row["key"]] if row["kind"] == "engine" else None
        companion = at.get(_place(row, kind="engine"))
        if engine is None and companion:
            engine = measured[companion["key"]]
        ceiling = None
        if engine and row["kind"] == "engine":
            ceiling = 1e3 * row["batch"] / engine["floor_ms"]
        elif engine:
            ceiling = serve_ceiling(engine, row["input_len"], row["output_len"], row["batch"])
        row["ceiling_tokens_per_second"] = ceiling
        row["share_of_ceiling"] = row["tokens_per_second"] / ceiling if ceiling else None
        for name in ("memory_gb_per_second", "compute_gflop_per_second"):
            row[name] = engine["machine_ceilings"][name] if engine else None
        strong = at.get(_place(row, units=1))
        weak = at.get(_place(row, units=1, batch=row["batch"] // row["units"])) if row["batch"] % row["units"] == 0 else None
        alone = at.get(_place(row, units=1, transport="in-process"))
        for name, base in (("strong_efficiency", strong), ("weak_efficiency", weak)):
            row[name] = efficiency(row["tokens_per_second"], row["units"], base["tokens_per_second"], 1) if base else None
        row["speedup"] = row["tokens_per_second"] / strong["tokens_per_second"] if strong else None
        row["of_in_process"] = row["tokens_per_second"] / alone["tokens_per_second"] if alone else None
    return made


def series(made):
    """-> [{mode, kind, transport, input_len, batch, rows}] with rows by units; batch: of one unit. Only what begins at one unit
    and has two."""
    found = {}
    for row in made:
        for mode in ("strong", "weak"):
            if mode == "weak" and row["batch"] % row["units"]:
                continue
            batch = row["batch"] if mode == "strong" else row["batch"] // row["units"]
            found.setdefault((mode, row["kind"], row["transport"], row["input_len"], batch), []).append(row)
    names = ("mode", "kind", "transport", "input_len", "batch")
    out = [{**dict(zip(names, where)), "rows": sorted(of, key=lambda row: row["units"])} for where, of in found.items()]
    return [one for one in out if len(one["rows"]) > 1 and one["rows"][0]["units"] == 1]


def _parts(row):
    """-> {part: ms of a step}: what the coordinator does alone, the exchange, the experts' computation"""
    exchange_stages = sum(row["stage_shares"].get(name, 0) for name in EXCHANGE_STAGES)
    exchange = min(row["exchange_share"] or 0, exchange_stages)
    return {"coordinator": (1 - exchange_stages) * row["step_ms"], "exchange": exchange * row["step_ms"],
            "experts": (exchange_stages - exchange) * row["step_ms"]}


def losses(row, base, mode):
    """-> {part: ms of a step beyond the ideal}, which is the base's time over the units (strong), or the base's (weak)"""
    ideal = 1 / row["units"] if mode == "strong" else 1
    here, there = _parts(row), _parts(base)
    return {part: here[part] - ideal * there[part] for part in here}


def stop(one):
    """one: a series -> where its throughput stops rising: {at: units of the last that rose, stopped: whether there are more,
    and of the first that did not (or else the last) its efficiency, losses and whether it has more processes than cores}"""
    of = one["rows"]
    last = 0
    while last + 1 < len(of) and of[last + 1]["tokens_per_second"] >= STILL_RISES * of[last]["tokens_per_second"]:
        last += 1
    stopped = last + 1 < len(of)
    seen = of[last + 1] if stopped else of[-1]
    lost = losses(seen, of[0], one["mode"]) if seen["kind"] == "engine" else None
    return {"at": of[last]["units"], "stopped": stopped, "seen_at": seen["units"], "efficiency": seen[f"{one['mode']}_efficiency"],
            "losses_ms": lost, "more_than_cores": seen["more_than_cores"], "processes": seen["processes"],
            "compute_threads": seen["compute_threads"]}


def frontier(made):
    """-> rows of servers whose throughput no other has at so low a latency (p50 of a further token)"""
    served = sorted((row for row in made if row["kind"] == "serve"),
                    key=lambda row: (row["input_len"], row["latency_ms"]["tpot"]["p50"], -row["tokens_per_second"]))
    best, out = {}, []
    for row in served:
        if row["tokens_per_second"] > best.get(row["input_len"], 0):
            best[row["input_len"]] = row["tokens_per_second"]
            out.append(row)
    return out
