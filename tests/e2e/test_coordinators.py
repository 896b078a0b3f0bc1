"""Several coordinators that share three workers: each has its own sequences, the experts are held once, and nobody's death
is anybody else's business."""
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, Server, free_ports, has_failed, is_alive, wait_until
from test_cluster import NUM_EXPERTS

NUM_WORKERS = 3
# Threads: there are five processes that compute. Heartbeats: a death is what the test kills, which is noticed at once.
PATIENT = ("--threads", 1, "--heartbeat-timeout-ms", 5000)
JOBS = [{"prompt": prompt, "max_tokens": 160, "ignore_eos": True, **sampling}
        for prompt in ("Once upon a time there was", "The fox said to the crow")
        for sampling in ({"temperature": 0}, {"temperature": 0.9, "seed": 11})]
LONG = {**JOBS[1], "max_tokens": 450}


def tokens_of(events):
    """-> the tokens of a stream's remaining events"""
    return [token for event in events for choice in event["choices"] for token in choice["token_ids"]]


def stream(server, job):
    """-> its tokens"""
    with server.stream("/v1/completions", {**job, "return_token_ids": True}) as events:
        return tokens_of(events)


def workers_of(server):
    return server.get("/v1/cluster")[1]["workers"]


def serving(server):
    return [worker for worker in workers_of(server) if worker["state"] == "serving"]


class CoordinatorsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Server(DEMO_MODEL, "--dtype", "float32", "--threads", 1) as server:  # alone, without workers
            cls.expected = [stream(server, job) for job in JOBS]
            cls.long = stream(server, LONG)

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.secret = self.folder / "secret"
        self.secret.write_text(secrets.token_hex(16))
        self.secret.chmod(0o600)
        self.names = self.folder / "names"
        self.ports = [free_ports(1), free_ports(1)]
        self.launchers = []
        # Of both: so that neither needs the other.
        server = subprocess.Popen([EXPERTMESH, "name-server", str(self.names), "--interface", "lo"], stdin=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)

    def tearDown(self):
        for launcher in self.launchers:
            launcher.terminate()
        codes = [launcher.wait(60) for launcher in self.launchers]
        if has_failed(self) or any(codes):
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
        self.assertFalse(any(codes), codes)

    def start_workers(self, *options, count=NUM_WORKERS):
        join = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        for number in range(count):
            with open(self.folder / f"worker{number}.log", "wb") as log:
                self.launchers.append(subprocess.Popen(
                    [EXPERTMESH, "worker", "--join", join, "--secret-file", str(self.secret), "--threads", "1", "--shared-cores",
                     "--capacity", "1", "--rejoin-for", "60", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def log(self, worker):
        return (self.folder / f"worker{worker}.log").read_text(errors="replace")

    def serve(self, number, *options):
        return Server(DEMO_MODEL, "--dtype", "float32", "--interface", "lo", "--control-port", self.ports[number], "--secret-file",
                      self.secret, "--name-server", self.names, "--remote-workers", NUM_WORKERS, *PATIENT, *options)

    @contextlib.contextmanager
    def two_coordinators(self, *options, of_workers=()):
        """-> both, when the three workers serve both"""
        self.start_workers(*of_workers)
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self.serve, number, *options) for number in (0, 1)]
            with starts[0].result() as first, starts[1].result() as second:
                wait_until(lambda: {w["pid"] for w in serving(first)} == {w["pid"] for w in serving(second)}
                           and len(serving(first)) == NUM_WORKERS, 60, "the same three serve both")
                yield first, second

    def check(self, servers):
        """All streams of all servers at the same time."""
        with ThreadPoolExecutor(len(servers) * len(JOBS)) as pool:
            answers = [[pool.submit(stream, server, job) for job in JOBS] for server in servers]
            for of_server in answers:
                self.assertEqual([answer.result() for answer in of_server], self.expected)

    def check_books(self, server):
        metrics = server.metrics()
        self.assertEqual(metrics["expertmesh:requests_failed_total"], 0)
        self.assertEqual(metrics["expertmesh:requests_accepted_total"], metrics["expertmesh:requests_finished_total"])

    def test_by_shared_memory(self):
        self.life_of_a_cluster("shm", "--transport", "auto")

    def test_by_mpi(self):
        self.life_of_a_cluster("mpi", "--transport", "mpi")

    def test_workers_that_gather(self):
        with self.two_coordinators("--transport", "auto", of_workers=("--gather-us", "20000")) as (first, second):
            self.tokens_are_those_of_one_alone(first, second, "shm")
            self.one_is_stopped(first, second)
            for server in (first, second):
                self.check_books(server)
                self.assertEqual(server.metric("worker_deaths_total"), 0)
        for launcher in self.launchers:
            launcher.wait(60)
        for worker in range(NUM_WORKERS):
            self.assertIn("waits for those of other coordinators for at most 20000 us", self.log(worker))
            self.assertRegex(self.log(worker), r"[1-9]\d* waits for other coordinators, of which [1-9]\d* met one")

    def life_of_a_cluster(self, transport, *options):
        """One cluster through all of it: what one thing leaves behind, the next one meets."""
        with self.two_coordinators(*options) as (first, second):
            self.tokens_are_those_of_one_alone(first, second, transport)
            self.one_is_stopped(first, second)
            workers = {worker["id"]: (worker["pid"], worker["incarnation"]) for worker in serving(second)}
            # The next one at its address gets the same workers, which the other goes on using.
            for end in (self.kill, self.ask_to_end):
                with second.stream("/v1/completions", {**LONG, "return_token_ids": True}) as events:
                    tokens = tokens_of([next(events)])
                    end(first)
                    self.assertEqual(tokens + tokens_of(events), self.long)
                self.check([second])
                with second.stream("/v1/completions", {**LONG, "return_token_ids": True}) as events:
                    first = self.enterContext(self.serve(0, *options))
                    self.assertEqual({worker["pid"] for worker in serving(first)}, {pid for pid, _ in workers.values()})
                    self.assertEqual(tokens_of(events), self.long)
                self.check([first, second])
                self.assertEqual(second.metric("worker_deaths_total"), 0)
                self.assertEqual({worker["id"]: (worker["pid"], worker["incarnation"]) for worker in serving(second)}, workers)
            self.a_worker_is_killed(first, second)
            for launcher in self.launchers:
                launcher.terminate()
            self.assertEqual([launcher.wait(60) for launcher in self.launchers], [0] * NUM_WORKERS)
            self.launchers.clear()

    def tokens_are_those_of_one_alone(self, first, second, transport):
        for server in (first, second):
            self.assertEqual({w["transport"] for w in serving(server)}, {transport})
            self.assertEqual(sum(worker["experts"] for worker in serving(server)), NUM_EXPERTS)
        self.check([first, second])
        for server in (first, second):
            self.check_books(server)
            self.assertEqual(server.metric("worker_deaths_total"), 0)

    def one_is_stopped(self, first, second):
        with first.stream("/v1/completions", {**LONG, "return_token_ids": True}) as others:
            tokens = tokens_of([next(others)])
            os.kill(first.pid, signal.SIGSTOP)
            try:
                self.check([second])
                self.assertEqual(second.metric("worker_deaths_total"), 0)
                self.assertEqual(len(serving(second)), NUM_WORKERS)
            finally:
                os.kill(first.pid, signal.SIGCONT)
            self.assertEqual(tokens + tokens_of(others), self.long)
        self.check([first, second])

    def kill(self, coordinator):
        with coordinator.stream("/v1/completions", LONG) as events:  # it leaves a call in the workers' hands
            next(events)
            os.killpg(coordinator.pid, signal.SIGKILL)
            coordinator.process.wait()
        coordinator.process.returncode = 0  # it was meant to

    def ask_to_end(self, coordinator):
        coordinator.process.terminate()
        self.assertEqual(coordinator.process.wait(60), 0)

    def a_worker_is_killed(self, *servers):
        victim = serving(servers[0])[0]["pid"]
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(server.stream("/v1/completions", {**LONG, "return_token_ids": True}))
                       for server in servers]
            tokens = [tokens_of([next(events)]) for events in streams]
            os.kill(victim, signal.SIGKILL)
            with ThreadPoolExecutor(2) as pool:
                rest = list(pool.map(tokens_of, streams))
            self.assertEqual([first + last for first, last in zip(tokens, rest)], [self.long, self.long])
        for server in servers:
            self.assertEqual(server.metric("worker_deaths_total"), 1)
            wait_until(lambda server=server: len(serving(server)) == NUM_WORKERS, 60, "it is back")
        self.assertFalse(is_alive(victim))
        self.check(servers)
        for server in servers:
            self.check_books(server)

    def test_coordinators_that_do_not_fit_together(self):
        self.start_workers(count=1)
        with Server(DEMO_MODEL, "--dtype", "float32", "--interface", "lo", "--control-port", self.ports[0], "--secret-file", self.secret,
                    "--name-server", self.names, "--remote-workers", 1, *PATIENT) as first, \
                Server(DEMO_MODEL, "--dtype", "bfloat16", "--interface", "lo", "--control-port", self.ports[1], "--secret-file",
                       self.secret, "--name-server", self.names) as second:
            text = "not what the worker's other coordinators serve: weights in bfloat16"
            wait_until(lambda: text in second.log(), 60, "the second hears why it gets none")
            self.assertIn(text, self.log(0))
            self.assertEqual(len(serving(first)), 1)
            self.check([first])


if __name__ == "__main__":
    unittest.main()
