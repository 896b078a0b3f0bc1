"""Workers join and leave under load: no request fails, no token changes.

EM_FAULT_STORM: joins and leaves together (default 12; the documented long form takes 200).
"""
import os
import random
import signal
import subprocess
import threading
import time
import unittest

from crowd import (DEMO_MODEL, Crowd, Server, books_are_closed, quiet_answers, wait_until, workers_of)
from harness import EXPERTMESH, is_alive

STORM = int(os.environ.get("EM_FAULT_STORM", "12"))
CLIENTS = 16


def serving(server):
    return [worker for worker in workers_of(server) if worker["state"] == "serving"]


def settled(server, count):
    cluster = server.get("/v1/cluster")[1]  # of one moment
    now = [worker for worker in cluster["workers"] if worker["state"] == "serving"]
    return len(now) == count and not cluster["placement"]["moving"] and all(worker["experts"] > 0 for worker in now)


def experts_of(server):
    return sum(worker["experts"] for worker in serving(server))


class ElasticityTest(unittest.TestCase):
    def test_a_storm_of_joins_and_leaves(self):
        rng = random.Random(3)
        with Server(DEMO_MODEL, "--workers", 2, "--rebalance-interval", 0, "--micro-batches", 2) as server:
            expected = quiet_answers(server)
            total = experts_of(server)
            count = 2
            left = []
            with Crowd(server, expected, CLIENTS) as crowd:
                wait_until(lambda: crowd.answers >= CLIENTS, 120, "the crowd is at work")
                quiet = time.monotonic()
                answers = crowd.answers
                wait_until(lambda: crowd.answers >= answers + 3 * CLIENTS, 120, "the steady rate shows")
                begin, tokens = time.monotonic(), crowd.tokens
                for number in range(STORM):
                    if count < 4 and (count == 1 or rng.random() < 0.5):
                        status, answer = server.post("/v1/cluster/workers", {})
                        count += 1
                    else:
                        victim = rng.choice(serving(server))
                        left.append(victim["pid"])
                        count -= 1
                        if number % 2:
                            status, answer = server.post("/v1/cluster/drain", {"worker": victim["id"]})
                        else:  # as an operator or a batch system would
                            os.kill(victim["pid"], signal.SIGTERM)
                            status, answer = 202, None
                    self.assertEqual(status, 202, answer)
                    wait_until(lambda count=count: settled(server, count), 60, f"{count} workers serve all experts")
                    self.assertEqual(experts_of(server), total)
                end = time.monotonic()
                rate = (crowd.tokens - tokens) / (end - begin)
            self.assertEqual(crowd.failures, [])
            wait_until(lambda: not any(map(is_alive, left)), 20, "those that left are gone")
            metrics = server.metrics()
            self.assertTrue(books_are_closed(metrics))
            self.assertEqual(metrics["expertmesh:requests_failed_total"], 0)
            self.assertEqual(metrics["expertmesh:worker_deaths_total"], 0, "leaving is no death")
            self.assertEqual(metrics["expertmesh:recoveries_total"], 0, "they go between two steps")
            placement = server.get("/v1/cluster")[1]["placement"]
            print(f"{STORM} joins and leaves, {placement['experts_moved']} experts moved, {crowd.answers} answers, 0 wrong, "
                  f"{rate:.0f} tokens a second")
            steady = max(1, crowd.lowest_rate(quiet, begin))
            print(f"of the lowest second of the quiet time before ({steady:.0f} tokens): the lowest of the storm is "
                  f"{crowd.lowest_rate(begin, end) / steady:.0%}, the lowest two are "
                  f"{crowd.lowest_rate(begin, end, 2) / steady:.0%}", flush=True)

    def test_the_dead_that_cannot_be_replaced_are_inherited(self):
        with Server(DEMO_MODEL, "--workers", 3) as server:
            expected = quiet_answers(server)
            total = experts_of(server)
            with Crowd(server, expected, 4) as crowd:
                victim = workers_of(server)[1]
                life = victim["incarnation"]
                os.kill(victim["pid"], signal.SIGKILL)

                def is_given_up():  # newcomers die as soon as they say hello; some may never come so far, after the others' deaths
                    nonlocal life
                    now = next(w for w in workers_of(server) if w["id"] == victim["id"])
                    if now["incarnation"] > life and now["pid"] and now["state"] == "joining":
                        life = now["incarnation"]
                        os.kill(now["pid"], signal.SIGKILL)
                    return settled(server, 2) and experts_of(server) == total

                wait_until(is_given_up, 120, "two workers have taken the experts over")
                done = crowd.answers
                wait_until(lambda: crowd.answers > done + 8, 60, "answers")
            self.assertEqual(crowd.failures, [])
            self.assertEqual([w["state"] for w in workers_of(server)], ["serving", "dead", "serving"])

    def test_a_slow_worker_is_given_less(self):
        # On a busy machine its pauses may be much longer than meant: slow is not dead.
        with Server(DEMO_MODEL, "--workers", 2, "--heartbeat-timeout-ms", 10000) as server:
            expected = quiet_answers(server)
            total = experts_of(server)
            with Crowd(server, expected, 6) as crowd:
                wait_until(lambda: crowd.answers >= 6, 120, "the crowd is at work")
                victim = workers_of(server)[0]
                half = total / 4  # of what it has when both are as fast
                stop = threading.Event()

                def hold_back():  # it runs for a sixth of the time
                    while not stop.is_set():
                        os.kill(victim["pid"], signal.SIGSTOP)
                        stop.wait(0.1)
                        os.kill(victim["pid"], signal.SIGCONT)
                        stop.wait(0.02)

                holder = threading.Thread(target=hold_back)
                holder.start()
                try:
                    slow = lambda: next(w for w in workers_of(server) if w["id"] == victim["id"])  # noqa: E731
                    wait_until(lambda: slow()["speed"] < 1 and slow()["experts"] < half, 60, "it has less")
                    print(f"a worker held back: speed {slow()['speed']}, {slow()['experts']} experts instead of "
                          f"{total / 2:.0f}", flush=True)
                    self.assertEqual(experts_of(server), total)
                finally:
                    stop.set()
                    holder.join()
                self.assertEqual(slow()["incarnation"], victim["incarnation"], "slow is not dead")
                wait_until(lambda: slow()["speed"] == 1, 120, "it is as fast as before")
                wait_until(lambda: slow()["experts"] > half, 60, "it has its share again")
            self.assertEqual(crowd.failures, [])

    def test_replicas_and_the_command(self):
        with Server(DEMO_MODEL, "--workers", 2, "--redundant-experts", 4, "--rebalance-interval", 0) as server:
            expected = quiet_answers(server)
            self.assertEqual(experts_of(server), 5 * (8 + 4))
            url = f"http://127.0.0.1:{server.port}"
            run = lambda *words: subprocess.run([EXPERTMESH, *words, url], capture_output=True, text=True)  # noqa: E731
            with Crowd(server, expected, 4) as crowd:
                joined = run("join", "1")
                self.assertEqual(joined.returncode, 0, joined)
                wait_until(lambda: settled(server, 3), 60, "three workers serve")
                self.assertEqual(run("drain", "1").returncode, 0)
                wait_until(lambda: settled(server, 2), 60, "two workers serve")
                refused = run("drain", "1")
                self.assertNotEqual(refused.returncode, 0)
                self.assertIn("worker 1 is gone already", refused.stdout)
                for wrong, text in (({"worker": 9}, "no worker 9"), ({}, "worker"), ({"worker": "x"}, "worker"),
                                    ({"worker": 2, "soon": True}, "soon")):
                    status, answer = server.post("/v1/cluster/drain", wrong)
                    self.assertIn(status, (400, 409))
                    self.assertIn(text, answer["error"]["message"])
            self.assertEqual(crowd.failures, [])


if __name__ == "__main__":
    unittest.main()
