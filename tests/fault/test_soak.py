"""Clients of many kinds while a worker is killed now and then: at every scrape the books are closed, nothing fails, and
memory stays where it was, but for what MPI keeps for the dead.

EM_SOAK_SECONDS: how long (default 15, a kill every 3 s; the documented long form takes 3600, a kill every 10 s).
"""
import json
import os
import random
import signal
import threading
import time
import unittest

from crowd import (DEMO_MODEL, NUM_JOBS, Leftovers, Server, answer, books_are_closed, job, percentile, quiet_answers,
                   resident_bytes, wait_until, workers_of)

SECONDS = int(os.environ.get("EM_SOAK_SECONDS", "15"))
KILL_EVERY = 10 if SECONDS >= 600 else 3
REPORT_EVERY = max(5, SECONDS // 12)


class Mixed:
    """Clients that each do another thing, until told to stop."""

    def __init__(self, server, expected):
        self.server, self.expected = server, expected
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.done = {}
        self.failures = []
        kinds = [self.stream, self.stream, self.stream, self.at_once, self.leave_early, self.until_a_stop, self.several, self.small]
        self.threads = [threading.Thread(target=self.run, args=(number, kind)) for number, kind in enumerate(kinds)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, number, kind):
        rng = random.Random(number)
        while not self.stop.is_set():
            problem = None
            try:
                kind(rng)
            except Exception as error:  # whatever a client may meet: it counts
                problem = f"{kind.__name__}: {error!r}"
            with self.lock:
                self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1
                if problem:
                    self.failures.append(problem)
            self.stop.wait(rng.random() / 4)  # as people do

    def check(self, seen, wanted, what):
        if seen != wanted:
            raise AssertionError(f"{what}: {seen} instead of {wanted}")

    def stream(self, rng):
        index = rng.randrange(NUM_JOBS)
        self.check(answer(self.server, job(index))[0], self.expected[index], index)

    def at_once(self, rng):
        index = rng.randrange(NUM_JOBS)
        logprobs = self.server.complete(**job(index))["choices"][0]["logprobs"]
        self.check(list(zip(logprobs["tokens"], logprobs["token_logprobs"])), self.expected[index], index)

    def leave_early(self, rng):
        with self.server.stream("/v1/completions", job(rng.randrange(NUM_JOBS))) as events:
            for _ in range(rng.randrange(1, 6)):
                next(events)

    def until_a_stop(self, rng):
        body = {"prompt": "Once upon a time", "max_tokens": rng.randrange(1, 40), "temperature": 0, "stop": ["\n"]}
        self.check(self.server.complete(**body)["usage"]["prompt_tokens"] > 0, True, "usage")

    def several(self, rng):
        index = 2 * rng.randrange(NUM_JOBS // 2)  # greedy: all choices the same
        body = {**job(index), "n": 2, "max_tokens": 20}
        texts = [choice["text"] for choice in self.server.complete(**body)["choices"]]
        self.check(texts[0], texts[1], "two greedy choices")

    def small(self, rng):
        path, body = rng.choice([("/tokenize", {"prompt": "The fox"}), ("/v1/completions", {"prompt": [], "max_tokens": 0}),
                                 ("/v1/completions", {"prompt": "x", "max_tokens": -1}), ("/nowhere", {})])
        status, _ = self.server.post(path, body)
        self.check(status in (200, 400, 404, 422), True, (path, status))


class SoakTest(unittest.TestCase):
    def test_nothing_is_lost_and_nothing_grows(self):
        rng = random.Random(8)
        with Server(DEMO_MODEL, "--workers", 3) as server:
            expected = quiet_answers(server)
            with Mixed(server, expected) as clients:
                wait_until(lambda: sum(clients.done.values()) > 40, 120, "all are at work")
                before, begin = Leftovers(server), time.monotonic()
                kills, scrapes, resident = 0, 0, []
                next_kill, next_report = begin + KILL_EVERY, begin + REPORT_EVERY
                while time.monotonic() < begin + SECONDS:
                    metrics = server.metrics()
                    scrapes += 1
                    self.assertTrue(books_are_closed(metrics), metrics)
                    self.assertEqual(metrics["expertmesh:requests_failed_total"], 0)
                    resident.append(resident_bytes(server.pid))
                    now = time.monotonic()
                    if now >= next_kill:
                        next_kill += KILL_EVERY
                        serving = [worker for worker in workers_of(server) if worker["state"] == "serving"]
                        os.kill(rng.choice(serving)["pid"], signal.SIGKILL)
                        kills += 1
                    if now >= next_report:
                        next_report += REPORT_EVERY
                        print(f"{now - begin:5.0f} s: {kills} kills, {sum(clients.done.values())} requests, "
                              f"{len(clients.failures)} wrong, {resident[-1] / 1e6:.0f} MB resident, "
                              f"{metrics['expertmesh:quarantined_bytes']:.0f} bytes quarantined", flush=True)
                    time.sleep(0.5)  # between scrapes
                wait_until(lambda: all(worker["state"] == "serving" for worker in workers_of(server)), 60, "all serve")
            after = Leftovers(server)
            metrics = server.metrics()
            self.assertEqual(clients.failures, [])
            self.assertTrue(books_are_closed(metrics))
            self.assertEqual(metrics["expertmesh:worker_deaths_total"], kills)
            print(f"{SECONDS} s, {kills} kills, {scrapes} scrapes, {json.dumps(clients.done, sort_keys=True)}\n"
                  f"recoveries {metrics['expertmesh:recoveries_total']:.0f}, pauses together "
                  f"{metrics['expertmesh:recovery_seconds_total'] * 1e3:.0f} ms\nbefore: {before}\nafter:  {after}; "
                  f"resident p50 {percentile(resident, 0.5) / 1e6:.0f} MB, max {max(resident) / 1e6:.0f} MB", flush=True)
            self.assertEqual(after.zombies, [])
            self.assertEqual(after.shm - before.shm, set())
            self.assertEqual(after.processes, before.processes)
            self.assertLess(after.files - before.files, 40)
            self.assertLess(after.resident - before.resident, (32 << 20) + kills * (128 << 10))


if __name__ == "__main__":
    unittest.main()
