"""`serve --trace FILE`: what a viewer finds in the file of a real server with two workers: while all is well, after a
worker's death, when the server was killed, and with a worker whose clock is another."""
import collections
import json
import os
import secrets
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, Server, descendants, free_ports, is_alive, wait_until
from test_workers import LONG, PROMPT, successor_of, text_of_a_stream_without, workers_of

MOE_LAYERS = range(5)
STAGES_OF_A_LAYER = ("attention", "router", "dispatch", "shared_expert", "experts", "combine")
STAGES_OF_A_STEP = {("embedding", None), ("lm_head", None), ("sampling", None),
                    *((stage, layer) for layer in MOE_LAYERS for stage in STAGES_OF_A_LAYER)}
PARTS = [("b", "request"), ("b", "queued"), ("e", "queued"), ("b", "prefill"), ("e", "prefill"), ("b", "decode"),
         ("e", "decode"), ("e", "request")]
AHEAD_S = 5000  # of a worker's clock


def events_of(text):
    """-> events of a file whose end may be missing, as viewers read it: [event, event, ... up to the last whole line"""
    lines = text[:text.rfind("\n") + 1].strip()
    return json.loads(lines if lines.endswith("]") else lines.rstrip(",") + "]")


def ns(microseconds):
    return round(microseconds * 1000)


def begin_of(event):
    return ns(event["ts"])


def end_of(event):
    return ns(event["ts"]) + ns(event["dur"])


def span(event):
    return begin_of(event), end_of(event)


class TraceTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.file = self.folder / "trace.json"

    def category(self, events, name):
        return [event for event in events if event.get("cat") == name]

    def check(self, events, killed=False, died=False):
        """Everything lies where it belongs; killed: the server, died: a worker. -> steps by their number"""
        steps = {event["args"]["step"]: event for event in self.category(events, "step")}
        self.assertGreater(len(steps), 0)
        self.assertEqual(sorted(steps), list(range(1, len(steps) + 1)))
        stages = self.stages(events, steps, killed)
        windows = self.exchanges(events, steps, stages, killed, died)
        self.computations(events, windows, killed)
        return steps

    def stages(self, events, steps, killed):
        """They follow each other within their step. -> {step: {(stage, layer): event}}"""
        stages = collections.defaultdict(list)
        for event in self.category(events, "stage"):
            stages[event["args"]["step"]].append(event)
        self.assertLessEqual(set(stages) - set(steps), {len(steps) + 1} if killed else set())
        found = {}
        for number, step in steps.items():
            now = begin_of(step)
            for event in sorted(stages[number], key=begin_of):
                self.assertGreaterEqual(begin_of(event), now, "stages overlap, or begin before their step")
                now = end_of(event)
            self.assertLessEqual(now, end_of(step), "a stage ends after its step")
            found[number] = {(event["name"], event["args"].get("layer")): event for event in stages[number]}
            if step["name"] == "decode step":
                self.assertEqual(set(found[number]), STAGES_OF_A_STEP)
                self.assertEqual(len(stages[number]), len(STAGES_OF_A_STEP), "a stage of a layer is there twice")
        return found

    def exchanges(self, events, steps, stages, killed, died):
        """Every layer's rows go out when they are dispatched, and are back before they are combined.
        -> {id: (begin, end, layer, entries, whether it was answered)}"""
        windows = {}
        for event in self.category(events, "exchange"):
            if event["ph"] == "b":
                self.assertNotIn(event["id"], windows)
                windows[event["id"]] = [begin_of(event), event["args"]["layer"], event["args"]["entries"]]
            else:
                begin, layer, entries = windows[event["id"]]
                windows[event["id"]] = (begin, begin_of(event), layer, entries, event["args"]["answered"])
        if killed:  # in the middle of one
            windows = {name: window for name, window in windows.items() if len(window) == 5}
        of_layer = collections.defaultdict(list)
        for begin, end, layer, _, _ in windows.values():
            of_layer[layer].append((begin, end))
        self.assertEqual(sorted(of_layer), list(MOE_LAYERS))
        if not killed:
            for layer in MOE_LAYERS:
                places = sorted((begin_of(stages[step]["dispatch", layer]), end_of(stages[step]["experts", layer])) for step in steps)
                used = set()
                for begin, end in of_layer[layer]:
                    around = [place for place in places if place[0] <= begin and end <= place[1]]
                    self.assertEqual(len(around), 1, f"an exchange of layer {layer} in no step's dispatch and wait")
                    used.add(around[0])
                if not died:  # else the coordinator may have run all that a step asked for
                    self.assertEqual(len(used), len(steps), "a step without exchanges")
        return windows

    def computations(self, events, windows, killed):
        """Each lies within its exchange, but for what is not known of the worker's clock."""
        computations = self.category(events, "compute")
        last = collections.defaultdict(int)
        for event in computations:
            begin, end, layer, entries, answered = windows[event["args"]["exchange"]]
            unsure = ns(event["args"]["uncertainty_us"])
            self.assertTrue(answered)
            self.assertEqual((event["args"]["layer"], event["args"]["entries"]), (layer, entries))
            self.assertGreaterEqual(begin_of(event), begin - unsure)
            self.assertLessEqual(end_of(event), end + unsure)
            self.assertGreater(unsure, 0)
            life = (event["pid"], event["tid"])
            self.assertGreaterEqual(begin_of(event), last[life], "spans of a worker overlap")
            last[life] = end_of(event)
        answered = sum(window[-1] for window in windows.values())
        self.assertLessEqual(answered - len(computations), 1 if killed else 0)
        self.assertEqual(len({event["args"]["exchange"] for event in computations}), len(computations))

    def check_offsets(self, events, ahead_s):
        """What is said of the workers' clocks is true. ahead_s: {worker: seconds}"""
        seen = set()
        for event in self.category(events, "compute"):
            worker = event["pid"] - 1
            unsure = ns(event["args"]["uncertainty_us"])
            self.assertLessEqual(abs(ns(event["args"]["offset_us"]) - ahead_s[worker] * 10**9), unsure)
            seen.add(worker)
        self.assertEqual(seen, set(ahead_s))

    def check_request(self, events, request_id, prompt_tokens, answer_tokens):
        """Its parts come in order, under the client's name for it."""
        begin, = (event for event in self.category(events, "request")
                  if event["ph"] == "b" and event["args"].get("request_id") == request_id)
        track = [event for event in self.category(events, "request") if event["id"] == begin["id"]]
        self.assertEqual([(event["ph"], event["name"]) for event in track], PARTS)
        self.assertEqual([begin_of(event) for event in track], sorted(begin_of(event) for event in track))
        self.assertEqual(track[0]["args"], {"request_id": request_id, "prompt_tokens": prompt_tokens})
        self.assertEqual(track[-1]["args"], {"request_id": request_id, "finished": True, "answer_tokens": answer_tokens})

    def test_requests_steps_stages_exchanges_and_workers(self):
        with Server(DEMO_MODEL, "--workers", 2, "--trace", self.file) as server:
            status, _, answer = server.request("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 7, "ignore_eos": True},
                                               {"x-request-id": "the-fox"})
            self.assertEqual(status, 200)
            usage = json.loads(answer)["usage"]
            server.complete_together([{"prompt": PROMPT, "max_tokens": 12, "ignore_eos": True, "n": 2}] * 3)
        events = json.loads(self.file.read_text())  # whole, since the server ended well
        steps = self.check(events)
        self.check_offsets(events, {1: 0, 2: 0})
        self.check_request(events, "cmpl-the-fox", usage["prompt_tokens"], 7)
        names = collections.Counter(step["name"] for step in steps.values())
        self.assertGreaterEqual(names["decode step"], 6 + 11)
        self.assertGreaterEqual(names["prefill step"], 1)
        self.assertEqual({event["name"] for event in self.category(events, "worker")}, {"worker 1 serves", "worker 2 serves"})
        named = {event["args"]["name"] for event in events if event["name"] == "process_name"}
        self.assertEqual(named, {"coordinator", "worker 1", "worker 2"})

    def test_a_workers_death_is_an_instant(self):
        with Server(DEMO_MODEL, "--workers", 2, "--transport", "shm", "--trace", self.file) as server:
            victim = workers_of(server)[1]
            text_of_a_stream_without(server, victim)
            successor_of(server, victim)
            server.complete(prompt=PROMPT, max_tokens=4)
        events = json.loads(self.file.read_text())
        self.check(events, died=True)
        death, = (event for event in self.category(events, "worker") if event["name"] == "worker 2 died")
        self.assertEqual((death["ph"], death["args"]["incarnation"]), ("i", victim["incarnation"]))
        self.assertTrue(death["args"]["reason"])
        births = [event for event in self.category(events, "worker") if event["name"] == "worker 2 serves"]
        self.assertEqual([event["args"]["incarnation"] for event in births], [victim["incarnation"], victim["incarnation"] + 1])
        self.assertTrue(begin_of(births[0]) < begin_of(death) < begin_of(births[1]))
        later = [event for event in self.category(events, "compute") if event["pid"] == 3 and begin_of(event) > begin_of(births[1])]
        self.assertEqual({event["tid"] for event in later}, {victim["incarnation"] + 1}, "only its new life computes")

    def test_what_a_killed_server_leaves_can_be_read(self):
        server = Server(DEMO_MODEL, "--workers", 2, "--trace", self.file)
        processes = [*descendants(server.pid), *(worker["pid"] for worker in workers_of(server))]
        with server.stream("/v1/completions", LONG) as stream:
            next(stream)
            wait_until(lambda: "decode step" in self.file.read_text(), 30, "steps are in the file")
            os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        server.process.stdout.close()
        server._log.close()
        wait_until(lambda: not any(map(is_alive, processes)), 10, "all its processes are gone")
        text = self.file.read_text()
        self.assertFalse(text.rstrip().endswith("]"))
        self.check(events_of(text), killed=True)

    def test_a_worker_with_another_clock(self):
        shifted = ["unshare", "--time", "--monotonic", str(AHEAD_S)]
        if subprocess.run([*shifted, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("skipped: no time namespaces here (unshare --time)")
        secret, port = self.folder / "secret", free_ports(1)
        secret.write_text(secrets.token_hex(16))
        secret.chmod(0o600)
        with Server(DEMO_MODEL, "--workers", 1, "--interface", "lo", "--control-port", port, "--secret-file", secret,
                    "--trace", self.file) as server:
            worker = subprocess.Popen([*shifted, EXPERTMESH, "worker", "--join", f"127.0.0.1:{port}", "--secret-file", str(secret),
                                       "--threads", "1"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, text=True)
            wait_until(lambda: [w["experts"] > 0 for w in workers_of(server) if w["state"] == "serving"] == [True, True], 60,
                       "both hold experts")
            server.complete(prompt=PROMPT, max_tokens=20, ignore_eos=True)
        self.assertEqual((worker.wait(30), worker.stderr.close()), (0, None))
        events = json.loads(self.file.read_text())
        self.check(events)
        self.check_offsets(events, {1: 0, 2: AHEAD_S})

    def test_limit(self):
        limit = 64 << 10
        with Server(DEMO_MODEL, "--workers", 2, "--trace", self.file, "--trace-limit", "64K") as server:
            for _ in range(2):
                server.complete(prompt=PROMPT, max_tokens=60, ignore_eos=True)
            log = server.log()
        events = json.loads(self.file.read_text())
        self.assertEqual(events[-1]["name"], "trace ends: --trace-limit")
        self.assertLessEqual(self.file.stat().st_size, limit)
        self.assertEqual(log.count("has reached --trace-limit"), 1)

    def test_a_file_that_cannot_be_written_is_refused_by_name(self):
        for file in (self.folder / "nowhere" / "trace.json", self.folder):
            done = subprocess.run([EXPERTMESH, "serve", str(DEMO_MODEL), "--port", "0", "--trace", str(file)],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(f"--trace {file}: cannot be written", done.stderr)

    def test_bench_engine_writes_one_too(self):
        done = subprocess.run([EXPERTMESH, "bench", "engine", str(DEMO_MODEL), "--batch-sizes", "3", "--input-len", "20",
                               "--output-len", "4", "--trace", str(self.file)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        events = json.loads(self.file.read_text())
        steps = self.check(events)
        self.assertEqual({step["args"]["sequences"] for step in steps.values()}, {1, 3})
        self.check_offsets(events, {1: 0})


if __name__ == "__main__":
    unittest.main()
