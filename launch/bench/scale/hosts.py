"""Hosts for workers that come over TCP: network namespaces, each with a name and one link to a bridge. They are made within
a network namespace of this process's own, so that nothing of them is seen outside, and all of it ends with this process."""
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

INSIDE = "EXPERTMESH_SCALE_INSIDE"  # a namespace of its own
NEEDED = ("ip", "unshare", "nsenter", "setpriv", "mount", "hostname")
BRIDGE = "em0"
NETWORK = "10.77.0"  # .1: the coordinator; .1 + n: host n
PORT = 7070          # of the control plane
# lo of a new namespace is down, and /sys shows the devices of the namespace it was mounted in.
SETUP = "mount -t sysfs sysfs /sys && ip link set lo up"
BUILDS = f"{SETUP} && ip link add name {BRIDGE} type bridge && ip link add name probe0 type veth peer name probe1"
NEW = ("unshare", "--net", "--mount", "--uts")
REJOIN_SECONDS = 60  # a worker is started before its server listens


class NoHosts(Exception):
    """What the system has said."""


def refusal():
    """-> why there can be none here; None: there can"""
    if os.geteuid():
        return "only root may make network namespaces"
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        return f"there is no {' and no '.join(missing)} here"
    probe = subprocess.run([*NEW, "sh", "-c", BUILDS], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return f"no network namespaces here: {probe.stderr.strip()}" if probe.returncode else None


def inside():
    return INSIDE in os.environ


def enter():
    """Begins this program anew, in a namespace of its own."""
    os.environ[INSIDE] = "1"
    os.execvp(NEW[0], [*NEW, "sh", "-c", f'{SETUP} && exec "$@"', "sh", sys.executable, "-B", *sys.argv])


def _run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHosts(f"{' '.join(command)}: {done.stderr.strip()}")


def _remove_link(name):
    with contextlib.suppress(NoHosts):  # gone with the namespace of its other end
        _run("ip", "link", "del", name)


class Hosts:
    """So many of them, while it is entered."""

    def __init__(self, count, folder):
        self._count = count
        self._secret = Path(folder) / "secret"
        self._holders = []
        self._stack = contextlib.ExitStack()

    @property
    def server_options(self):
        return ["--remote-workers", self._count, "--interface", BRIDGE, "--secret-file", self._secret]

    def worker_commands(self, program, threads, shared_cores):
        """-> for each host what starts its worker"""
        for holder in self._holders:
            yield ["nsenter", "--target", holder.pid, "--net", "--mount", "--uts", program, "worker", "--join", f"{NETWORK}.1:{PORT}",
                   "--secret-file", self._secret, "--threads", threads, "--rejoin-for", REJOIN_SECONDS, *["--shared-cores"] * shared_cores]

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._secret.touch(0o600)
            self._secret.write_text(secrets.token_hex(16))
            _run("ip", "link", "add", "name", BRIDGE, "type", "bridge")
            stack.callback(_remove_link, BRIDGE)
            _run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            for number in range(1, self._count + 1):
                self._add(number, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _add(self, number, stack):
        holder = subprocess.Popen([*NEW, "sh", "-c", f"{SETUP} && hostname host{number} && echo up && exec setpriv --pdeathsig KILL sleep infinity"],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        stack.callback(holder.stdout.close)
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        if holder.stdout.readline() != b"up\n":
            raise NoHosts("no namespace")
        self._holders.append(holder)
        port = f"w{number}"  # the bridge's end of the link; it goes with the namespace of the other end
        _run("ip", "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        stack.callback(_remove_link, port)  # now: the kernel takes its time over empty namespaces
        _run("ip", "link", "set", port, "master", BRIDGE, "up")
        enter_it = ("nsenter", "--target", str(holder.pid), "--net")
        _run(*enter_it, "ip", "addr", "add", f"{NETWORK}.{1 + number}/24", "dev", "eth0")
        _run(*enter_it, "ip", "link", "set", "eth0", "up")
