"""Groups of unequal workers: what each one holds goes by its capacity. And clusters described by a file: the coordinator
starts the workers of its own host, the others join by themselves, here by way of the loopback interface."""
import contextlib
import json
import secrets
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, Server, free_ports, wait_until

NUM_EXPERTS = 5 * 8
GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]


def experts_of(server):
    """-> [workers] how many experts each one serves; none while they move"""
    cluster = server.get("/v1/cluster")[1]
    settled = not cluster["placement"]["moving"] and all(worker["state"] == "serving" for worker in cluster["workers"])
    return [worker["experts"] for worker in cluster["workers"]] if settled else None


class ClusterTest(unittest.TestCase):
    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.file = Path(folder) / "cluster.json"
        self.secret = Path(folder) / "secret"
        self.secret.write_text(secrets.token_hex(16))
        self.secret.chmod(0o600)
        self.port = free_ports(1)

    @contextlib.contextmanager
    def worker(self, *arguments):
        """A launcher that looks for its coordinator until it is there, and is asked to end afterwards."""
        process = subprocess.Popen([EXPERTMESH, "worker", *map(str, arguments), "--rejoin-for", "60"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.terminate()
            log = process.communicate(timeout=60)[1]
            self.assertEqual(process.returncode, 0, log)

    def write(self, **changes):
        self.file.write_text(json.dumps({
            "interface": "lo", "control_port": self.port, "secret_file": str(self.secret),
            "coordinator": {"host": "here", "address": "127.0.0.1"},
            "workers": [{"host": "here", "threads": 1, "capacity": 1}, {"host": "there", "threads": 1, "capacity": 3, "count": 2}],
            **changes}))

    def check_tokens(self, server):
        answer = server.complete(prompt=GOLDEN["prompt"], max_tokens=len(GOLDEN["greedy_ids"]), temperature=0, ignore_eos=True,
                                 return_token_ids=True)
        self.assertEqual(answer["choices"][0]["token_ids"], GOLDEN["greedy_ids"])

    def test_a_worker_with_three_times_the_capacity_holds_three_times_the_experts(self):
        with Server(DEMO_MODEL, "--dtype", "float32", "--workers", 1, "--worker-capacity", 1, "--interface", "lo", "--control-port",
                    self.port, "--secret-file", self.secret) as server:
            self.assertEqual(experts_of(server), [NUM_EXPERTS])
            with self.worker("--join", f"127.0.0.1:{self.port}", "--secret-file", self.secret, "--threads", 1, "--capacity", 3):
                wait_until(lambda: experts_of(server) == [NUM_EXPERTS // 4, 3 * NUM_EXPERTS // 4], 60, "a quarter and three")
                self.assertEqual([worker["capacity"] for worker in server.get("/v1/cluster")[1]["workers"]], [1, 3])
                self.check_tokens(server)
            wait_until(lambda: server.get("/v1/cluster")[1]["workers"][0]["experts"] == NUM_EXPERTS, 60, "all are here again")
            self.check_tokens(server)

    def test_about_equal_capacities_are_an_even_split(self):
        with Server(DEMO_MODEL, "--workers", 2) as server:  # measured
            capacities = [worker["capacity"] for worker in server.get("/v1/cluster")[1]["workers"]]
            self.assertEqual(experts_of(server), [NUM_EXPERTS // 2, NUM_EXPERTS // 2])
            self.assertGreater(capacities[0], 0)
            self.assertEqual(capacities[0], capacities[1], "workers of one host that are alike have one measure")

    def test_a_file_says_who_runs_where(self):
        self.write()
        with self.worker("--cluster", self.file, "--host", "there"), \
                Server(DEMO_MODEL, "--dtype", "float32", "--cluster", self.file) as server:
            wait_until(lambda: sorted(experts_of(server) or []) == [5, 15, 20], 60, "one, three and four of every seven, whole experts")
            workers = server.get("/v1/cluster")[1]["workers"]
            self.assertEqual([worker["remote"] for worker in workers], [False, True, True])
            self.assertEqual([worker["capacity"] for worker in workers], [1, 3, 3])
            self.check_tokens(server)

    def test_a_file_of_one_host_needs_no_network(self):
        self.file.write_text(json.dumps({"coordinator": {"host": "here"},
                                         "workers": [{"host": "here", "capacity": 3}, {"host": "here", "capacity": 1, "threads": 1}]}))
        with Server(DEMO_MODEL, "--dtype", "float32", "--cluster", self.file) as server:
            self.assertEqual(experts_of(server), [3 * NUM_EXPERTS // 4, NUM_EXPERTS // 4])
            self.assertEqual(server.get("/v1/cluster")[1]["placement"]["moves"], 0)
            self.check_tokens(server)

    def refusal(self, *command):
        done = subprocess.run([EXPERTMESH, *map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(done.returncode, 2, done.stderr)
        return done.stderr

    def test_what_does_not_fit_is_refused(self):
        serve = ("serve", DEMO_MODEL, "--port", 0, "--cluster", self.file)
        self.assertIn(str(self.file), self.refusal(*serve))
        self.write(colour="blue")
        self.assertIn(f"{self.file}.colour: unknown field", self.refusal(*serve))
        self.write()
        self.assertIn("--workers", self.refusal(*serve, "--workers", 1))
        for host, text in (("here", "starts its workers itself"), ("nowhere", "no workers for host 'nowhere'")):
            self.assertIn(text, self.refusal("worker", "--cluster", self.file, "--host", host))
        self.write(workers=[{"host": "here", "devices": ["cpu", "cuda:0"]}, {"host": "there"}])
        self.assertIn("--allow-mixed-numerics", self.refusal(*serve))
        for join, wrong in (("A", "A"), ("A:0", "A:0"), ("A:1,,B:1", ""), ("A:1,", ""), ("A:1,B", "B")):
            self.assertIn(f"--join: expected HOST:PORT, got '{wrong}'", self.refusal("worker", "--join", join, "--secret-file", self.secret))
        self.assertIn("--join: A:1 is there twice", self.refusal("worker", "--join", "A:1,A:1", "--secret-file", self.secret))
        self.assertIn("there are no workers", self.refusal("serve", DEMO_MODEL, "--port", 0, "--worker-capacity", 2))
        self.assertIn("--capacity", self.refusal("worker", "--join", "A:1", "--secret-file", self.secret, "--capacity", "nan"))
        for option, value in (("worker-capacity", "nan"), ("min-step-rate", "nan"), ("quantization", "1"), ("transport", "INT8")):
            self.assertIn(f"--{option}", self.refusal("serve", DEMO_MODEL, "--workers", 1, f"--{option}", value))


if __name__ == "__main__":
    unittest.main()
