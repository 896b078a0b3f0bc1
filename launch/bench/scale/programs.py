"""Runs the programs that measure, a child process at a time."""
import contextlib
import json
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import engine_trace
import hosts
import machine
from points import NAMESPACES

READY_LINE = "ExpertMesh is ready at "
STOP_SECONDS = 40
WARM_UP_TOKENS = 4


class PointFailed(Exception):
    """Why there are no figures."""


def _started(command, **options):
    """A child that is asked to end when this process dies, and that Ctrl-C does not reach."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *map(str, command)], start_new_session=True, text=True,
                            errors="replace", stdin=subprocess.DEVNULL, **options)


def _last_words(log):
    """What a program says of its failure is the last line that is its own."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith("expertmesh: ")), lines[-1] if lines else "no word").removeprefix("expertmesh: ")


def _end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(command, seconds):
    with tempfile.TemporaryFile() as log:
        process = _started(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PointFailed(f"not done after {seconds} s: {shlex.join(map(str, command))}") from None
        finally:
            _end(process)
        if code:
            raise PointFailed(_last_words(log))


def _setup_options(setup, dtype):
    options = ["--threads", setup.threads, "--dtype", dtype]
    if setup.workers and setup.transport != NAMESPACES:
        options += ["--workers", setup.workers, "--worker-threads", setup.worker_threads, "--transport", setup.transport]
    return options


# ---- an engine

def run_engine(program, model, points, seconds):
    """points: of one setup and prompt length, in the order of their batch sizes -> what was measured of each"""
    first = points[0]
    with tempfile.TemporaryDirectory(prefix="expertmesh-scale-") as folder:
        figures_file, trace_file = Path(folder) / "figures.json", Path(folder) / "trace.json"
        run([program, "bench", "engine", model, "--batch-sizes", ",".join(str(point.batch) for point in points),
              "--input-len", first.input_len, "--output-len", first.output_len, "--seed", first.seed,
              *_setup_options(first.setup, first.dtype), "--trace", trace_file, "--json", figures_file], seconds)
        figures = json.loads(figures_file.read_text())
        steps = engine_trace.read(trace_file, len(points), first.output_len) if trace_file.exists() else None
    return [_engine_figures(figures, result, steps[i] if steps else None) for i, result in enumerate(figures["results"])]


def _engine_figures(figures, result, steps):
    decode, prefill, ceilings = result["decode"], result["prefill"], figures["ceilings"]
    floor_ms = decode["share_of_floor"] * decode["median_step_ms"]
    return {"tokens_per_second": decode["tokens_per_second"],
            "step_ms": decode["mean_step_ms"],
            "stage_ms": decode["stage_ms"],
            "exchange_share": steps["exchange_share"] if steps else None,
            "latency_ms": {"step": steps["step_ms"] if steps else {"p50": decode["median_step_ms"]}},
            "bytes_per_step": decode["weight_bytes_per_step"] + decode["kv_bytes_per_step"],
            "experts_hit_per_layer": decode["experts_hit_per_layer"],
            "floor_ms": floor_ms,
            "prefill_tokens_per_second": prefill["tokens_per_second"],
            "prefill_ceiling_tokens_per_second": prefill["tokens_per_second"] / prefill["share_of_compute_ceiling"],
            "machine_ceilings": ceilings}


# ---- a server

def _get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


@contextlib.contextmanager
def server(program, model, points, seconds):
    """A server for points of one setup -> its URL. A model without weights beside it gets dummy ones."""
    first, model = points[0], Path(model)
    with contextlib.ExitStack() as stack:
        if not model.is_dir():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="expertmesh-scale-")))
            (folder / "config.json").symlink_to(model.resolve())
            model = folder
        dummy = [] if list(model.glob("*.safetensors")) else ["--load-format", "dummy"]
        log = stack.enter_context(tempfile.TemporaryFile())
        workers = _workers_of_other_hosts(program, first.setup, log, stack) if first.setup.transport == NAMESPACES else []
        process = _started([program, "serve", model, "--port", 0, "--no-prefix-cache", *dummy, *_setup_options(first.setup, first.dtype), *workers,
                            "--max-num-seqs", max(point.batch for point in points),
                            "--max-model-len", max(point.input_len + point.output_len for point in points)],
                           stdout=subprocess.PIPE, stderr=log)
        stack.callback(process.stdout.close)
        stack.callback(_end, process)
        too_late = threading.Timer(seconds, process.kill)
        stack.callback(too_late.cancel)
        too_late.daemon = True
        too_late.start()
        line = process.stdout.readline()
        too_late.cancel()
        if not line.startswith(READY_LINE):
            process.wait()
            raise PointFailed(_last_words(log))
        url = line.removeprefix(READY_LINE).strip()
        _warm_up(url, first)
        yield url


def _workers_of_other_hosts(program, setup, log, stack):
    """They wait for their server -> what it is told of them"""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="expertmesh-scale-"))
    try:
        theirs = stack.enter_context(hosts.Hosts(setup.workers, folder))
    except hosts.NoHosts as error:
        raise PointFailed(str(error)) from None
    shared_cores = setup.threads + setup.workers * setup.worker_threads > machine.usable_cores()
    for command in theirs.worker_commands(program, setup.worker_threads, shared_cores):
        stack.callback(_end, _started(command, stdout=subprocess.DEVNULL, stderr=log))
    return theirs.server_options


def _warm_up(url, point):
    body = {"prompt": list(range(1, point.input_len + 1)), "max_tokens": min(WARM_UP_TOKENS, point.output_len), "temperature": 0}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.read()


def run_clients(program, url, point, vocabulary, seconds):
    """point.batch clients, each of which asks again when it has its answer -> what was measured"""
    before = _get(f"{url}/v1/activity")
    with tempfile.TemporaryDirectory(prefix="expertmesh-scale-") as folder:
        file = Path(folder) / "figures.json"
        run([program, "bench", "serve", "--base-url", url, "--num-prompts", point.requests, "--max-concurrency", point.batch,
              "--input-len", point.input_len, "--output-len", point.output_len, "--ignore-eos", "--vocab", vocabulary,
              "--seed", point.workload_seed, "--json", file], seconds)
        figures = json.loads(file.read_text())
    if figures["failed"]:
        raise PointFailed(f"{figures['failed']} of {point.requests} requests failed: {'; '.join(figures['errors'])}")
    return _serve_figures(figures, before, _after(url, before, point))


def _after(url, before, point):
    """The last answer is out a moment before its step is counted."""
    deadline = time.monotonic() + 5
    while True:
        now = _get(f"{url}/v1/activity")
        if now["requests"]["finished"] - before["requests"]["finished"] >= point.requests or time.monotonic() > deadline:
            return now
        time.sleep(0.01)


def _serve_figures(figures, before, after):
    steps = after["steps"]["count"] - before["steps"]["count"]
    seconds = after["steps"]["seconds"] - before["steps"]["seconds"]
    stages = {name: 1e3 * (after["stage_seconds"][name] - before["stage_seconds"][name]) / steps for name in after["stage_seconds"]}
    step_ms = 1e3 * seconds / steps
    return {"tokens_per_second": figures["output_throughput"],
            "requests_per_second": figures["request_throughput"],
            "step_ms": step_ms,
            "stage_ms": {**stages, "other": max(0, step_ms - sum(stages.values()))},
            "busy_share": min(1, seconds / figures["duration"]),
            "latency_ms": {name: {p: figures[f"{p}_{name}_ms"] for p in ("p50", "p95", "p99")} for name in ("ttft", "tpot", "itl", "e2el")}}
