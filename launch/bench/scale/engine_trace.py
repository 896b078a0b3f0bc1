"""The trace of an engine benchmark: how long its decode steps took, and what of them was the exchange with workers."""
import math

import trace_file


def percentiles(values):
    """-> {p50, p95, p99}, interpolated between the two nearest ranks; None of no values"""
    ordered = sorted(values)
    if not ordered:
        return None

    def at(share):
        rank = share * (len(ordered) - 1)
        low = math.floor(rank)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (rank - low) * (ordered[high] - ordered[low])

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def _batches(steps, output_len):
    """steps: [(name, number)] in order -> for each batch size the numbers of its timed steps. The first prompts, with the
    steps behind them, warm the machine up; of others the first steps are not timed either."""
    groups = []
    for name, number in steps:
        if name != "decode step":
            groups.append([])
        elif groups:
            groups[-1].append(number)
    return [group[-output_len:] for group in groups if group][1:]


def read(path, num_batches, output_len):
    """-> for each batch size {step_ms: percentiles, exchange_share}; None if the trace does not have them all.

    The exchange of a layer is what its dispatch, experts and combine take beyond the longest computation of a worker (of the
    experts, in process): rows packed, on their way, waiting for a core, added up."""
    steps, spans, started, exchange_ms, computed = [], {}, {}, {}, []
    for event in trace_file.events(path):
        kind, phase, arguments = event.get("cat"), event.get("ph"), event.get("args", {})
        if kind == "step":
            steps.append((event["ts"], event["name"], arguments["step"]))
            spans[arguments["step"]] = event["dur"]
        elif kind == "stage" and event["name"] in trace_file.EXCHANGE:
            layer = exchange_ms.setdefault((arguments["step"], arguments.get("layer")), {})
            layer[event["name"]] = layer.get(event["name"], 0) + event["dur"]
        elif kind == "exchange" and phase == "b":
            started[event["id"]] = event["ts"]
        elif kind == "compute":
            computed.append((arguments["exchange"], arguments["layer"], event["dur"]))
    steps.sort()
    longest = trace_file.longest_computations([(begin, number) for begin, _, number in steps], started, computed)
    exchange = {}
    for (step, layer), stages in exchange_ms.items():
        waited = stages.get("experts", 0) - longest.get((step, layer), 0)
        exchange[step] = exchange.get(step, 0) + stages.get("dispatch", 0) + stages.get("combine", 0) + max(0, waited)
    batches = _batches([(name, number) for _, name, number in steps], output_len)
    if len(batches) != num_batches:
        return None
    return [{"step_ms": percentiles([spans[number] / 1e3 for number in numbers]),
             "exchange_share": sum(exchange.get(number, 0) for number in numbers) / sum(spans[number] for number in numbers)}
            for numbers in batches]
