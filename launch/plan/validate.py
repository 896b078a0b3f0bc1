"""`plan --validate RESULTS… --costs FILE --model CONFIG`: predictions against what `bench scale` measured, point by point. Of several
sweeps the best of each point counts: whatever else a machine does only takes away."""
import json
import math
import statistics
import sys

import costs as costs_file
import model as models
from fields import read_json
from step import Rows, Split, System

CROWDED = {False: "no more processes than cores", True: "more processes than cores (!)"}
OTHER_HOSTS = "tcp-namespaces"  # whose link nobody has measured for a plan
SERVER_STEP_TOKENS = 512  # of `serve`, where nobody says otherwise


def _system(model, costs, setup):
    workers, threads = setup["workers"], setup["worker_threads"]
    coordinator = costs.device(setup["threads"])
    if not workers:
        return System(model, coordinator, None, None)
    device, link = costs.device(threads, workers * threads), costs.link(setup["transport"])
    crowded = link.crowded if workers >= costs.cores else 0.0
    link = costs_file.Link(link.name, link.latency, link.bandwidth, crowded)
    return System(model, coordinator, lambda n: [(device, n)], lambda _: link)


def predicted(model, costs, point):
    """-> tokens a second of a point of `bench scale`. An engine decodes all its sequences; a server's clients start together, so
    their prompts are computed first, in steps as full as they get, and then all decode."""
    system, split, batch = _system(model, costs, point), Split(1, point["workers"]), point["batch"]
    step = system.time(split, Rows(batch, point["input_len"] + (point["output_len"] + 1) / 2)).seconds
    if point["kind"] == "engine":
        return batch / step
    prompt = batch * point["input_len"]
    taken = prompt / math.ceil(prompt / SERVER_STEP_TOKENS)
    chunk = system.time(split, Rows(0, 0, taken, point["input_len"] / 2, taken / point["input_len"])).seconds
    return batch * point["output_len"] / (prompt / taken * chunk + point["output_len"] * step)


def _setup(point):
    count, what = (point["workers"], "worker") if point["workers"] else (point["threads"], "thread")
    return f"{point['transport']}, {count} {what}{'s' * (count > 1)}{' !' * point['more_than_cores']}"


def table(rows):
    """rows: [(point, measured, predicted)] -> markdown, with the errors of groups below"""
    lines = ["| what | setup | prompt | batch | measured tok/s | predicted | error |", "|---|---|---|---|---|---|---|"]
    errors = {}
    for point, seen, said in rows:
        error = said / seen - 1
        lines.append(f"| {point['kind']} | {_setup(point)} | {point['input_len']} | {point['batch']} | {seen:.1f} | {said:.1f} | {100 * error:+.0f}% |")
        for group in ("all", point["kind"], _setup(point).removesuffix(" !"), CROWDED[point["more_than_cores"]]):
            errors.setdefault(group, []).append(abs(error))
    lines += ["", "| points | number | median error | worst error |", "|---|---|---|---|"]
    lines += [f"| {group} | {len(of)} | {100 * statistics.median(of):.0f}% | {100 * max(of):.0f}% |" for group, of in sorted(errors.items(), key=lambda item: -len(item[1]))]
    return "\n".join(lines) + "\n"


def best_of(points):
    """-> the fastest of each point, but for those of other hosts; how many these are"""
    best = {}
    for point in points:
        key = tuple(point[name] for name in ("kind", "transport", "units", "input_len", "batch"))
        if key not in best or point["tokens_per_second"] > best[key]["tokens_per_second"]:
            best[key] = point
    known = [point for point in best.values() if point["transport"] != OTHER_HOSTS]
    return known, len(best) - len(known)


def main(program, options):
    costs, model = costs_file.read(options.costs), models.read(program, options.model, models.numerics(options.dtype, options.quantization, options.kv_cache_dtype))
    points, left_out = best_of(point for path in options.validate for point in read_json(path).list("points"))
    if left_out:
        print(f"expertmesh plan: {left_out} points of {OTHER_HOSTS} are left out: --calibrate does not measure that link", file=sys.stderr)
    rows = [(point, point["tokens_per_second"], predicted(model, costs, point)) for point in points]
    if options.json:
        print(json.dumps([{**{name: point[name] for name in ("kind", "transport", "workers", "threads", "batch", "input_len")},
                           "measured": seen, "predicted": said} for point, seen, said in rows], indent=1))
    else:
        print(table(rows), end="")
    return 0
