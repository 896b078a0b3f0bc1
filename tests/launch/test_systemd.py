"""launch/systemd, run by a systemd of the test's own: process 1 of a process namespace, with nothing but these units, a
cgroup, /etc, /run and /tmp of its own. The units are hardened, drain, come back after a death, and give up where trying
again is no use."""
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import namespaces  # noqa: E402
from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY, Server, has_failed, wait_until  # noqa: E402
from namespaces import run  # noqa: E402

GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]
SYSTEMD = "/lib/systemd/systemd"
UNITS = REPOSITORY / "launch" / "systemd"
PORT = 8000
MOST_EXPOSURE = 25  # tenths, of systemd-analyze's 0 (nothing may be done) to 100
# The program where the units look for it: the tree it lies in, whatever the rights of the folders above it.
PROGRAM = Path(EXPERTMESH).resolve()
SETUP = f"""
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir "$1/etc" && cp -a /etc/. "$1/etc" && mount --bind "$1/etc" /etc
mkdir "$1/opt" && mount --bind "$1/opt" /opt && mkdir -p /opt/tree /opt/model
mount --bind '{PROGRAM.parent.parent}' /opt/tree && mount --bind '{DEMO_MODEL}' /opt/model
mkdir "$1/local" && mount --bind "$1/local" /usr/local/bin
ln -s '/opt/tree/{PROGRAM.parent.name}/expertmesh' /usr/local/bin/expertmesh
mkdir -p "$1/lib/expertmesh" && ln -s /opt/model "$1/lib/expertmesh/model" && mount --bind "$1/lib" /var/lib
systemd-sysusers '{UNITS}/sysusers.conf'
install -d -o expertmesh -m 700 /etc/expertmesh
install -o expertmesh -m 600 "$1/secret" /etc/expertmesh/secret
mount -t tmpfs tmpfs /run && mkdir -p /run/units /run/none /run/systemd/system
cp '{UNITS}'/*.service /run/units
for target in sysinit basic shutdown multi-user network-online; do
  printf '[Unit]\\nDefaultDependencies=no\\n' >/run/units/$target.target
done
for unit in expertmesh.service expertmesh-worker@.service; do
  mkdir /run/units/$unit.d && printf '[Service]\\nStandardOutput=append:/run/log\\nStandardError=append:/run/log\\n' >/run/units/$unit.d/log.conf
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
touch /run/set-up
export SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none container=test
exec {SYSTEMD} --system --unit=basic.target --log-target=console --show-status=no
"""


class Served(Server):
    """A server that somebody else started and ends."""

    def __init__(self):
        self.port = PORT

    def close(self, failed=False):
        pass


class SystemdTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)
        secret = self.folder / "secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_hex(16))
        cgroups = self.folder / "cgroups"
        cgroups.mkdir()
        mounted = run("mount", "-t", "cgroup2", "cgroup2", str(cgroups), check=False)
        if mounted.returncode:
            print(f"SKIPPED: no cgroups here: {mounted.stderr.strip()}", flush=True)
            self.skipTest("no cgroups")
        self.addCleanup(run, "umount", str(cgroups))
        self.cgroup = cgroups / f"expertmesh-test-{os.getpid()}"
        self.cgroup.mkdir()
        self.addCleanup(self.remove_cgroup)
        root = self.folder / "root"
        root.mkdir()
        shutil.copyfile(secret, root / "secret")
        self.log = self.enterContext(open(self.folder / "systemd.log", "w+", encoding="utf-8", errors="replace"))
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--cgroup", "--mount-proc"]
        self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.cgroup), *unshare, "sh", "-c", SETUP, "sh", str(root)],
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.addCleanup(self.stop)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def pid():
            self.assertIsNone(self.process.poll(), self.text())
            below = children.read_text().split()
            return int(below[0]) if below and Path(f"/proc/{below[0]}/comm").read_text() == "systemd\n" else None

        self.pid = wait_until(pid, 30, "systemd is there")
        wait_until(lambda: self.systemctl("is-system-running", check=False).stdout.strip() in ("running", "degraded"), 30, "systemd is up")
        self.server = Served()

    def stop(self):
        if has_failed(self):
            print(self.text(), file=sys.stderr)
        self.process.kill()  # and with --kill-child what it started
        self.process.wait()

    def remove_cgroup(self):
        for folder in sorted(self.cgroup.rglob("*"), reverse=True):
            if folder.is_dir():
                wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), 20, "the cgroup is empty")
                folder.rmdir()
        self.cgroup.rmdir()

    def text(self):
        self.log.seek(0)
        return self.log.read() + self.enter("cat", "/run/log", check=False).stdout

    def enter(self, *command, check=True):
        return run("nsenter", "--target", str(getattr(self, "pid", self.process.pid)), "--mount", "--pid", "--ipc", *command, check=check)

    def systemctl(self, *arguments, check=True):
        return self.enter("systemctl", *arguments, check=check)

    def show(self, unit):
        """-> {property: text}"""
        lines = self.systemctl("show", unit, "--property=ActiveState,Result,ExecMainStatus,NRestarts,MainPID,ControlGroup").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def write(self, path, text):
        (Path(f"/proc/{self.pid}/root") / path.lstrip("/")).write_text(text)

    def is_ready(self):
        with contextlib.suppress(OSError):
            return self.server.get("/ready")[0] == 200
        return False

    def start(self, *options):
        self.write("/etc/expertmesh/serve.conf", "\n".join((f"port = {PORT}", "dtype = float32", "threads = 1", *options, "")))
        self.systemctl("start", "expertmesh")
        wait_until(self.is_ready, 60, "it serves")

    def pids(self, unit):
        """-> as this test sees them"""
        return [int(pid) for pid in (self.cgroup / self.show(unit)["ControlGroup"].lstrip("/") / "cgroup.procs").read_text().split()]

    def stop_and_check(self, unit):
        self.systemctl("stop", unit)
        shown = self.show(unit)
        self.assertEqual((shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]), ("inactive", "success", "0"))

    def check_tokens(self):
        answer = self.server.complete(prompt=GOLDEN["prompt"], max_tokens=len(GOLDEN["greedy_ids"]), temperature=0, ignore_eos=True, return_token_ids=True)
        self.assertEqual(answer["choices"][0]["token_ids"], GOLDEN["greedy_ids"])

    def test_the_units_are_in_order(self):
        for unit in ("expertmesh.service", "expertmesh-worker@there.service"):
            done = self.enter("env", "SYSTEMD_UNIT_PATH=/run/units", "systemd-analyze", "verify", unit, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            done = self.enter("systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", f"/run/units/{unit.replace('there', '')}", check=False)
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_it_serves_drains_and_comes_back(self):
        self.start("workers = 2")
        self.check_tokens()
        pids = self.pids("expertmesh")
        self.assertGreaterEqual(len(pids), 4)  # coordinator, Open MPI's daemon, two workers
        user = next(int(line.split(":")[2]) for line in Path(f"/proc/{self.pid}/root/etc/passwd").read_text().splitlines() if line.startswith("expertmesh:"))
        for pid in pids:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            self.assertEqual((status["Uid"].split()[0], status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)), (str(user), "1", "2", 0))
        coordinator = self.show("expertmesh")["MainPID"]
        self.enter("kill", "-KILL", coordinator)
        wait_until(lambda: self.show("expertmesh")["NRestarts"] == "1" and self.is_ready(), 60, "it is back")
        self.check_tokens()
        # What runs is finished: a stream that has begun has all its tokens.
        with self.server.stream("/v1/completions", {"prompt": "Once", "max_tokens": 100, "temperature": 0, "ignore_eos": True}) as events:
            next(events)
            stopping = threading.Thread(target=self.systemctl, args=("stop", "expertmesh"))
            stopping.start()
            last = [event for event in events if event["choices"]][-1]
        stopping.join()
        self.assertEqual(last["choices"][0]["finish_reason"], "length")
        shown = self.show("expertmesh")
        self.assertEqual((shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]), ("inactive", "success", "0"))

    def test_workers_of_a_cluster_file(self):
        self.write("/etc/expertmesh/cluster.json", json.dumps({
            "interface": "lo", "secret_file": "/etc/expertmesh/secret", "coordinator": {"host": "here", "address": "127.0.0.1"},
            "workers": [{"host": "there", "threads": 1, "capacity": 1, "count": 2}]}))
        self.systemctl("start", "expertmesh-worker@there")
        self.start("cluster = /etc/expertmesh/cluster.json")
        self.assertEqual([worker["remote"] for worker in self.server.get("/v1/cluster")[1]["workers"]], [True, True])
        self.check_tokens()
        self.stop_and_check("expertmesh-worker@there")
        self.check_tokens()
        self.stop_and_check("expertmesh")

    def test_what_will_not_get_better_is_not_tried_again(self):
        self.write("/etc/expertmesh/serve.conf", "colour = blue\n")
        self.systemctl("start", "expertmesh")
        wait_until(lambda: self.show("expertmesh")["ActiveState"] == "failed", 30, "it has failed")
        shown = self.show("expertmesh")
        self.assertEqual((shown["NRestarts"], shown["ExecMainStatus"]), ("0", "2"), self.text())


if __name__ == "__main__":
    namespaces.main(SYSTEMD, "/usr/bin/systemd-sysusers", root=True)
