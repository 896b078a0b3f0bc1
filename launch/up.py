#!/usr/bin/env python3
"""`expertmesh up`: the coordinator here, and the workers of other hosts by ssh, or by srun inside a Slurm job. Each host is
a child process that runs `expertmesh worker --cluster -` there: the secret and the cluster file go in on its standard
input, which then stays open for as long as the workers are wanted. So nothing but the program has to be on the hosts,
and whatever ends this process ends them."""
import argparse
import fcntl
import json
import os
import queue
import re
import secrets
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BAD_COMMAND = 2  # the exit code of whatever will not work the second time either
STOP_SECONDS = 30
AGAIN_SECONDS = 5
MOST_OF_A_HOST = 256  # as a cluster file has it
SSH = "ssh -T -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
SRUN = "srun --quiet --nodes=1 --ntasks=1 --ntasks-per-node=1 --overlap --cpu-bind=none --nodelist"
# Workers are told by their standard input when the coordinator is gone: how long they look for one does not matter.
REJOIN_SECONDS = 86400


class CommandError(Exception):
    """What the user has to put right."""


def say(text):
    print(f"expertmesh up: {text}", file=sys.stderr, flush=True)


# ---- who runs where: a cluster file's content

def hosts_in(path):
    """-> {host: number of workers} of a file as MPI has them: a host a line, `slots=N` behind it for N workers"""
    hosts = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = [word for word in words[1:] if not re.fullmatch(r"slots=[1-9]\d{0,2}", word)]
        if slots:
            raise CommandError(f"{path}:{number}: '{slots[0]}': only slots=N is known")
        if words[1:] and int(words[1][len("slots="):]) > MOST_OF_A_HOST:
            raise CommandError(f"{path}:{number}: '{words[1]}': there may be {MOST_OF_A_HOST}")
        if words[0] in hosts:
            raise CommandError(f"{path}:{number}: '{words[0]}' is there twice")
        hosts[words[0]] = int(words[1][len("slots="):]) if words[1:] else 1
    if not hosts:
        raise CommandError(f"{path}: there are no hosts in it")
    return hosts


def hosts_of_job():
    """-> {node: number of workers}, as many as sbatch's --ntasks-per-node, of the Slurm job's nodes but for this one"""
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise CommandError("--slurm: this is no Slurm job: sbatch launch/slurm/expertmesh.sbatch MODEL")
    nodes = output_of("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    here = os.environ.get("SLURMD_NODENAME", nodes[0])
    count = int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
    others = {node: count for node in nodes if node != here}
    if not others:
        raise CommandError("the Slurm job has one node: sbatch --nodes=N with one more than there are to be workers, or "
                           "expertmesh serve --workers N for workers on this node")
    return others


def output_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise CommandError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def local_address_towards(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError as error:
            raise CommandError(f"host {host}: {error.strerror}") from None
        return probe.getsockname()[0]


def address_of(interface):
    """-> its IPv4 address, None if it has none"""
    SIOCGIFADDR = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def cluster_of(hosts, interface, name_of, folder):
    """The file for a worker on each slot; the coordinator's own host is `localhost`. name_of: host -> its network name"""
    cluster = {"coordinator": {"host": "localhost"}, "workers": [{"host": host, "count": count} for host, count in hosts.items()]}
    others = [host for host in hosts if host != "localhost"]
    if not others:
        return cluster
    if interface:
        address = address_of(interface)
        if address is None:
            raise CommandError(f"--interface {interface}: there is none with an IPv4 address here")
    else:
        address = local_address_towards(name_of(others[0]))
        interface = next((name for _, name in socket.if_nameindex() if address_of(name) == address), None)
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32))
    cluster["coordinator"]["address"] = address
    return {"interface": interface, "secret_file": str(secret), **cluster}


def read_cluster(path):
    """The coordinator judges the file; here only what is used has to be there."""
    try:
        cluster = json.loads(Path(path).read_text())
        others = {worker["host"] for worker in cluster["workers"]} - {cluster["coordinator"]["host"]}
        return cluster, sorted(others)
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path}: not a cluster file: {error!r}") from None


# ---- processes

def start(command, **options):
    """A child in a session of its own, so that Ctrl-C reaches this process alone; it is asked to end when this one dies."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], start_new_session=True, text=True,
                            errors="replace", stdout=subprocess.PIPE, **options)


class Host:
    """The workers of one other host. What happens to them comes as (host, what) into `events`."""

    def __init__(self, name, shell, program, version, stdin, events):
        self.name = name
        self._shell = shell
        self._program = program
        self._version = version
        self._stdin = stdin
        self._events = events

    def start(self):
        program, name = shlex.quote(self._program), shlex.quote(self.name)
        remote = f"{program} --version && exec {program} worker --cluster - --host {name} --rejoin-for {REJOIN_SECONDS}"
        in_job = self._shell[0] == "srun"
        command = [*self._shell, self.name, *(["sh", "-c"] if in_job else []), remote]
        self._greeted, self._objection, self._last = False, "", ""
        self.process = start(command, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._follow, args=(self.process,), daemon=True).start()

    def _follow(self, process):
        for line in process.stdout:
            line = line.rstrip()
            if not self._greeted and re.fullmatch(r"expertmesh \d\S*", line):
                self._greet(process, line)
            elif line:
                self._last = line
                print(f"{self.name}: {line}", file=sys.stderr, flush=True)
        code = process.wait()
        self._events.put((self, code))

    # Whoever is of our build gets the secret.
    def _greet(self, process, version):
        self._greeted = True
        if version != self._version:
            self._objection = f"another build: {self._program} there is {version}, here it is {self._version}"
            process.terminate()
            return
        try:
            process.stdin.write(self._stdin)
            process.stdin.flush()
        except OSError:
            pass  # its end says why

    def failure(self, code):
        """Why it ended; empty: it was asked to."""
        last = f": {self._last}" if self._last else ""
        if self._objection:
            return self._objection
        if not self._greeted and code in (126, 127):
            return f"there is no {self._program} that runs{last}"
        if not self._greeted or code == 255:
            return f"{self._shell[0]} failed (exit code {code}){last}"
        return f"its workers ended with exit code {code}{last}" if code else ""

    def ask_to_end(self):
        try:
            self.process.stdin.close()
        except OSError:
            pass

    def end(self):
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"host {self.name}: did not end within {STOP_SECONDS} s")
            self.process.kill()


def run(coordinator_command, hosts, events):
    """Until the coordinator ends -> exit code"""
    coordinator = start(coordinator_command, stdin=subprocess.DEVNULL)

    def follow():
        for line in coordinator.stdout:
            print(line, end="", flush=True)
            events.put((coordinator, None))

    # Not one thread: what the coordinator started may hold its standard output a little longer.
    for what in (follow, lambda: events.put((coordinator, coordinator.wait()))):
        threading.Thread(target=what, daemon=True).start()
    for host in hosts:
        host.start()
    ready, ending, status = False, False, None
    while True:
        who, what = events.get()
        if isinstance(who, Host):
            if what is None:
                if not ending:
                    who.start()
                continue
            failure = who.failure(what) or ("" if ready else "its workers ended before the server was ready")
            if ending or not failure:
                continue
            say(f"host {who.name}: {failure}")
            if not ready:
                ending, status = True, what if what == BAD_COMMAND else 1
                coordinator.terminate()
            elif what != BAD_COMMAND:  # the others have its experts: nobody waits for it
                threading.Timer(AGAIN_SECONDS, events.put, [(who, None)]).start()
        elif who is coordinator and what is None:
            ready = True  # all it says on standard output is that it is
        elif who is coordinator:
            break
        else:
            ending = True
            coordinator.send_signal(signal.SIGTERM)
    for host in hosts:
        host.ask_to_end()
    for host in hosts:
        host.end()
    return status if status is not None else what if what >= 0 else 128 - what


def main(program, arguments):
    parser = argparse.ArgumentParser(
        prog="expertmesh up", allow_abbrev=False, usage="expertmesh up (--cluster FILE | --hosts FILE | --slurm) MODEL [options of serve]",
        description="Starts the coordinator here and the workers on the other hosts, and ends them together.")
    parser.add_argument("--cluster", metavar="FILE", help="cluster file; the names of its hosts are those that ssh or Slurm know")
    parser.add_argument("--hosts", metavar="FILE", help="a host a line, `slots=N` behind it for N workers there [1]; localhost: workers here")
    parser.add_argument("--slurm", action="store_true", help="srun in place of ssh; without --cluster as many workers on each other node of the job as --ntasks-per-node says")
    parser.add_argument("--interface", help="with --hosts and --slurm: network interface of the workers' traffic [the one to the first host]")
    parser.add_argument("--ssh", metavar="COMMAND", default=SSH, help=f"what runs a command on a host [{SSH}]")
    parser.add_argument("--program", metavar="PATH", default=program, help=f"this program on the other hosts [{program}]")
    options, serve = parser.parse_known_args(arguments)
    if options.cluster and (options.hosts or options.interface):
        raise CommandError("--cluster says what --hosts and --interface say")
    if not (options.cluster or options.hosts or options.slurm) or (options.hosts and options.slurm):
        raise CommandError("one of --cluster FILE, --hosts FILE and --slurm is required")
    shell = shlex.split(SRUN if options.slurm else options.ssh)

    def name_of(host):
        if options.slurm:
            return host
        return re.search(r"^hostname (.*)$", output_of(*shell, "-G", host), re.MULTILINE)[1]

    with tempfile.TemporaryDirectory(prefix="expertmesh-up-") as folder:
        file = options.cluster
        if not file:
            hosts = hosts_in(options.hosts) if options.hosts else hosts_of_job()
            file = Path(folder) / "cluster.json"
            file.write_text(json.dumps(cluster_of(hosts, options.interface, name_of, Path(folder)), indent=1))
        cluster, others = read_cluster(file)
        stdin = ""
        if others:
            secret_file = cluster.get("secret_file", "")
            secret = Path(secret_file).read_text().split()
            if not secret:
                raise CommandError(f"{secret_file}: there is no secret in it")
            stdin = f"{secret[0]}\n{json.dumps({**cluster, 'secret_file': 'secret'})}\n"
        version = output_of(program, "--version").strip()
        events = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: events.put((None, None)))
        return run([program, "serve", *serve, "--cluster", str(file)],
                   [Host(name, shell, options.program, version, stdin, events) for name in others], events)


def exit_code_of(work, say):
    """-> what work() gives. What is wrong with the command is said in a line."""
    try:
        return work()
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
    except CommandError as error:
        say(error)
    return BAD_COMMAND


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main(sys.argv[1], sys.argv[2:]), say))
