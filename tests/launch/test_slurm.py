"""launch/slurm/expertmesh.sbatch on a real Slurm: munged, slurmctld, and a slurmd on each of three hosts, which are network
namespaces. The job serves, ends as it is asked to, and says what is wrong; several tasks that would each be a server alone
are refused."""
import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import namespaces  # noqa: E402
from harness import ANSWER_SECONDS, DEMO_MODEL, EXPERTMESH, REPOSITORY, has_failed, is_alive, wait_until  # noqa: E402
from namespaces import run  # noqa: E402

GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]
MUNGED, SLURMCTLD, SLURMD = (f"/usr/sbin/{name}" for name in ("munged", "slurmctld", "slurmd"))
SCRIPT = REPOSITORY / "launch" / "slurm" / "expertmesh.sbatch"
PORT = 8000
NODES = 3
CONFIG = """
ClusterName=test
SlurmctldHost=host0({address})
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class SlurmTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.folder.chmod(0o755)  # munged wants to see it
        run("hostname", "host0")
        namespaces.make_bridge()
        cls.addClassCleanup(namespaces.remove_bridge)
        (cls.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{1 + number} host{number}\n" for number in range(NODES + 1)))
        run("mount", "--bind", str(cls.folder / "hosts"), "/etc/hosts")
        for name in ("state", *(f"spool-host{number}" for number in range(1, NODES + 1))):
            (cls.folder / name).mkdir()
        # Not used, but slurmd wants to know, and does not see the machine's own in here.
        (cls.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (cls.folder / "slurm.conf").write_text(CONFIG.format(folder=cls.folder, address=namespaces.ADDRESS) + "".join(
            f"NodeName=host{number} NodeAddr=10.77.0.{1 + number} CPUs=2\n" for number in range(1, NODES + 1)))
        os.environ["SLURM_CONF"] = str(cls.folder / "slurm.conf")
        cls.start_daemon(MUNGED, "--foreground", "--force", f"--socket={cls.folder}/munge.socket", f"--key-file={cls.munge_key()}",
                         f"--pid-file={cls.folder}/munged.pid", f"--log-file={cls.folder}/munged.log", f"--seed-file={cls.folder}/munged.seed")
        wait_until((cls.folder / "munge.socket").exists, 20, "munged listens")
        cls.start_daemon(SLURMCTLD, "-D", "-c")
        cls.hosts = []
        for number in range(1, NODES + 1):
            host = namespaces.Host(number, cls.folder)
            cls.addClassCleanup(host.close)
            host.run("mount", "-t", "tmpfs", "tmpfs", "/var/tmp")
            cls.hosts.append(host)
            cls.start_daemon(*host.enter(SLURMD, "-D"))
        wait_until(lambda: run("sinfo", "--noheader", "--format=%T %D", check=False).stdout.split() == ["idle", str(NODES)], 60, "all nodes are idle")

    @classmethod
    def munge_key(cls):
        key = cls.folder / "munge.key"
        key.touch(0o600)
        key.write_text(secrets.token_hex(64))
        return key

    @classmethod
    def start_daemon(cls, *command):
        log = cls.enterClassContext(open(cls.folder / "daemons.log", "a", encoding="utf-8"))
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def end():
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        cls.addClassCleanup(end)

    def tearDown(self):
        if has_failed(self):
            print((self.folder / "daemons.log").read_text(errors="replace")[-4000:], file=sys.stderr)

    def submit(self, *arguments, nodes=NODES, options=()):
        """-> job id"""
        # As a user's shell would: nothing of this test but the program and the temporary folder.
        environment = {"PATH": os.environ["PATH"], "HOME": "/root", "SLURM_CONF": os.environ["SLURM_CONF"], "EXPERTMESH": EXPERTMESH, "TMPDIR": "/var/tmp"}
        done = subprocess.run(["sbatch", "--parsable", f"--nodes={nodes}", f"--chdir={self.folder}", "--output=%j.out", *options, str(SCRIPT), *map(str, arguments)],
                              env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def output(self, job):
        file = self.folder / f"{job}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def job(self, job):
        """-> {field: text}"""
        words = run("scontrol", "show", "job", "--oneliner", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def is_over(self, job):
        return self.job(job)["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

    def check_end(self, job, state, code):
        wait_until(lambda: self.is_over(job), 90, "the job ends")
        fields = self.job(job)
        self.assertEqual((fields["JobState"], fields["ExitCode"].split(":")[0]), (state, str(code)), self.output(job))
        for host in self.hosts:
            wait_until(lambda host=host: not self.ours(host), 30, f"nothing runs on {host.name}")
            # A coordinator's Open MPI leaves a folder, which the next start removes.
            wait_until(lambda host=host: not [name for name in host.run("ls", "-A", "/var/tmp").stdout.split() if not name.startswith("expertmesh-mpi-")],
                       30, f"nothing is left on {host.name}")

    def ours(self, host):
        names = ("expertmesh", "orted", "ompi-server")
        return [pid for pid in host.processes() if is_alive(pid) and Path(f"/proc/{pid}/comm").read_text().startswith(names)]

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.hosts[0].address, PORT, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def serve(self, *arguments, options=()):
        job = self.submit(DEMO_MODEL, "--dtype", "float32", "--threads", 1, "--host", "0.0.0.0", "--port", PORT, *arguments, options=options)
        wait_until(lambda: "ExpertMesh is ready" in self.output(job) or self.is_over(job), 90, "the job serves")
        self.assertIn("ExpertMesh is ready", self.output(job))
        return job

    def check_tokens(self):
        status, answer = self.request("POST", "/v1/completions", {"prompt": GOLDEN["prompt"], "max_tokens": len(GOLDEN["greedy_ids"]),
                                                                  "temperature": 0, "ignore_eos": True, "return_token_ids": True})
        self.assertEqual((status, answer["choices"][0]["token_ids"]), (200, GOLDEN["greedy_ids"]))

    def test_the_jobs_nodes_serve_until_it_is_asked_to_end(self):
        job = self.serve()
        workers = self.request("GET", "/v1/cluster")[1]["workers"]
        self.assertEqual(sorted(worker["host"] for worker in workers), ["host2", "host3"])
        self.check_tokens()
        run("scancel", "--batch", "--signal=TERM", job)
        self.check_end(job, "COMPLETED", 0)

    def test_a_cluster_file_and_a_cancelled_job(self):
        secret = self.folder / "secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_hex(16))
        file = self.folder / "cluster.json"
        file.write_text(json.dumps({"interface": "eth0", "secret_file": str(secret), "coordinator": {"host": "host1", "address": self.hosts[0].address},
                                    "workers": [{"host": "host1", "threads": 1, "capacity": 1},
                                                {"host": "host3", "threads": 1, "capacity": 1, "count": 2}]}))
        job = self.serve("--cluster", file)
        workers = self.request("GET", "/v1/cluster")[1]["workers"]
        self.assertEqual(sorted((worker["host"], worker["remote"]) for worker in workers), [("host1", False), ("host3", True), ("host3", True)])
        self.check_tokens()
        run("scancel", job)
        wait_until(lambda: self.is_over(job), 90, "the job ends")
        self.check_end(job, "CANCELLED", self.job(job)["ExitCode"].split(":")[0])

    def test_tasks_of_a_node_are_its_workers(self):
        job = self.serve(options=["--nodes=2", "--ntasks-per-node=2"])
        self.assertEqual([worker["host"] for worker in self.request("GET", "/v1/cluster")[1]["workers"]], ["host2", "host2"])
        run("scancel", "--batch", "--signal=TERM", job)
        self.check_end(job, "COMPLETED", 0)

    def test_what_is_wrong_is_said(self):
        job = self.submit(DEMO_MODEL, nodes=1)
        self.check_end(job, "FAILED", 2)
        self.assertIn("the Slurm job has one node", self.output(job))
        job = self.submit(DEMO_MODEL, "--program", "/nowhere/expertmesh")
        self.check_end(job, "FAILED", 1)
        self.assertRegex(self.output(job), "expertmesh up: host host[23]: there is no /nowhere/expertmesh that runs")

    def test_tasks_that_would_each_be_a_server_are_refused(self):
        for options in (["serve", str(DEMO_MODEL), "--port", "0"], ["up", "--slurm", str(DEMO_MODEL)]):
            done = run("timeout", "60", "srun", "--nodes=2", "--ntasks=4", "--overcommit", "--mpi=none", EXPERTMESH, *options, check=False)
            self.assertNotEqual(done.returncode, 0)
            said = [line for line in done.stderr.splitlines() if line.startswith("expertmesh: ")]
            self.assertEqual(len(said), 4, done.stderr)
            for line in said:
                self.assertIn("this is one of 4 tasks", line)
                self.assertIn("sbatch --nodes=N launch/slurm/expertmesh.sbatch MODEL", line)


if __name__ == "__main__":
    namespaces.main(MUNGED, SLURMCTLD, SLURMD, "/usr/bin/sbatch", root=True)
