"""Many clients at once: nobody fails, tokens stay those of a quiet run, and nothing is left behind.

EM_LOAD_SECONDS: how long the streaming crowd goes on (default 8; the long form of the suite takes 60).
"""
import os
import random
import socket
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

from harness import DEMO_MODEL, Server, wait_until

SECONDS = float(os.environ.get("EM_LOAD_SECONDS", "8"))
CLIENTS = 64
PROMPTS = ["Once upon a time", "The fox said to the crow", "In a dark forest there lived an old woman who", "A king had three sons"]


def job(index):
    """The index-th request: mixed lengths, greedy or sampled."""
    rng = random.Random(index)
    return {"prompt": PROMPTS[index % len(PROMPTS)] + " and" * rng.randrange(40), "max_tokens": rng.choice((8, 40, 90)),
            "temperature": rng.choice((0, 0.9)), "seed": index, "ignore_eos": True}


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def streamed(server, body, leave_early=False):
    """-> text, or none if it left."""
    text = ""
    with server.stream("/v1/completions", body) as events:
        for event in events:
            for choice in event["choices"]:
                text += choice["text"]
            if leave_early:
                return None
    return text


class LoadTest(unittest.TestCase):
    def books(self, server):
        metrics = {name: server.metric(name) for name in (
            "requests_accepted_total", "num_requests_waiting", "num_requests_running", "requests_finished_total",
            "requests_failed_total", "requests_cancelled_total")}
        accepted = metrics.pop("requests_accepted_total")
        self.assertEqual(accepted, sum(metrics.values()), metrics)
        return metrics

    def run_crowd(self, server, expected, seconds):
        until = time.monotonic() + seconds
        left, done, wrong = [], [], []

        def client(number):
            rng = random.Random(1000 + number)
            while time.monotonic() < until:
                index = rng.randrange(len(expected))
                leaves = rng.random() < 0.1
                text = streamed(server, job(index), leaves)
                if leaves:
                    left.append(index)
                else:
                    done.append(index)
                    if text != expected[index]:
                        wrong.append((index, text, expected[index]))

        with ThreadPoolExecutor(CLIENTS) as pool:
            for result in [pool.submit(client, number) for number in range(CLIENTS)]:
                result.result()
        self.assertEqual(wrong, [])
        self.assertGreater(len(done), CLIENTS)
        self.assertTrue(left)
        return len(done), len(left)

    def test_streaming_crowd_on_a_small_cache(self):
        with Server(DEMO_MODEL, "--max-num-seqs", 64, "--max-queued-requests", 512) as quiet:
            expected = [streamed(quiet, job(index)) for index in range(48)]
            limits = quiet.get("/v1/cluster")[1]["limits"]
        kv_bytes = 160 * limits["kv_cache_bytes"] // limits["kv_blocks"]  # for about 20 of 64 at their full length
        with Server(DEMO_MODEL, "--max-num-seqs", 64, "--max-queued-requests", 512, "--kv-cache-memory", kv_bytes,
                    "--workers", 2) as server:
            self.run_crowd(server, expected, SECONDS / 4)
            resident = resident_bytes(server.pid)
            done, left = self.run_crowd(server, expected, SECONDS)
            wait_until(lambda: server.metric("num_requests_running") == 0, 20, "no request runs")
            books = self.books(server)
            self.assertEqual((books["requests_failed_total"], books["num_requests_waiting"]), (0, 0))
            self.assertGreater(server.metric("num_preemptions_total"), 0)
            self.assertEqual(server.metric("kv_cache_usage_perc"), 0)
            grown = resident_bytes(server.pid) - resident
            print(f"{done} answers, {left} disconnects, {server.metric('num_preemptions_total'):.0f} preemptions, "
                  f"resident memory {resident / 1e6:.0f} MB {grown / 1e6:+.1f} MB")
            self.assertLess(grown, 16 << 20)

    def test_idle_connections_do_not_keep_active_ones_out(self):
        with Server(DEMO_MODEL, "--max-connections", 1300, "--max-queued-requests", 512) as server:
            idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(1000)]
            try:
                body = {"prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0}
                expected = server.complete(**body)["choices"][0]["text"]
                answers = []
                lock = threading.Barrier(200)

                def client():
                    lock.wait()
                    answers.append(streamed(server, body))

                with ThreadPoolExecutor(200) as pool:
                    for result in [pool.submit(client) for _ in range(200)]:
                        result.result()
                self.assertEqual(answers, [expected] * 200)
                for connection in idle[::97]:  # they are served too
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                    self.assertTrue(connection.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n"))
                self.books(server)
            finally:
                for connection in idle:
                    connection.close()

    def test_sigterm_drains_and_says_so(self):
        with Server(DEMO_MODEL, "--threads", 1) as server, ThreadPoolExecutor(32) as pool:
            body = {"prompt": PROMPTS[0], "max_tokens": 450, "temperature": 0, "ignore_eos": True}
            answers = [pool.submit(server.complete, **body) for _ in range(32)]
            wait_until(lambda: server.metric("num_requests_running") == 32, 20, "all run")
            server.process.terminate()
            wait_until(lambda: server.request("GET", "/ready")[0] == 503, 20, "it drains")
            status, headers, _ = server.request("POST", "/v1/completions", body)
            self.assertEqual(status, 503)
            self.assertGreater(int(headers["Retry-After"]), 0)
            for answer in answers:
                self.assertEqual(answer.result()["usage"]["completion_tokens"], 450)
            self.assertEqual(server.process.wait(20), 0)


if __name__ == "__main__":
    unittest.main()
