"""The coordinator is killed under load: clients see their connections end, its processes go, and a new one is up in seconds."""
import http.client
import os
import signal
import tempfile
import threading
import time
import unittest
from pathlib import Path

from crowd import DEMO_MODEL, Server, answer, descendants, job, quiet_answers, wait_until, workers_of
from harness import is_alive

ROUNDS = int(os.environ.get("EM_FAULT_ROUNDS", "2"))
CLIENTS = 8


def own_folders():
    """What the launcher keeps for a coordinator's MPI processes."""
    return {path.name for path in Path(tempfile.gettempdir()).glob(f"expertmesh-*{os.getuid()}.*")}


class CoordinatorDeathTest(unittest.TestCase):
    def test_nothing_is_left_and_a_new_one_takes_over(self):
        shm = set(os.listdir("/dev/shm"))
        expected = None
        for _ in range(ROUNDS):
            server = Server(DEMO_MODEL, "--workers", 3)
            expected = expected or quiet_answers(server)[0]
            self.assertEqual(answer(server, job(0))[0], expected)
            pids = [*descendants(server.pid), *(worker["pid"] for worker in workers_of(server))]
            ends = []

            def client(ends=ends, server=server):
                try:
                    while True:
                        answer(server, job(3))
                except (http.client.HTTPException, ConnectionError, AssertionError) as error:
                    ends.append(error)

            threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            wait_until(lambda server=server: server.metric("num_requests_running") == CLIENTS, 60, "all stream")
            os.kill(server.pid, signal.SIGKILL)
            killed = time.monotonic()
            server.process.wait()
            for thread in threads:
                thread.join(20)
            self.assertEqual(len(ends), CLIENTS, "every client saw its connection end")
            wait_until(lambda pids=pids: not any(map(is_alive, pids)), 5, "its processes are gone")
            print(f"{len(pids)} processes gone {time.monotonic() - killed:.2f} s after the kill", flush=True)
            server.process.stdout.close()

        started = time.monotonic()
        with Server(DEMO_MODEL, "--workers", 3) as server:
            print(f"the next coordinator answers {time.monotonic() - started:.2f} s after its start", flush=True)
            self.assertEqual(answer(server, job(0))[0], expected)
            # A start removes what coordinators that are gone have left.
            self.assertTrue(all(is_alive(int(folder.rpartition(".")[2])) for folder in own_folders()), own_folders())
        self.assertEqual(set(os.listdir("/dev/shm")) - shm, set())


if __name__ == "__main__":
    unittest.main()
