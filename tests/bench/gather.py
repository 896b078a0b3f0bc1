#!/usr/bin/env python3
"""What coordinators gain by workers that gather their rows (`worker --gather-us`): `gather.py MODEL` with a folder, or a
config.json that gets dummy weights. Starts `serve --coordinators` for each number of streams and each wait, in turn, round
after round; as many clients at each coordinator; prints a table. EXPERTMESH says which program."""
import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EXPERTMESH = os.environ.get("EXPERTMESH", "expertmesh")
PORT = re.compile(r"coordinator \d+: clients by (\S+),")
SERVED = re.compile(r"served (\d+) requests in (\d+) batches, (\d+) rows in (\d+) groups")
WAITED = re.compile(r"(\d+) waits for other coordinators, of which (\d+) met one; (\d+) us")


@contextlib.contextmanager
def cluster(options, wait, log):
    """-> a URL for each coordinator"""
    process = subprocess.Popen(
        [EXPERTMESH, "serve", options.model, *options.dummy, "--port", "0", "--no-prefix-cache", "--max-num-seqs", str(max(options.streams)),
         "--max-model-len", str(options.input_len + options.output_len), "--coordinators", str(options.coordinators), "--workers",
         str(options.workers), "--worker-threads", str(options.worker_threads), "--threads", str(options.threads), "--gather-us", str(wait),
         "--transport", "auto", "--heartbeat-timeout-ms", "10000"],
        stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True)
    try:
        if not process.stdout.readline().startswith("ExpertMesh is ready"):
            raise SystemExit(f"it did not start:\n{Path(log.name).read_text()[-2000:]}")
        yield [f"http://{address}" for address in PORT.findall(Path(log.name).read_text())]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def clients(options, url, streams, seed):
    """-> figures of `expertmesh bench serve`"""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([EXPERTMESH, "bench", "serve", "--base-url", url, "--num-prompts", str(streams * options.requests), "--max-concurrency",
                        str(streams), "--input-len", str(options.input_len), "--output-len", str(options.output_len), "--ignore-eos",
                        "--vocab", str(options.vocabulary), "--seed", str(seed), "--json", file.name],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def worker_seconds(url):
    """-> processor time of all workers so far"""
    with urllib.request.urlopen(f"{url}/v1/cluster", timeout=60) as answer:
        pids = [worker["pid"] for worker in json.loads(answer.read())["workers"]]
    ticks = sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) for pid in pids)
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(options, streams, wait):
    with tempfile.NamedTemporaryFile("w+") as log:
        with cluster(options, wait, log) as urls, ThreadPoolExecutor(len(urls)) as pool:
            before = worker_seconds(urls[0])
            figures = list(pool.map(lambda k: clients(options, urls[k], streams, k), range(len(urls))))
            seconds = worker_seconds(urls[0]) - before
        text = Path(log.name).read_text()
    if " is dead: " in text:
        raise SystemExit(f"a worker died:\n{text[-2000:]}")
    # Each worker says it at the end of each coordinator, for all: the last is the whole.
    last = {}
    for line in text.splitlines():
        for pattern in (SERVED, WAITED):
            found = pattern.search(line)
            if found:
                last[line.partition("]")[0] if options.workers > 1 else "", pattern] = list(map(int, found.groups()))
    total = {pattern: [sum(values) for values in zip(*(v for (_, p), v in last.items() if p is pattern))] for pattern in (SERVED, WAITED)}
    requests, batches, rows, groups = total[SERVED]
    waits, meetings, waited = total[WAITED] or (0, 0, 0)
    return {"tokens_per_second": sum(f["output_throughput"] for f in figures),
            "itl_ms": statistics.mean(f["median_itl_ms"] for f in figures), "itl_p99_ms": max(f["p99_itl_ms"] for f in figures),
            "worker_ms": 1e3 * seconds / sum(f["total_output_tokens"] for f in figures),
            "rows_per_group": rows / groups, "requests_per_batch": requests / batches,
            "waits": waits / requests, "met": meetings / waits if waits else 0, "wait_us": waited / waits if waits else 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16], help="of each coordinator")
    parser.add_argument("--gather-us", type=lambda text: [int(n) for n in text.split(",")], default=[0, 500, 2000, 10000])
    for name, default in (("coordinators", 2), ("workers", 1), ("worker-threads", 1), ("threads", 1), ("rounds", 1), ("requests", 2),
                          ("input-len", 32), ("output-len", 64), ("vocabulary", 32768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not Path(options.model).is_dir():
            (Path(folder) / "config.json").symlink_to(Path(options.model).resolve())
            options.model = folder
        options.dummy = [] if list(Path(options.model).glob("*.safetensors")) else ["--load-format", "dummy"]
        print("| streams | gather us | tok/s | ratio | itl ms | p99 | workers' ms a token | rows a group | requests a batch | waits a request | met | us a wait |\n" + "|---" * 12 + "|")
        for streams in options.streams:
            found = {wait: [] for wait in options.gather_us}
            for _ in range(options.rounds):
                for wait in options.gather_us:
                    found[wait].append(measure(options, streams, wait))
            for wait, results in found.items():
                f = {name: statistics.median(r[name] for r in results) for name in results[0]}
                ratio = statistics.median(r["tokens_per_second"] / base["tokens_per_second"]
                                          for r, base in zip(results, found[options.gather_us[0]]))
                print(f"| {streams} | {wait} | {f['tokens_per_second']:.1f} | {ratio:.2f} | {f['itl_ms']:.1f} | {f['itl_p99_ms']:.0f} | {f['worker_ms']:.2f} | "
                      f"{f['rows_per_group']:.2f} | {f['requests_per_batch']:.2f} | {f['waits']:.2f} | {f['met']:.0%} | {f['wait_us']:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
