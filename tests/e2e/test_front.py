"""`serve --coordinators 2`: two coordinators that share three workers behind one front, as its clients see them."""
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, Server, descendants, free_ports, has_failed, is_alive, wait_until
from test_coordinators import JOBS, LONG, NUM_WORKERS, PATIENT, stream, tokens_of

COORDINATORS = (0, 1)
PAGES = "http://pages.example"
TEXT = "Once upon a time there was a king who had three sons, and the youngest of them was called the simpleton. "
BAD_REQUESTS = (("GET", "/nowhere", None), ("POST", "/v1/completions", b"{"), ("POST", "/v1/completions", b'{"prompt": "x", "n": 0}'),
                ("GET", "/v1/completions", None), ("POST", "/v1/completions", b"x" * (8 << 20) + b"x"), ("GET", "/v1/models/other", None))


def plain(server, job):
    """-> its tokens"""
    return server.complete(**job, return_token_ids=True)["choices"][0]["token_ids"]


def refusals(server):
    return [server.request(*bad)[::2] for bad in BAD_REQUESTS]


def cluster_of(server, coordinator):
    return server.get(f"/v1/cluster?coordinator={coordinator}")[1]


def serving(server, coordinator):
    status, answer = server.get(f"/v1/cluster?coordinator={coordinator}")
    return [worker for worker in answer["workers"] if worker["state"] == "serving"] if status == 200 else []


def metric(server, coordinator, name):
    _, _, body = server.request("GET", f"/metrics?coordinator={coordinator}")
    return next(float(line.rsplit(" ", 1)[1]) for line in body.decode().splitlines() if line.startswith(f"expertmesh:{name} "))


def pids_below(server):
    return [server.pid, *descendants(server.pid)]


class FrontTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Server(DEMO_MODEL, "--dtype", "float32", "--threads", 1) as alone:  # without workers
            cls.expected = [stream(alone, job) for job in JOBS]
            cls.long = stream(alone, LONG)
            cls.refused = refusals(alone)
        cls.server = Server(DEMO_MODEL, "--dtype", "float32", "--coordinators", 2, "--workers", NUM_WORKERS, "--allowed-origin", PAGES, *PATIENT)
        cls.addClassCleanup(cls.server.close)
        wait_until(lambda: sum(up for name, up in cls.server.metrics().items() if name.startswith("expertmesh:front_backend_up")) == 2, 60,
                   "the front has seen both")

    def tearDown(self):
        if has_failed(self):
            print(f"--- log\n{self.server.log()[-8000:]}", file=sys.stderr)

    def finished(self):
        return [metric(self.server, coordinator, "requests_finished_total") for coordinator in COORDINATORS]

    def test_tokens_are_those_of_one_alone(self):
        before = self.finished()
        for ask in (stream, plain):
            with ThreadPoolExecutor(2 * len(JOBS)) as pool:
                answers = list(pool.map(lambda job, ask=ask: ask(self.server, job), JOBS * 2))
            self.assertEqual(answers, self.expected * 2)
        for coordinator, (done, earlier) in enumerate(zip(self.finished(), before)):
            self.assertGreater(done, earlier, f"coordinator {coordinator} did nothing")
        pids = [{worker["pid"] for worker in cluster_of(self.server, coordinator)["workers"]} for coordinator in COORDINATORS]
        self.assertEqual(pids[0], pids[1])
        self.assertEqual(len(pids[0]), NUM_WORKERS)
        self.assertEqual(self.server.metrics()["expertmesh:front_requests_open"], 0)

    def coordinator_for(self, prompt):
        """-> (which one answered, tokens that it had)"""
        status, headers, body = self.server.request("POST", "/v1/completions", {"prompt": prompt, "max_tokens": 1})
        self.assertEqual(status, 200, body)
        return headers["x-expertmesh-coordinator"], json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"]

    def test_who_has_the_beginning_of_a_prompt_gets_it(self):
        seen = set()
        for beginning in ("A", "B", "C", "D"):
            first, _ = self.coordinator_for(beginning + 3 * TEXT)
            seen.add(first)
            for end in (" The fox", " The crow", " The mouse"):
                again, cached = self.coordinator_for(beginning + 3 * TEXT + end)
                self.assertEqual(again, first)
                self.assertGreater(cached, 0)
        self.assertEqual(seen, {"0", "1"}, "other beginnings go around")

    def test_a_coordinator_is_killed(self):
        server = self.server
        pids = [cluster_of(server, coordinator)["coordinator"]["pid"] for coordinator in COORDINATORS]
        retries = server.metrics()["expertmesh:front_retries_total"]
        job = {**LONG, "return_token_ids": True}
        with server.stream("/v1/completions?coordinator=0", job) as lost, server.stream("/v1/completions?coordinator=1", job) as kept, \
                ThreadPoolExecutor(4) as pool:
            next(lost)
            tokens = tokens_of([next(kept)])
            answers = [pool.submit(plain, server, LONG) for _ in range(4)]
            wait_until(lambda: all(metric(server, coordinator, "requests_accepted_total") - metric(server, coordinator, "requests_finished_total")
                                   - metric(server, coordinator, "requests_cancelled_total") >= 3 for coordinator in COORDINATORS),
                       60, "each has two of the four")
            os.kill(pids[0], signal.SIGKILL)
            self.assertEqual(tokens + tokens_of(kept), self.long)
            self.assertEqual([answer.result() for answer in answers], [self.long] * 4)
            self.assertIn("error", list(lost)[-1])
        self.assertGreaterEqual(server.metrics()["expertmesh:front_retries_total"], retries + 2)
        self.assertEqual([plain(server, job) for job in JOBS], self.expected)
        wait_until(lambda: server.get("/ready?coordinator=0")[0] == 200, 60, "it is back")
        self.assertNotEqual(cluster_of(server, 0)["coordinator"]["pid"], pids[0])
        self.assertEqual(cluster_of(server, 1)["coordinator"]["pid"], pids[1])

        def gets_work():
            self.assertEqual(plain(server, JOBS[0]), self.expected[0])
            return metric(server, 0, "requests_finished_total") > 0

        wait_until(gets_work, 60, "it gets work again")
        wait_until(lambda: len(serving(server, 0)) == NUM_WORKERS, 60, "its workers have come back")

    def test_a_coordinator_and_the_front_end(self):
        server = self.server
        pid = cluster_of(server, 0)["coordinator"]["pid"]
        workers = {worker["pid"] for worker in serving(server, 1)}
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), 60, "it has ended")
        wait_until(lambda: {worker["pid"] for worker in serving(server, 0)} == workers, 60, "the next one has its workers")
        front = next(below for below in descendants(server.pid) if Path(f"/proc/{below}/comm").read_text().startswith("expertmesh-fro"))
        os.kill(front, signal.SIGKILL)

        def answers():
            with contextlib.suppress(OSError):
                return server.get("/ready")[0] == 200

        wait_until(lambda: not is_alive(front), 60, "it has ended")
        wait_until(answers, 60, "there is another front at the same address")
        self.assertEqual([plain(server, job) for job in JOBS], self.expected)

    def test_a_worker_is_killed(self):
        job = {**LONG, "return_token_ids": True}
        victim = cluster_of(self.server, 0)["workers"][0]["pid"]
        with self.server.stream("/v1/completions?coordinator=0", job) as one, self.server.stream("/v1/completions?coordinator=1", job) as other:
            tokens = [tokens_of([next(events)]) for events in (one, other)]
            os.kill(victim, signal.SIGKILL)
            with ThreadPoolExecutor(2) as pool:
                rest = list(pool.map(tokens_of, (one, other)))
            self.assertEqual([first + last for first, last in zip(tokens, rest)], [self.long] * 2)
        for coordinator in COORDINATORS:
            wait_until(lambda c=coordinator: [w["state"] for w in cluster_of(self.server, c)["workers"]] == ["serving"] * NUM_WORKERS, 60, "it is back")

    def test_a_client_that_leaves_reaches_the_coordinator(self):
        before = metric(self.server, 1, "requests_cancelled_total")
        with self.server.stream("/v1/completions?coordinator=1", LONG) as events:
            next(events)
        wait_until(lambda: metric(self.server, 1, "requests_cancelled_total") == before + 1, 30, "it is cancelled")

    def test_bad_requests_are_answered_as_a_coordinator_does(self):
        self.assertEqual(refusals(self.server), self.refused)
        status, headers, _ = self.server.request("GET", "/", headers={"x-request-id": "mine"})
        self.assertEqual((status, headers["x-request-id"]), (200, "mine"))
        self.assertEqual(self.server.get("/v1/models")[1]["data"][0]["id"], "demo-model")
        self.assertEqual(self.server.get("/ready")[0], 200)

    def test_pages_may_read_its_answers_as_the_coordinators(self):
        for path in ("/health", "/v1/models"):
            self.assertEqual(self.server.request("GET", path)[1].get_all("Access-Control-Allow-Origin"), [PAGES], path)

    def test_workers_are_changed_at_one_coordinator(self):
        def drain(query):
            done = subprocess.run([EXPERTMESH, "drain", "99", f"http://127.0.0.1:{self.server.port}{query}"], capture_output=True, text=True, timeout=60)
            self.assertNotEqual(done.returncode, 0)
            return done.stdout

        self.assertIn("?coordinator=K", drain(""))
        self.assertIn("there is no worker 99", drain("?coordinator=1"))


class LaunchTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def write_cluster(self, **changes):
        secret = self.folder / "secret"
        secret.write_text(secrets.token_hex(16))
        secret.chmod(0o600)
        file = self.folder / "cluster.json"
        file.write_text(json.dumps({
            "interface": "lo", "control_port": free_ports(2), "secret_file": str(secret), "coordinators": 2,
            "coordinator": {"host": "here", "address": "127.0.0.1"}, "workers": [{"host": "here", "threads": 1, "capacity": 1}], **changes}))
        return file

    def serve(self, *options):
        return Server(DEMO_MODEL, "--dtype", "float32", *PATIENT, *options)

    def check_gone(self, pids):
        wait_until(lambda: not any(map(is_alive, pids)), 60, "nothing is left")

    def test_asked_to_end_it_ends_what_is_under_way(self):
        with self.serve("--cluster", self.write_cluster()) as server:
            pids = pids_below(server)
            self.assertGreater(len(pids), 6)
            with server.stream("/v1/completions", LONG) as events:
                next(events)
                server.process.send_signal(signal.SIGTERM)
                self.assertGreater(len(list(events)), 1)
            self.assertEqual(server.process.wait(60), 0)
            self.check_gone(pids)

    def test_killed_it_leaves_nothing(self):
        with self.serve("--coordinators", 2, "--workers", 1) as server:
            pids = pids_below(server)
            server.process.kill()
            server.process.wait()
            self.check_gone(pids)
            server.process.returncode = 0  # it was meant to

    def refusal(self, *options, code=2):
        done = subprocess.run([EXPERTMESH, "serve", str(DEMO_MODEL), "--port", "0", *map(str, options)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def test_what_cannot_be_started_is_said(self):
        self.assertIn("--workers N says how many", self.refusal("--coordinators", 2))
        self.assertIn("serve: --coordinators: 65 is more than 64", self.refusal("--coordinators", 65, "--workers", 1))
        self.assertIn("serve: --worker-device: 'tpu' is none of", self.refusal("--coordinators", 2, "--workers", 1, "--worker-device", "tpu"))
        self.assertIn("--interface: with --coordinators that takes a cluster file", self.refusal("--coordinators", 2, "--interface", "lo"))
        self.assertIn("--cluster says what --workers says", self.refusal("--cluster", self.write_cluster(), "--workers", 1))
        self.assertIn("--cluster says what --gather-us says", self.refusal("--cluster", self.write_cluster(), "--gather-us", 1))
        self.assertIn("--gather-us: there are no other coordinators", self.refusal("--gather-us", 1))
        self.assertIn("--gather-us: expected a number, got '-1'", self.refusal("--coordinators", 2, "--workers", 1, "--gather-us", "-1"))
        self.assertIn("--gather-us: 1000001 is more than 1000000", self.refusal("--coordinators", 2, "--workers", 1, "--gather-us", 1000001))
        self.assertIn("--gather-us: expected a number, got ''", self.refusal("--coordinators", 2, "--workers", 1, "--gather-us", ""))
        self.assertIn("colour: unknown field", self.refusal("--cluster", self.write_cluster(colour="blue")))
        config = self.config("workers = 1\ncolour = blue")
        self.assertIn(f"serve: {config}:2: no such option: 'colour'", self.refusal("--coordinators", 2, "--config", config))
        with socket.create_server(("127.0.0.1", 0)) as other:
            self.assertIn("Address already in use", self.refusal("--coordinators", 2, "--workers", 1, "--port", other.getsockname()[1], code=1))

    def test_asked_to_end_while_python_starts_it_does(self):
        # Before any line of the launcher's own.
        (self.folder / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
        done = subprocess.run([EXPERTMESH, "serve", str(DEMO_MODEL), "--port", "0", "--coordinators", "2", "--workers", "1"], capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, timeout=60, env={**os.environ, "PYTHONPATH": str(self.folder)})
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_a_name_server_keeps_to_its_file(self):
        names = self.folder / "names"

        def command(file):
            return [EXPERTMESH, "name-server", str(file), "--interface", "lo"]

        def refused(file):
            done = subprocess.run(command(file), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)
            return done.stderr

        names.write_text("a letter\n")
        self.assertIn(f"{names}: no name server has written that", refused(names))
        self.assertEqual(names.read_text(), "a letter\n")
        self.assertIn("cannot be written", refused(self.folder / "nowhere" / "names"))
        with socket.socket() as gone:
            gone.bind(("127.0.0.1", 0))
            stale = f"1901854720.0;tcp://127.0.0.1:{gone.getsockname()[1]}\n"
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            names.write_text(stale)
            with subprocess.Popen(command(names), stdin=subprocess.DEVNULL) as server:
                wait_until(lambda: names.exists() and names.read_text() not in ("", stale), 30, "it has written its file")
                self.assertIn("is running", refused(names))
                server.send_signal(signal_number)
            self.assertEqual(server.returncode, 0)
            self.assertFalse(names.exists())

    def config(self, text):
        file = self.folder / "config"
        file.write_text(text + "\n")
        return file


if __name__ == "__main__":
    unittest.main()
