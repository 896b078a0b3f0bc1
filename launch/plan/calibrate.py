"""`plan --calibrate FILE`: measures this machine by `bench engine`, a child process at a time."""
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

import costs
import machine
import memory
import model as models
import programs
import step_trace
import trace_file
from device import Device
from fields import PlanError
from routing import Placement
from scratch import scratch_folder
from serving import Workload
from step import Rows, Split, System, kv_work, rest_bytes

BATCH_SIZES = (1, 2, 4, 8, 16)
LONG_BATCH_SIZES = (1, 4)
INPUT_LEN, LONG_INPUT_LEN, OUTPUT_LEN = 32, 256, 12
TRANSPORTS = ("shm", "mpi")
TIMED_CONTEXT = OUTPUT_LEN / 2 + 2  # of decode steps, beyond the prompt
POINT_SECONDS = 600
UNDISTURBED, TYPICAL = 0.2, 0.5  # shares of steps that are faster than what is taken
MOST_SHARE = 100.0  # of the floor's speed, that something tiny in a cache is said to reach
MOST_KEY_SHARE = 2.0  # the same of keys, which are told from the rest by a difference


def say(text):
    print(f"expertmesh plan: {text}", file=sys.stderr, flush=True)


class Engine:
    """`bench engine` of one model, and what the planner knows of it."""

    def __init__(self, program, path, options):
        self.path = Path(path)
        self.model = models.read(program, path, options)
        self._program = program
        self._options = options
        self._seen = {}  # what was run -> [step_trace.Steps]

    def run(self, threads, batch_sizes, input_len, output_len, workers=0, transport=None, share=UNDISTURBED):
        """-> (ceilings, [step_trace.Steps]), the best of this and of the same before"""
        setup = ["--workers", workers, "--worker-threads", 1, "--transport", transport] if workers else []
        with scratch_folder() as folder:
            figures, steps = folder / "figures.json", folder / "trace.json"
            try:
                programs.run([self._program, "bench", "engine", self.path, "--threads", threads, "--batch-sizes", ",".join(map(str, batch_sizes)),
                               "--input-len", input_len, "--output-len", output_len, *setup, *self._options, "--trace", steps, "--json", figures],
                              POINT_SECONDS)
            except programs.PointFailed as error:
                raise PlanError(f"{self.path}: bench engine: {error}") from None
            found, what = step_trace.read(steps, share), (threads, input_len, workers, transport)
            before = self._seen.get(what, found)
            self._seen[what] = [one.best_with(other) for one, other in zip(found, before)]
            return json.loads(figures.read_text())["ceilings"], self._seen[what]


def _share(floor, seconds):
    return min(MOST_SHARE, floor / seconds) if seconds > 0 else MOST_SHARE


def _floor(device, part, rows):
    return device.floor(part.bytes, part.multiply_adds * rows)


class Curves:
    """Turns steps in process into curves: for each part [[rows, share of the floor]]."""

    def __init__(self, model, device):
        self._model = model
        self.device = device
        self.points = {}

    def _sum(self, of_layer):
        return sum(layer.count * of_layer(layer) for layer in self._model.layers)

    def _kv_floor(self, rows):
        return self._sum(lambda layer: self.device.floor(*kv_work(layer, rows)))

    @staticmethod
    def _rows(steps, input_len):
        return Rows(steps.decodes, input_len + TIMED_CONTEXT, steps.tokens - steps.decodes, input_len / 2)

    def add_keys(self, short, long):
        """Steps of the same batch after short and after long prompts: what the keys between take -> share of the floor"""
        found = []
        for near, far in ((near, far) for near in short for far in long if near.tokens == far.tokens == near.decodes == far.decodes):
            floor = self._kv_floor(self._rows(far, LONG_INPUT_LEN)) - self._kv_floor(self._rows(near, INPUT_LEN))
            found.append(_share(floor, max(far.stages["attention"] - near.stages["attention"], floor / MOST_KEY_SHARE)))
        return statistics.median(found)

    def add(self, all_steps, key_share):
        model, device, points = self._model, self.device, self.points
        points["kv"] = [[1, round(key_share, 5)]]
        for steps in all_steps:
            rows = steps.tokens
            keys = self._kv_floor(self._rows(steps, INPUT_LEN)) / key_share
            floor = self._sum(lambda layer: _floor(device, layer.attention, rows))
            self._add("attention", rows, floor, max(steps.stages["attention"] - keys, 0.2 * steps.stages["attention"]))
            for part in ("router", "dense_ffn", "shared_expert"):
                floor = self._sum(lambda layer: _floor(device, getattr(layer, part), rows))
                if floor > 0:
                    self._add(part, rows, floor, steps.stages[part])
            self._add_experts(steps)
            if steps.decodes == rows:
                self._add("lm_head", rows, _floor(device, model.lm_head, rows), steps.stages["lm_head"])
                rest = sum(steps.stages.get(name, 0.0) for name in ("embedding", "dispatch", "combine", "sampling", "other"))
                self._add("rest", rows, device.floor(rest_bytes(model, rows, rows), 0), rest)
        for curve in points.values():
            curve.sort()

    def _add_experts(self, steps):
        floor = chosen = 0.0
        for layer in self._model.layers:
            if layer.experts:
                hits, hit, rows = Placement(layer.experts, layer.per_token, 0.0, 0, 1).taken(steps.tokens)
                floor += layer.count * self.device.floor(hit * layer.expert.bytes, rows * layer.expert.multiply_adds)
                chosen = max(1.0, steps.tokens * layer.per_token / hits)
        if floor > 0:
            self._add("experts", round(chosen, 3), floor, steps.stages["experts"])

    # Of as many rows the decode step counts, which was run more often.
    def _add(self, part, rows, floor, seconds):
        curve = self.points.setdefault(part, [])
        if all(there != rows for there, _ in curve):
            curve.append([rows, round(_share(floor, seconds), 5)])


def _threads(cores):
    return [1, cores] if cores > 1 else [1]


def _link(alone, with_worker, crowd, model, measured, cores):
    """alone: Steps in process, with_worker: with one worker process, crowd: with as many as cores (None: there is one core) -> content
    of a link. An exchange is what the steps with one worker show, less what packing and combining take in process; a line over its
    bytes. Crowded: what is typically beyond that, and beyond the computation."""
    layers = sum(layer.count for layer in model.layers if layer.experts)
    layer = next(layer for layer in model.layers if layer.experts)
    here = {steps.tokens: sum(steps.stages.get(name, 0.0) for name in ("dispatch", "combine")) for steps in alone if steps.decodes == steps.tokens}
    system = System(model, measured.device(1), lambda n: [(measured.device(1, min(n, cores)), n)], lambda _: costs.Link("none", 0.0, 1e30))

    def moved(workers, tokens):
        return sum(system._bytes(layer, Split(1, workers), tokens)[:2])

    latency, per_byte = _line([(moved(1, steps.tokens), max(0.0, steps.exchange - here.get(steps.tokens, 0.0)) / layers)
                               for steps in with_worker if steps.decodes == steps.tokens])
    crowded = []
    for steps in (steps for steps in crowd or [] if steps.decodes == steps.tokens):
        expected = system.time(Split(1, cores), Rows(steps.tokens, INPUT_LEN)).parts["experts"] / layers + latency + per_byte * moved(cores, steps.tokens)
        seen = sum(steps.stages.get(name, 0.0) for name in trace_file.EXCHANGE) - here.get(steps.tokens, 0.0)
        crowded.append(max(0.0, seen / layers - expected))
    return {"latency_us": round(1e6 * latency, 3), "gb_per_second": round(1e-9 / per_byte, 4),
            "crowded_us": round(1e6 * statistics.median(crowded), 3) if crowded else 0}


def _line(points):
    """Least squares of seconds over bytes, neither latency nor slope below nothing"""
    mean_x, mean_y = (statistics.mean(values) for values in zip(*points))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = max(sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, 1e-13)
    return max(0.0, mean_y - slope * mean_x), slope


def measure(program, paths, options, passes):
    """options: models.numerics() -> content of a costs file after each pass, better each time"""
    cores = machine.usable_cores()
    engines = [Engine(program, path, options) for path in paths]
    weights = {engine.model.weights for engine in engines}
    if len(weights) > 1 or len({engine.model.kv_cache_dtype for engine in engines}) > 1:
        raise PlanError(f"the models are stored as {' and '.join(sorted(weights))}: --dtype makes them alike")
    smallest = min(engines, key=lambda engine: engine.model.parameters)
    if not smallest.model.most_experts:
        raise PlanError(f"{smallest.path}: has no experts")
    ceilings, runs = {}, {}
    for number in range(passes):
        for engine in engines:
            say(f"pass {number + 1} of {passes}: {engine.model.name}, in process")
            for threads in _threads(cores):
                found, runs[engine, threads] = engine.run(threads, BATCH_SIZES, INPUT_LEN, OUTPUT_LEN)
                best = ceilings.setdefault(threads, {"threads": threads})
                for name in ("memory_gb_per_second", "compute_gflop_per_second"):
                    best[name] = max(best.get(name, 0.0), round(found[name], 3))
            _, runs[engine, "long"] = engine.run(1, LONG_BATCH_SIZES, LONG_INPUT_LEN, OUTPUT_LEN)
        for transport in TRANSPORTS:
            say(f"pass {number + 1} of {passes}: {smallest.model.name}, workers by {transport}")
            for workers in sorted({1, cores}):
                crowd = workers > 1  # they wait for cores: what typically happens counts
                _, runs[transport, workers] = smallest.run(1, BATCH_SIZES, INPUT_LEN, OUTPUT_LEN, workers, transport, TYPICAL if crowd else UNDISTURBED)
        yield _content(engines, smallest, ceilings, runs, cores)


def _content(engines, smallest, ceilings, runs, cores):
    profiles = []
    for engine in engines:
        for threads in _threads(cores):
            most = ceilings[threads]
            curves = Curves(engine.model, Device("", 0.0, most["memory_gb_per_second"] * 1e9, most["compute_gflop_per_second"] * 1e9))
            curves.add(runs[engine, threads], Curves(engine.model, curves.device).add_keys(runs[engine, 1], runs[engine, "long"]))
            profiles.append({"model": engine.model.name, "threads": threads,
                             "working_set_bytes": memory.coordinator_bytes(engine.model, Split(), Workload(INPUT_LEN, OUTPUT_LEN), 1),
                             "parts": curves.points})
    content = {"form": costs.FORM, "weights": smallest.model.weights, "kv_cache_dtype": smallest.model.kv_cache_dtype, "cores": cores,
               "memory_gb": machine.machine()["memory_gb"],
               "ceilings": list(ceilings.values()), "profiles": profiles, "links": {}}
    measured = costs.of_content(content)
    for transport in TRANSPORTS:
        content["links"][transport] = _link(runs[smallest, 1], runs[transport, 1], runs[transport, cores] if cores > 1 else None, smallest.model,
                                            measured, cores)
    return content


def check_place(path):
    """What is measured for minutes must have a place to go to."""
    if not path.parent.is_dir():
        raise PlanError(f"--calibrate {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise PlanError(f"--calibrate {path}: is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PlanError(f"--calibrate {path}: cannot be written")


def main(program, folder_of_programs, options, arguments):
    check_place(Path(options.calibrate))
    data = Path(__file__).resolve().parent.parent
    paths = [options.model] if options.model else [data / "demo-model" / "config.json", data / "bench" / "configs" / "qwen3moe-703m.json"]
    load = round(os.getloadavg()[0], 2)
    about = {"command": shlex.join(["expertmesh", "plan", *arguments]), "machine": {**machine.machine(), "load_before": load},
             "programs": machine.programs(program, folder_of_programs)}
    for content in measure(program, paths, models.numerics(options.dtype, options.quantization, options.kv_cache_dtype), options.passes):
        costs.write(options.calibrate, {**content, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **about})
    if load > 0.25 * content["cores"]:
        say(f"{load} processes wanted {content['cores']} cores in the minute before: the machine was busy, do not trust these costs")
    say(f"costs are in {options.calibrate}")
    return 0
