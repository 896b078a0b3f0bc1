"""Worker processes: what they hold, what they cost when idle, and what happens when one dies."""
import os
import re
import signal
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path

from harness import DEMO_MODEL, STOP_SECONDS, Server, cpu_seconds, descendants, is_alive, wait_until

PROMPT = "Once upon a time there was"
LONG = {"prompt": PROMPT, "max_tokens": 450, "ignore_eos": True, "temperature": 0}


def workers_of(server):
    status, cluster = server.get("/v1/cluster")
    if status != 200:
        raise AssertionError(status)
    return cluster["workers"]


def text_of_a_stream_without(server, victim):
    """-> what a stream says in the middle of which the worker is killed"""
    with server.stream("/v1/completions", LONG) as events:
        text = next(events)["choices"][0]["text"]
        os.kill(victim["pid"], signal.SIGKILL)
        return text + "".join(event["choices"][0]["text"] for event in events)


def successor_of(server, victim):
    """Waits for it. -> the worker that serves in the dead one's place"""
    def newcomer():
        worker, = (worker for worker in workers_of(server) if worker["id"] == victim["id"])
        return worker if worker["state"] == "serving" and worker["incarnation"] > victim["incarnation"] else None
    return wait_until(newcomer, 30, "a new worker serves in its place")


class WorkersTest(unittest.TestCase):
    def test_each_of_three_workers_holds_a_third_of_the_experts(self):
        with Server(DEMO_MODEL, "--workers", 3) as server:
            workers = workers_of(server)
            self.assertEqual(len(workers), 3)
            self.assertEqual(len({worker["pid"] for worker in workers}), 3)
            self.assertNotIn(server.pid, [worker["pid"] for worker in workers])
            self.assertEqual({worker["state"] for worker in workers}, {"serving"})
            experts = [worker["experts"] for worker in workers]
            self.assertEqual(sum(experts), 5 * 8)
            total = sum(worker["resident_bytes"] for worker in workers)
            expert_bytes = 5 * 8 * 3 * 192 * 192 * 2
            self.assertAlmostEqual(total / expert_bytes, 1, delta=0.1)
            for worker in workers:  # 8 experts a layer on 3 workers: 2 or 3 each
                self.assertAlmostEqual(worker["resident_bytes"] / expert_bytes, 1 / 3, delta=0.1)

    def test_idle_processes_sleep(self):
        with Server(DEMO_MODEL, "--workers", 2) as server:
            server.complete(prompt=PROMPT, max_tokens=4)
            pids = [server.pid, *(worker["pid"] for worker in workers_of(server))]
            seconds = 3
            before = sum(map(cpu_seconds, pids))
            time.sleep(seconds)  # the window of the measurement
            used = sum(map(cpu_seconds, pids)) - before
            self.assertLess(used, 0.05 * seconds)

    def test_killed_worker_is_a_pause_and_its_place_is_filled_again(self):
        with Server(DEMO_MODEL, "--workers", 2) as server:
            expected = server.complete(**LONG)["choices"][0]["text"]
            victim = workers_of(server)[1]
            self.assertEqual(text_of_a_stream_without(server, victim), expected)
            worker = successor_of(server, victim)
            self.assertNotEqual(worker["pid"], victim["pid"])
            self.assertEqual(worker["experts"], victim["experts"])
            self.assertTrue(worker["death_reason"])
            self.assertEqual(server.request("GET", "/ready")[0], 200)
            self.assertEqual(server.complete(**LONG)["choices"][0]["text"], expected)
            metrics = server.metrics()
            self.assertEqual(metrics["expertmesh:requests_failed_total"], 0)
            self.assertEqual(metrics["expertmesh:worker_deaths_total"], 1)
            self.assertEqual(metrics["expertmesh:workers_serving"], 2)

    def test_messages_go_by_shared_memory_or_by_mpi_to_the_same_tokens(self):
        seen = set()
        for option, transport, micro_batches in (("mpi", "mpi", 1), ("mpi", "mpi", 2), ("shm", "shm", 2), ("auto", "shm", "auto")):
            with (self.subTest(option=option, micro_batches=micro_batches),
                  Server(DEMO_MODEL, "--workers", 2, "--transport", option, "--micro-batches", micro_batches) as server):
                self.assertEqual({worker["transport"] for worker in workers_of(server)}, {transport})
                runs = server.get("/v1/cluster")[1]["limits"]["micro_batches"]
                self.assertIn(runs, ("1", "auto") if micro_batches == "auto" else (str(micro_batches),))  # 1: not enough cores
                text = server.complete(**LONG)["choices"][0]["text"]
                seen.add(text)
                victim = workers_of(server)[0]
                self.assertEqual(text_of_a_stream_without(server, victim), text)
                self.assertEqual(successor_of(server, victim)["transport"], transport)
                self.assertEqual(server.complete(**LONG)["choices"][0]["text"], text)
                metrics = server.metrics()
                self.assertEqual(metrics["expertmesh:requests_failed_total"], 0)
                self.assertEqual(metrics["expertmesh:requests_accepted_total"], metrics["expertmesh:requests_finished_total"])
                other = "shm" if transport == "mpi" else "mpi"
                for direction in ("sent", "received"):
                    name = 'expertmesh:transport_bytes_total{direction="%s",transport="%s"}'
                    self.assertGreater(metrics[name % (direction, transport)], 0)
                    self.assertEqual(metrics[name % (direction, other)], 0)
                if micro_batches == 2:  # prompts
                    self.assertGreater(metrics["expertmesh:split_steps_total"], 0)
        self.assertEqual(len(seen), 1)

    def test_interrupt_finishes_what_runs_and_leaves_nothing_behind(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number), Server(DEMO_MODEL, "--workers", 2) as server:
                pids = [*descendants(server.pid), *(worker["pid"] for worker in workers_of(server))]
                self.assertGreaterEqual(len(pids), 2)
                with server.stream("/v1/completions", {**LONG, "max_tokens": 60}) as events:
                    next(events)
                    os.kill(server.pid, number)
                    rest = [choice["finish_reason"] for event in events for choice in event["choices"]]
                self.assertEqual(rest[-1], "length")
                self.assertEqual(server.process.wait(STOP_SECONDS), 0)
                wait_until(lambda: not any(map(is_alive, pids)), 10, "all its processes are gone")

    def test_killed_coordinator_takes_its_workers_along(self):
        server = Server(DEMO_MODEL, "--workers", 2)
        pids = [*descendants(server.pid), *(worker["pid"] for worker in workers_of(server))]
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        wait_until(lambda: not any(map(is_alive, pids)), 10, "all its processes are gone")
        server.process.stdout.close()


def cores_of_threads(pid):
    """-> the cores that each thread may run on"""
    lists = (Path(task, "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    return {re.search(r"Cpus_allowed_list:\s*(\S+)", text)[1] for text in lists}


class NumaTest(unittest.TestCase):
    """On two nodes that hwloc makes up: the lower and the upper half of this host's cores."""

    def setUp(self):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2 or len(cores) % 2 or cores != list(range(len(cores))):
            self.skipTest(f"SKIPPED: cannot make two equal nodes of the cores {cores}")
        half = len(cores) // 2
        self.nodes = [str(part[0]) if half == 1 else f"{part[0]}-{part[-1]}" for part in (cores[:half], cores[half:])]
        self.half = half
        fake = unittest.mock.patch.dict(os.environ, HWLOC_SYNTHETIC=f"node:2 core:{half} pu:1", HWLOC_THISSYSTEM="1")
        fake.start()
        self.addCleanup(fake.stop)

    def test_threads_keep_to_their_nodes_for_the_same_tokens(self):
        texts = []
        for options, pinned in ((("--bind", "none"), False), ((), True)):
            with self.subTest(options=options), Server(DEMO_MODEL, "--threads", 2, *options) as server:
                texts.append(server.complete(**LONG)["choices"][0]["text"])
                line = f"1 on {self.half} cores of NUMA node 0, 1 on {self.half} cores of NUMA node 1, pinned to them" if pinned else "not pinned, by --bind none"
                self.assertIn(f"compute threads: {line}", server.log())
                self.assertEqual(set(self.nodes) <= cores_of_threads(server.pid), pinned)
        self.assertEqual(texts[0], texts[1])

    def test_a_worker_and_its_coordinator_have_a_node_each(self):
        with Server(DEMO_MODEL, "--workers", 1, "--threads", self.half, "--worker-threads", self.half) as server:
            worker, = workers_of(server)
            self.assertIn(self.nodes[0], cores_of_threads(worker["pid"]))
            self.assertNotIn(self.nodes[1], cores_of_threads(worker["pid"]))
            self.assertIn(self.nodes[1], cores_of_threads(server.pid))
            self.assertEqual(server.complete(prompt=PROMPT, max_tokens=4)["usage"]["completion_tokens"], 4)


def bytes_loaded(server):
    """-> (of the checkpoint, of the packed cache), all processes together"""
    lines = re.findall(r"(?:weights|experts): (\d+) bytes of the checkpoint(?: and (\d+) of the packed cache)?", server.log())
    return tuple(sum(int(count or 0) for count in column) for column in zip(*lines))


class PackedCacheTest(unittest.TestCase):
    def test_a_second_start_has_its_experts_from_the_cache_and_answers_with_the_same_bits(self):
        body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "logprobs": 3}
        for options in ((), ("--workers", 2, "--quantization", "int8")):
            with self.subTest(options=options), tempfile.TemporaryDirectory() as folder:
                with Server(DEMO_MODEL, *options) as server:
                    expected, (whole, _) = server.complete(**body)["choices"], bytes_loaded(server)
                starts = []
                for _ in range(2):
                    with Server(DEMO_MODEL, "--packed-cache", folder, *options) as server:
                        self.assertEqual(server.complete(**body)["choices"], expected)
                        wait_until(lambda: sum(not file.name.endswith(".part") for file in Path(folder).glob("*/*")) == 5 * 8, 30,
                                   "every expert is in the cache")
                        starts.append(bytes_loaded(server))
                self.assertEqual(starts[0], (whole, 0))
                self.assertEqual(whole - starts[1][0], 5 * 8 * 3 * 192 * 192 * 2, "no expert's tensor was read")
                self.assertGreater(starts[1][1], 0)

    def test_a_cache_that_cannot_be_written_is_an_error_line(self):
        with tempfile.NamedTemporaryFile() as in_the_way, Server(DEMO_MODEL, "--packed-cache", in_the_way.name) as server:
            self.assertEqual(server.get("/v1/cluster")[0], 200)
            self.assertRegex(server.log(), rf"error.*packed cache: {in_the_way.name}")


if __name__ == "__main__":
    unittest.main()
