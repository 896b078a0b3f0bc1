"""Network namespaces as hosts: each has a name, one link to a bridge, and a view of the file system of its own. What a test
does to them ends with it: it runs in namespaces itself."""
import contextlib
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

INSIDE = "EM_TEST_INSIDE_NAMESPACE"
BRIDGE = "em0"
ADDRESS = "10.77.0.1"  # of the bridge; host N has 10.77.0.(1 + N)
# lo of a new namespace is down, and /sys shows the devices of the namespace it was mounted in.
SETUP = "mount -t sysfs sysfs /sys && ip link set lo up"


def unshare(*command):
    return ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--net", "--mount", "--uts", *command]


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done


def make_bridge():
    run("ip", "link", "add", "name", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def remove_bridge():
    run("ip", "link", "del", BRIDGE)


class Host:
    """host<number>: a namespace with one link to the bridge, eth0, and a log of what is started in it."""

    def __init__(self, number, folder):
        self.name = f"host{number}"
        self.address = f"10.77.0.{1 + number}"
        self.port = f"w{number}"  # the bridge's end of the link
        self.log = open(Path(folder) / f"{self.name}.log", "w+", encoding="utf-8", errors="replace")
        self.holder = subprocess.Popen(unshare("sh", "-c", f"{SETUP} && hostname {self.name} && echo up && exec setpriv --pdeathsig KILL sleep infinity"),
                                       stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"up\n":
            raise AssertionError("no namespace")
        run("ip", "link", "add", "name", self.port, "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))
        run("ip", "link", "set", self.port, "master", BRIDGE, "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def enter(self, *command):
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", "--uts", *command]

    def run(self, *command, check=True):
        return run(*self.enter(*command), check=check)

    def start(self, *command):
        return subprocess.Popen(self.enter(*command), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def processes(self):
        """-> pids of all that runs in it, but for the namespace's own"""
        network = os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.holder.pid:
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns" / "net").st_ino == network:
                        found.append(int(entry.name))
        return found

    def close(self):
        for pid in self.processes():  # of a test that failed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "link", "del", self.port, check=False)  # now: the kernel takes its time over namespaces without processes
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()
        self.log.close()


def main(*programs, root=False):
    """unittest's main inside namespaces. Without the right to make them, or without the programs, it says so and passes
    over everything. root: namespaces of users are not enough"""
    if INSIDE in os.environ:
        unittest.main()
    missing = [program for program in programs if not Path(program).exists()]
    reason = f"there is no {' and no '.join(missing)} here" if missing else "only root may" if root and os.geteuid() else ""
    if not reason:
        probe = subprocess.run(unshare("sh", "-c", f"{SETUP} && ip link add name {BRIDGE} type bridge && ip link add name probe0 type veth peer name probe1"),
                               capture_output=True, text=True)
        if probe.returncode:
            reason = f"no network namespaces here: {probe.stderr.strip()}"
    if reason:
        print(f"SKIPPED: {reason}", flush=True)
        return
    os.environ[INSIDE] = "1"
    os.execvp("unshare", unshare("sh", "-c", f'{SETUP} && exec "$@"', "sh", sys.executable, "-B", *sys.argv))
