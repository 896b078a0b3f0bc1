"""A plan as tables for people and as plain data."""
import memory

SECONDS_AN_HOUR = 3600


def _split(split):
    return {"coordinators": split.coordinators, "workers": split.workers, "micro_batches": split.micro_batches,
            "redundant_experts": split.redundant}


def _finite(value):
    return value if value < 1e9 else None


def of_choice(parts, workload, choice):
    """-> plain data"""
    system, service, split = parts.system, choice.service, choice.split
    model = system.model
    price = parts.price_of(split)
    rate = service.tokens_per_second
    return {"split": _split(split), "max_num_seqs": -(-service.sequences // split.coordinators), "max_num_batched_tokens": choice.step_tokens,
            "within_bounds": choice.fits, "sequences": service.sequences, "tokens_per_second": rate,
            "tokens_per_second_per_device": rate / (split.coordinators + split.workers),
            "ttft_ms": _finite(1e3 * service.ttft), "itl_ms": _finite(1e3 * service.itl), "longest_itl_ms": _finite(1e3 * service.longest_itl),
            "steps_with_prompts": _finite(service.load),
            "decode_step_ms": {"whole": 1e3 * service.decode_step.seconds, **{name: 1e3 * s for name, s in service.decode_step.parts.items()}},
            "busy": service.decode_step.busy, "bottleneck": service.decode_step.bottleneck, "limit": choice.limit,
            "coordinator_bytes": memory.coordinator_bytes(model, split, workload, service.sequences),
            "coordinator_room_bytes": memory.room(system.coordinator),
            "worker_bytes": memory.worker_bytes(model, split),
            "worker_room_bytes": min(memory.room(device) for device, _ in system.workers_of(split.workers)) if split.workers else None,
            "price_per_hour": price,
            "price_per_million_tokens": price / SECONDS_AN_HOUR / rate * 1e6 if price is not None and rate else None}


def _gain(now, then):
    """-> what another device brings, as a share"""
    return then["tokens_per_second"] / now["tokens_per_second"] - 1 if now["tokens_per_second"] and then["within_bounds"] else None


def plan(parts, workload, bounds, choice, more, served, steps):
    """choice: the best; more: with one device more; served: the best of what this version runs, None if it is the same"""
    best = of_choice(parts, workload, choice)
    one_more = {what: _gain(best, of_choice(parts, workload, then)) for what, then in more.items()}
    return {"model": parts.system.model.name, "weights": parts.system.model.weights, "cluster_workers": parts.cluster.count,
            "workload": {"input_len": workload.input_len, "output_len": workload.output_len, "prompts_computed_elsewhere": workload.computed_elsewhere},
            "bounds": {"ttft_ms": _finite(1e3 * bounds.ttft), "itl_ms": 1e3 * bounds.itl, "sequences": bounds.sequences},
            "best": best, "one_more": one_more, "served_today": of_choice(parts, workload, served) if served else None, "steps_computed": steps}


# ---- for people

def _bytes(value):
    return "" if value is None else f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.2f} MB"


def _ms(value):
    return "never" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _plural(count, what):
    return f"{count} {what}{'s' * (count != 1)}"


def _lines(one):
    split = one["split"]
    workers = _plural(split["workers"], "worker") if split["workers"] else "experts in the coordinator" + "s" * (split["coordinators"] > 1)
    yield "split", (f"{_plural(split['coordinators'], 'coordinator')}, {workers}, {split['micro_batches']} micro-batch"
                    f"{'es' * (split['micro_batches'] > 1)}, {split['redundant_experts']} redundant experts")
    yield "options", (f"--max-num-seqs {one['max_num_seqs']} --max-num-batched-tokens {one['max_num_batched_tokens']}"
                      + (f" --redundant-experts {split['redundant_experts']}" if split["redundant_experts"] else ""))
    yield "throughput", (f"{one['tokens_per_second']:.1f} tok/s, {one['tokens_per_second_per_device']:.1f} a device, "
                         f"{_plural(one['sequences'], 'sequence')} at a time")
    yield "latency", (f"first token {_ms(one['ttft_ms'])}, between tokens {_ms(one['itl_ms'])} on average, {_ms(one['longest_itl_ms'])} beside prompts")
    step = one["decode_step_ms"]
    yield "decode step", f"{_ms(step['whole'])}: " + ", ".join(f"{name} {100 * ms / step['whole']:.0f}%" for name, ms in
                                                               sorted(step.items(), key=lambda item: -item[1]) if name != "whole" and ms > 0.005 * step["whole"])
    yield "busy", ", ".join(f"{who} {100 * share:.0f}%" for who, share in one["busy"].items())
    yield "bottleneck", f"{one['bottleneck']}; more sequences: {one['limit']}"
    yield "memory", (f"coordinator {_bytes(one['coordinator_bytes'])} of {_bytes(one['coordinator_room_bytes'])}"
                     + (f", worker {_bytes(one['worker_bytes'])} of {_bytes(one['worker_room_bytes'])}" if split["workers"] else ""))
    if one["price_per_hour"] is not None:
        million = one["price_per_million_tokens"]
        yield "cost", f"{one['price_per_hour']:.2f} an hour" + (f", {million:.3g} a million tokens" if million is not None else "")
    else:
        yield "cost", "not known: --price NAME=AMOUNT an hour"


def text(found):
    work, bounds = found["workload"], found["bounds"]
    prompts = "prompts computed elsewhere" if work["prompts_computed_elsewhere"] else f"first token within {_ms(bounds['ttft_ms'])}"
    rows = [("model", f"{found['model']}, weights {found['weights']}"),
            ("cluster", f"a coordinator and {_plural(found['cluster_workers'], 'worker')}"),
            ("wanted", f"{work['input_len']} tokens in, {work['output_len']} out; {prompts}, tokens {_ms(bounds['itl_ms'])} apart")]
    best = found["best"]
    if not best["within_bounds"]:
        rows.append(("", f"NOTHING HERE IS WITHIN THE BOUNDS; the nearest, limited by: {best['limit']}"))
    rows.extend(_lines(best))
    for what, gain in found["one_more"].items():
        rows.append((f"one {what} more", "would not be within the bounds" if gain is None else f"{100 * gain:+.1f}% throughput"))
    if found["served_today"]:
        rows.append(("", ""))
        rows.append(("this version runs", "two micro-batches at most; so split:"))
        if not found["served_today"]["within_bounds"]:
            rows.append(("", f"not within the bounds, limited by: {found['served_today']['limit']}"))
        rows.extend(_lines(found["served_today"]))
    return "".join(f"{name:<21}{value}".rstrip() + "\n" for name, value in rows)
