"""Workers are killed under load: no request fails, no token changes, the streams go on.

EM_FAULT_KILLS: kills of random workers (default 20; the documented long form takes 1,000).
"""
import contextlib
import http.client
import json
import os
import random
import signal
import time
import unittest

from crowd import (DEMO_MODEL, Crowd, Leftovers, Server, books_are_closed, descendants, job, percentile, quiet_answers,
                   state_of, wait_until, workers_of)

KILLS = int(os.environ.get("EM_FAULT_KILLS", "20"))
CLIENTS = 32


def kill(worker, number=signal.SIGKILL):
    os.kill(worker["pid"], number)
    return time.monotonic()


def replaced(server, victims):
    now = {worker["id"]: worker for worker in workers_of(server)}
    return (all(worker["state"] == "serving" for worker in now.values())
            and all(now[victim["id"]]["incarnation"] > victim["incarnation"] for victim in victims))


def kill_all(victims, number=signal.SIGKILL):
    return victims, [kill(victim, number) for victim in victims]


class KillTest(unittest.TestCase):
    def storm(self, server, expected, rounds, strike):
        """strike(rng, round) -> the victims as they were and the moments, `rounds` times, each when all serve again."""
        rng = random.Random(5)
        moments = []
        with Crowd(server, expected, CLIENTS) as crowd:
            wait_until(lambda: crowd.answers >= CLIENTS, 120, "the crowd is at work")
            before = Leftovers(server)
            rejoined = []
            for number in range(rounds):
                victims, struck = strike(rng, number)
                moments += struck
                wait_until(lambda: replaced(server, victims), 60, "the dead are replaced")
                rejoined.append(time.monotonic() - struck[0])
                answers = crowd.answers
                wait_until(lambda: crowd.answers >= answers + 2, 60, "streams end between two deaths")
            after = Leftovers(server)
        self.assertEqual(crowd.failures, [])
        metrics = server.metrics()
        self.assertTrue(books_are_closed(metrics))
        self.assertEqual(metrics["expertmesh:requests_failed_total"], 0)
        self.assertGreaterEqual(metrics["expertmesh:worker_deaths_total"], rounds)
        pauses = crowd.longest_pauses(moments)
        print(f"{len(moments)} deaths, {crowd.answers} answers, 0 wrong; longest pause of a stream at a death: p50 "
              f"{percentile(pauses, 0.5) * 1e3:.0f} ms, p99 {percentile(pauses, 0.99) * 1e3:.0f} ms, max "
              f"{max(pauses) * 1e3:.0f} ms (any wait, p50 {percentile([e - b for b, e in crowd.pauses], 0.5) * 1e3:.0f} ms); "
              f"back after p50 {percentile(rejoined, 0.5) * 1e3:.0f} ms, max {max(rejoined) * 1e3:.0f} ms")
        print(f"recoveries {metrics['expertmesh:recoveries_total']:.0f}, pause seen "
              f"{metrics['expertmesh:recovery_seconds_total'] * 1e3:.1f} ms, predicted "
              f"{metrics['expertmesh:recovery_predicted_seconds_total'] * 1e3:.1f} ms, quarantined "
              f"{metrics['expertmesh:quarantined_bytes']:.0f} bytes")
        print(f"before: {before}\nafter:  {after}", flush=True)
        self.assertEqual(after.zombies, [])
        self.assertEqual(after.shm - before.shm, set())
        self.assertEqual(after.processes, before.processes)
        # A few of each for what is under way at the moment of counting.
        self.assertLess(after.files - before.files, 40 + CLIENTS)
        self.assertLess(after.resident - before.resident, (32 << 20) + rounds * (64 << 10))

    def test_random_workers_are_killed(self):
        with Server(DEMO_MODEL, "--workers", 3) as server:
            expected = quiet_answers(server)
            self.storm(server, expected, KILLS, lambda rng, _: kill_all([rng.choice(workers_of(server))]))

    def test_too_slow_for_more_requests(self):
        # Without a worker the coordinator runs every expert itself; nobody is as fast as that.
        with Server(DEMO_MODEL, "--interface", "lo", "--control-port", 0, "--min-step-rate", 1000000) as server:
            # The first request of all: nobody has looked at the rate yet.
            with server.stream("/v1/completions", {**job(1), "max_tokens": 400}) as events:
                refused = None

                def refusal():
                    nonlocal refused
                    status, headers, body = server.request("POST", "/v1/completions", {**job(2), "max_tokens": 1})
                    refused = (status, headers["Retry-After"], json.loads(body))
                    return status == 503

                for event in events:  # those under way go on
                    if not (refused and refused[0] == 503):
                        refusal()
                if refused[0] != 503:  # it was over too soon: the next ones see to it
                    wait_until(refusal, 60, "new requests are refused")
            self.assertEqual((refused[1], refused[2]["error"]["code"]), ("5", "degraded"))

            def served():
                return server.post("/v1/completions", job(1))[0] == 200

            wait_until(served, 60, "a request may try again")
            self.assertEqual(server.metric("requests_failed_total"), 0)

    def test_a_server_that_has_lost_too_much_starts_anew(self):
        with Server(DEMO_MODEL, "--workers", 2, "--max-quarantine", "400K") as server:  # at any port, and then at the same
            wanted = server.complete(**job(1))["choices"]
            children = descendants(server.pid)
            for _ in range(5):  # the memory that Open MPI is taken to keep for each: 96 KiB
                victim = workers_of(server)[0]
                kill(victim)
                wait_until(lambda victim=victim: replaced(server, [victim]), 60, "it is replaced")
            with server.stream("/v1/completions", {**job(1), "max_tokens": 400, "min_tokens": 400}) as events:
                tokens = sum(1 for event in events)  # under way when the server notices
            self.assertGreater(tokens, 300)

            def anew():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    # It looks at what deaths have cost once a second, between steps.
                    server.post("/v1/completions", {**job(1), "max_tokens": 1})
                    return server.get("/ready")[0] == 200 and server.metric("worker_deaths_total") == 0

            wait_until(anew, 60, "it is there again")
            self.assertIn("starts anew", server.log())
            self.assertEqual(server.complete(**job(1))["choices"], wanted)
            self.assertEqual([pid for pid in children if state_of(pid) not in ("", "Z")], [])
            self.assertEqual([pid for pid in descendants(server.pid) if state_of(pid) == "Z"], [])

    def test_several_at_once_and_in_every_way(self):
        ways = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP]
        with Server(DEMO_MODEL, "--workers", 3) as server:
            expected = quiet_answers(server)
        with Server(DEMO_MODEL, "--workers", 3, "--micro-batches", 2) as server:
            def strike(rng, number):
                victims = rng.sample(workers_of(server), 1 + number % 3)  # up to all of them
                return kill_all(victims, ways[number % len(ways)])

            self.storm(server, expected, max(10, KILLS // 10), strike)
            self.assertGreater(server.metric("split_steps_total"), 100)

    def test_a_second_death_during_the_recovery(self):
        with Server(DEMO_MODEL, "--workers", 3) as server:
            expected = quiet_answers(server)

            def strike(rng, number):
                first, second = rng.sample(workers_of(server), 2)
                moments = [kill(first)]
                if number % 2:  # the new life of the first, as soon as it says hello
                    def newcomer():
                        now = next(w for w in workers_of(server) if w["id"] == first["id"])
                        return now if now["incarnation"] > first["incarnation"] and now["pid"] else None
                    second = wait_until(newcomer, 60, "the next life says hello")
                moments.append(kill(second))
                return [first, second], moments

            self.storm(server, expected, max(6, KILLS // 10), strike)


if __name__ == "__main__":
    unittest.main()
