#!/usr/bin/env python3
"""`expertmesh serve MODEL --coordinators M`, and `serve --cluster FILE` where the file has `coordinators`: a name server, M
coordinators on loopback ports of their own, the workers of this host, which join all of them, and the front where clients
come. All are children that end when this process does; who dies is started again."""
import argparse
import json
import os
import queue
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from up import REJOIN_SECONDS, CommandError, exit_code_of, start

STOP_SECONDS = 45  # longer than a coordinator lets requests end
PAUSES = (0.2, 1, 5)  # before a child is started again: after its first death, its second …
LASTED_SECONDS = 30  # who lived as long has died for the first time again
POLLS = 16  # connections of a coordinator beside those of clients
READY = re.compile(r"ExpertMesh is ready at (http://\S+:(\d+))\s*")
LOOPBACK = "127.0.0.1"

# What a cluster file says, and what the file made here says in its place.
OF_WORKERS = ("workers", "worker_threads", "worker_device", "worker_capacity", "gather_us")
OF_COORDINATORS = ("device", "gpu_memory_utilization")
OF_JOINING = ("interface", "control_port", "secret_file", "remote_workers", "name_server")
OF_FRONT = ("max_connections", "max_body_size", "http_threads", "api_key_file", "allowed_origin")  # of the coordinators, too

# Fields of the cluster file that is made here: where what options say stands.
FIELDS = {"coordinators": "coordinators", "workers[0].count": "workers", "workers[0].threads": "worker_threads", "workers[0].devices": "worker_device",
          "workers[0].capacity": "worker_capacity", "workers[0].gather_us": "gather_us"}


def say(text):
    print(f"expertmesh serve: {text}", file=sys.stderr, flush=True)


def option(name):
    return "--" + name.replace("_", "-")


# ---- the command line

def parse(arguments, folder, coordinator_program):
    """-> (options that this program has to know, the others)"""
    parser = argparse.ArgumentParser(prog="expertmesh serve", allow_abbrev=False, add_help=False)
    for name in ("coordinators", "cluster", "host", "port", "threads", "trace", "packed_cache", "bind", "config", "row_transport", "static_exchange_bytes", *OF_WORKERS, *OF_COORDINATORS, *OF_JOINING, *OF_FRONT):
        parser.add_argument(option(name))
    options, others = parser.parse_known_args(arguments)
    if options.config:
        check_config(options.config, coordinator_program)
        said, rest = split_config(options.config, vars(options))
        options = parser.parse_args(said, namespace=None)
        of_command_line, others = parser.parse_known_args(arguments)
        for name, value in vars(of_command_line).items():
            if value is not None:
                setattr(options, name, value)
        file = folder / "options"
        file.write_text(rest)
        others += ["--config", str(file)]
    if not re.fullmatch(r"\d{1,5}", options.port or "8000"):
        raise CommandError(f"--port {options.port}: expected a port")
    for name in ("coordinators", *OF_WORKERS, *OF_COORDINATORS, *OF_JOINING) if options.cluster else OF_JOINING:
        if getattr(options, name) is not None:
            raise CommandError(f"--cluster says what {option(name)} says" if options.cluster else
                               f"{option(name)}: with --coordinators that takes a cluster file (--cluster)")
    if options.row_transport == "nccl" or (options.static_exchange_bytes or "0") != "0":
        raise CommandError("--row-transport nccl and --static-exchange-bytes: rows go by NCCL to workers of one coordinator only")
    if options.row_transport:
        others += ["--row-transport", options.row_transport]
    return options, others


def check_config(path, coordinator_program):
    """What the coordinators get is made from it: only here is it called what the user calls it."""
    done = subprocess.run([coordinator_program, "serve", "--config", path, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CommandError(done.stderr.strip().partition("\n")[0].removeprefix("expertmesh: "))


def split_config(path, known):
    """-> (what of a --config file is for this program, as arguments; the other lines)"""
    said, rest = [], []
    for line in Path(path).read_text().splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and name.replace("-", "_") in known and not name.startswith("#"):
            said.append(f"--{name}={value}")
        else:
            rest.append(line)
    return said, "\n".join(rest) + "\n"


def number(text, name):
    if not re.fullmatch(r"\d{1,9}", text):
        raise CommandError(f"{option(name)}: expected a number, got '{text}'")
    return int(text)


# ---- the cluster

def free_ports(count):
    """-> the first of so many free ports in a row, where there are such below those that the system gives to outgoing
    connections: whoever is to listen at them does so only later, and one of those could have taken them until then"""
    lowest, given_out = 10000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            first = probe.getsockname()[1]
        if lowest + count < given_out:
            first = random.randrange(lowest, given_out - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            continue
        return first
    raise CommandError(f"there are no {count} free ports in a row")


def write_cluster(options, folder):
    """-> a cluster file for workers of this host alone"""
    if not options.workers or number(options.workers, "workers") == 0:
        raise CommandError("--coordinators: they share workers: --workers N says how many")
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32))
    count = number(options.coordinators, "coordinators")
    workers = {"host": "localhost", "count": int(options.workers), "devices": [options.worker_device or "cpu"]}
    if options.worker_threads:
        workers["threads"] = number(options.worker_threads, "worker_threads")
    if options.gather_us is not None:
        workers["gather_us"] = number(options.gather_us, "gather_us")
    if options.worker_capacity:
        try:
            workers["capacity"] = float(options.worker_capacity)
        except ValueError:
            raise CommandError(f"--worker-capacity: expected gigabytes a second, got '{options.worker_capacity}'") from None
    file = folder / "cluster.json"
    file.write_text(json.dumps({
        "interface": "lo", "control_port": free_ports(count), "secret_file": str(secret), "coordinators": count,
        "coordinator": {"host": "localhost", "address": LOOPBACK}, "workers": [workers]}, indent=1))
    return file


def in_options(refusal, file):
    """What is wrong with a file that is made here, by the options' names"""
    for field, name in FIELDS.items():
        refusal = refusal.replace(f"{file}.{field}: ", f"{option(name)}: ")
    return refusal


def read_cluster(file, worker_program, from_options):
    """-> the file's content, of which the program has judged every field. from_options: it was made here"""
    try:
        cluster = json.loads(Path(file).read_text())
        host = cluster["workers"][0]["host"]
    except (ValueError, KeyError, TypeError, IndexError):
        host = "localhost"  # the program says what is wrong
    done = subprocess.run([worker_program, "--cluster", str(file), "--host", str(host)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        refusal = done.stderr.strip().splitlines()[-1].partition(": ")[2] or done.stderr
        raise CommandError(in_options(refusal, file) if from_options else refusal)
    return cluster


# ---- processes

class Child:
    """A process that is started again when it dies. What happens to it comes as (child, what) into `events`: a line that
    says it is ready, its exit code, or None when it is time to start it again."""

    def __init__(self, name, command, events, prefix=""):
        self.name = name
        self.command = command
        self.prefix = prefix  # of its log; empty: it has one of its own
        self.process = None
        self._events = events
        self._deaths = 0

    def start(self):
        self._born = time.monotonic()
        self.process = start(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT if self.prefix else None)
        # Not one thread: what it started may hold its output a little longer.
        threading.Thread(target=self._follow, args=(self.process,), daemon=True).start()
        threading.Thread(target=self._wait, args=(self.process,), daemon=True).start()

    def _follow(self, process):
        for line in process.stdout:
            ready = READY.fullmatch(line)
            if ready:
                self._events.put((self, ready))
            else:
                print(f"{self.prefix}{line}", end="", file=sys.stderr, flush=True)

    def _wait(self, process):
        self._events.put((self, process.wait()))

    def set_option(self, name, value):
        self.command[self.command.index(name) + 1] = value

    def start_later(self):
        lasted = time.monotonic() - self._born > LASTED_SECONDS
        self._deaths = 1 if lasted else self._deaths + 1
        pause = PAUSES[min(self._deaths, len(PAUSES)) - 1]
        timer = threading.Timer(pause, self._events.put, [(self, None)])  # the main thread starts it, whose death it is to notice
        timer.daemon = True
        timer.start()

    def ask_to_end(self):
        if self.process:
            self.process.terminate()

    def end(self):
        """-> whether it ended as it was asked to"""
        if not self.process:
            return True
        try:
            return self.process.wait(STOP_SECONDS) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not end within {STOP_SECONDS} s")
            os.killpg(self.process.pid, signal.SIGKILL)  # what it started, too
            return False


class Group:
    """All of them, in the order in which they end."""

    def __init__(self, front, coordinators, workers, names, events):
        self._front = front
        self._coordinators = coordinators
        self._workers = workers
        self._names = names
        self._all = [front, *coordinators, *workers, names]
        self._events = events
        self._not_ready = {front, *coordinators}
        self._url = None

    def run(self):
        """Until it is asked to end, or cannot go on -> exit code"""
        for child in reversed(self._all):
            child.start()
        status = self._follow()
        asked_ends = [self._end([self._front]), self._end(self._coordinators)]
        self._end(self._workers)
        self._end([self._names])
        return status if status or all(asked_ends) else 1

    def _follow(self):
        while True:
            child, what = self._events.get()
            if child is None:
                return 0
            if what is None:
                child.start()
            elif isinstance(what, int):
                code = self._on_end(child, what)
                if code:
                    return code
            else:
                self._on_ready(child, what)

    def _on_ready(self, child, line):
        if child is self._front and self._url is None:
            self._url = line[1]
            child.set_option("--port", line[2])  # of the next one as well
        if child in self._coordinators:
            # In its place another may serve at once: it reads experts from its disk until workers have come back.
            child.set_option("--remote-workers", "0")
        before = bool(self._not_ready)
        self._not_ready.discard(child)
        if before and not self._not_ready:
            print(f"ExpertMesh is ready at {self._url}", flush=True)

    def _on_end(self, child, code):
        """-> exit code of all, 0: they go on"""
        if self._not_ready or child is self._names:
            say(f"{child.name} ended with exit code {code}")
            return code if code > 0 and child is not self._names else 1
        if code == 0 and child in self._workers:
            say("the workers of this host have left")
            return 0
        say(f"{child.name} ended with exit code {code}, and is started again")
        child.start_later()
        return 0

    @staticmethod
    def _end(children):
        for child in children:
            child.ask_to_end()
        return all([child.end() for child in children])


def children(program, cluster, file, options, others, folder, events):
    """-> Group"""
    count, host = cluster["coordinators"], cluster["coordinator"]["host"]
    names = str(folder / "names")
    here = any(worker["host"] == host for worker in cluster["workers"])
    num_workers = sum(worker.get("count", 1) * len(worker.get("devices", ["cpu"])) for worker in cluster["workers"])
    ports = free_ports(count)
    connections = number(options.max_connections or "1024", "max_connections")
    common = [*others, "--interface", cluster["interface"], "--secret-file", cluster["secret_file"], "--name-server", names,
              "--remote-workers", str(num_workers), "--host", LOOPBACK, "--max-connections", str(connections + POLLS),
              "--threads", options.threads or str(max(1, len(os.sched_getaffinity(0)) // count))]
    said = {"device": cluster["coordinator"].get("device", options.device),
            "gpu_memory_utilization": cluster["coordinator"].get("gpu_memory_utilization", options.gpu_memory_utilization),
            "worker_device": cluster["workers"][0].get("devices", ["cpu"])[0],
            "packed_cache": options.packed_cache,
            "bind": options.bind,
            **{name: getattr(options, name) for name in OF_FRONT if name != "max_connections"}}
    for name, value in said.items():
        if value is not None:
            common += [option(name), str(value)]
    coordinators = []
    for k in range(count):
        own = ["--control-port", str(cluster.get("control_port", 7070) + k), "--port", str(ports + k)]
        if options.trace:
            own += ["--trace", str(Path(options.trace).with_stem(f"{Path(options.trace).stem}.{k}"))]
        coordinators.append(Child(f"coordinator {k}", [program, "serve", *common, *own], events, f"coordinator {k}: "))
        say(f"coordinator {k}: clients by {LOOPBACK}:{ports + k}, workers by {cluster['coordinator']['address']}:{own[1]}")
    front = [program, "front", "--backends", ",".join(f"{LOOPBACK}:{ports + k}" for k in range(count)), "--host", options.host or LOOPBACK,
             "--port", options.port or "8000"]
    for name in OF_FRONT:
        if getattr(options, name) is not None:
            front += [option(name), getattr(options, name)]
    workers = [program, "worker", "--cluster", str(file), "--host", host, "--rejoin-for", str(REJOIN_SECONDS), "--shared-cores"]
    if options.bind:
        workers += ["--bind", options.bind]
    if options.packed_cache:
        workers += ["--packed-cache", str(Path(options.packed_cache).absolute())]
    say(f"{num_workers} workers for each of {count} coordinators" + ("" if here else ", none of them on this host"))
    return Group(Child("the front", front, events), coordinators, [Child("the workers of this host", workers, events)] if here else [],
                 Child("the name server", [program, "name-server", names, "--interface", cluster["interface"]], events), events)


def main(program, bin_folder, arguments):
    events = queue.SimpleQueue()
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signal_number, lambda *_: events.put((None, None)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))  # the launcher blocked them
    with tempfile.TemporaryDirectory(prefix="expertmesh-serve-") as folder:
        folder = Path(folder)
        options, others = parse(arguments, folder, f"{bin_folder}/expertmesh-coordinator")
        file = options.cluster or write_cluster(options, folder)
        cluster = read_cluster(file, f"{bin_folder}/expertmesh-worker", from_options=not options.cluster)
        group = children(program, cluster, file, options, others, folder, events)
        return group.run() if events.empty() else 0  # asked to end before anything was started


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main(*sys.argv[1:3], sys.argv[3:]), say))
