"""`expertmesh up`: the coordinator here, workers by ssh on other hosts, which are network namespaces with Debian's sshd in
them. They serve together, end together, and what is wrong with a host is said by its name."""
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import namespaces  # noqa: E402
from harness import DEMO_MODEL, EXPERTMESH, Server, descendants, is_alive, wait_until  # noqa: E402
from namespaces import BRIDGE, run  # noqa: E402

GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]
SSHD = "/usr/sbin/sshd"
SERVE = ("--dtype", "float32", "--threads", 1)


class Up(Server):
    SUBCOMMAND = ("up",)


class SshHost(namespaces.Host):
    """A host that one logs in to by key."""

    def __init__(self, number, folder):
        super().__init__(number, folder)
        # What sshd and the workers write stays in here: /run/sshd, and the temporary folders that must not be left behind.
        self.run("sh", "-c", "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && mount -t tmpfs tmpfs /var/tmp")
        config = folder / f"{self.name}.sshd"
        config.write_text(f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nPidFile none\nUsePAM no\n"
                          "PasswordAuthentication no\nStrictModes no\nPermitRootLogin yes\nSetEnv TMPDIR=/var/tmp\n")
        self.sshd = self.start(SSHD, "-D", "-e", "-f", str(config))
        wait_until(lambda: "Server listening" in self.text() or self.sshd.poll() is not None, 20, "sshd listens")

    def sessions(self):
        """-> pids of what ssh's sessions run here"""
        return [pid for pid in descendants(self.sshd.pid) if is_alive(pid) and Path(f"/proc/{pid}/comm").read_text().strip() != "sshd"]

    def temporary(self):
        return self.run("ls", "-A", "/var/tmp").stdout.split()

    def close(self):
        self.sshd.kill()
        self.sshd.wait()
        super().close()


class SshTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        namespaces.make_bridge()
        self.addCleanup(namespaces.remove_bridge)
        for key in ("host_key", "user_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        config = [f"Host *\n  IdentityFile {self.folder}/user_key\n  IdentitiesOnly yes\n  User root\n  StrictHostKeyChecking yes\n"
                  f"  UserKnownHostsFile {self.folder}/known_hosts\n  LogLevel ERROR\n  BatchMode yes\n"]
        known, self.hosts = [], []
        for number in (1, 2):
            host = SshHost(number, self.folder)
            self.addCleanup(host.close)
            self.hosts.append(host)
            known.append(f"{host.address} {(self.folder / 'host_key.pub').read_text()}")
            config.append(f"Host {host.name}\n  HostName {host.address}\n")
        (self.folder / "known_hosts").write_text("".join(known))
        (self.folder / "ssh_config").write_text("".join(config))
        self.ssh = f"ssh -T -F {shlex.quote(str(self.folder / 'ssh_config'))}"

    def hosts_file(self, text):
        file = self.folder / "hosts"
        file.write_text(text)
        return file

    def check_tokens(self, server):
        answer = server.complete(prompt=GOLDEN["prompt"], max_tokens=len(GOLDEN["greedy_ids"]), temperature=0, ignore_eos=True,
                                 return_token_ids=True)
        self.assertEqual(answer["choices"][0]["token_ids"], GOLDEN["greedy_ids"])

    def check_nothing_is_left(self):
        for host in self.hosts:
            wait_until(lambda host=host: not host.sessions(), 20, f"nothing runs on {host.name}")
            # Open MPI's daemon may leave its folder, which the next start removes; a secret must not stay.
            wait_until(lambda host=host: not any(name.startswith("expertmesh-worker.") for name in host.temporary()), 20,
                       f"no secret is left on {host.name}")

    def up(self, *options):
        return Up(DEMO_MODEL, *SERVE, "--ssh", self.ssh, *options)

    def test_a_list_of_hosts(self):
        hosts = self.hosts_file("# workers\nhost1\nhost2 slots=2\nlocalhost\n")
        with self.up("--hosts", hosts) as server:
            workers = server.get("/v1/cluster")[1]["workers"]
            self.assertEqual(sorted(worker["host"] for worker in workers if worker["remote"]), ["host1", "host2", "host2"])
            self.assertEqual(sum(not worker["remote"] for worker in workers), 1)
            self.check_tokens(server)
            self.assertTrue(all(host.temporary() for host in self.hosts))
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(60), 0, server.log())
        self.check_nothing_is_left()

    def test_a_cluster_file(self):
        secret = self.folder / "secret"
        secret.write_text(secrets.token_hex(16))
        secret.chmod(0o600)
        file = self.folder / "cluster.json"
        file.write_text(json.dumps({"interface": BRIDGE, "secret_file": str(secret), "coordinator": {"host": "here", "address": namespaces.ADDRESS},
                                    "workers": [{"host": "host1", "threads": 1, "capacity": 1}, {"host": "host2", "threads": 1, "capacity": 3}]}))
        for host in self.hosts:  # neither has to be on the hosts
            host.run("mount", "--bind", "/dev/null", str(secret))
            host.run("mount", "--bind", "/dev/null", str(file))
        with self.up("--cluster", file) as server:
            self.assertEqual({worker["host"]: worker["capacity"] for worker in server.get("/v1/cluster")[1]["workers"]}, {"host1": 1, "host2": 3})
            self.check_tokens(server)
            # A host whose connection breaks is said by name, and comes back; nobody waits for it.
            session = next(pid for pid in descendants(server.pid) if b"host1\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(session, signal.SIGKILL)
            wait_until(lambda: "expertmesh up: host host1: " in server.log(), 30, "it is missed")
            self.check_tokens(server)
            wait_until(lambda: [worker["state"] for worker in server.get("/v1/cluster")[1]["workers"]] == ["serving", "serving"], 60, "both serve")
            self.check_tokens(server)
            # The other end: without its coordinator nothing goes on.
            coordinator = next(pid for pid in descendants(server.pid) if Path(f"/proc/{pid}/comm").read_text().startswith("expertmesh-coor"))
            os.kill(coordinator, signal.SIGKILL)
            self.assertEqual(server.process.wait(60), 128 + signal.SIGKILL, server.log())
            server.process.returncode = 0  # it was meant to
        self.check_nothing_is_left()

    def test_killed_itself(self):
        with self.up("--hosts", self.hosts_file("host1\nhost2\n")) as server:
            below = descendants(server.pid)
            server.process.kill()
            server.process.wait()
            wait_until(lambda: not any(map(is_alive, below)), 20, "all that it started ends")
            server.process.returncode = 0  # it was meant to
        self.check_nothing_is_left()

    def failure(self, *options, hosts="host1\nhost2\n"):
        """-> (exit code, what it said itself) of a start that fails"""
        done = subprocess.run([EXPERTMESH, "up", str(DEMO_MODEL), "--port", "0", *map(str, SERVE), "--ssh", self.ssh, "--hosts",
                               str(self.hosts_file(hosts)), *map(str, options)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(done.stdout, "")
        self.check_nothing_is_left()
        return done.returncode, "\n".join(line for line in done.stderr.splitlines() if line.startswith("expertmesh up: "))

    def test_what_is_wrong_with_a_host_is_said_by_its_name(self):
        # An address that nobody has; its neighbour's sshd is not there; a key that is not the host's.
        config = self.folder / "ssh_config"
        config.write_text(config.read_text() + f"Host gone\n  HostName {self.hosts[0].address}\n  Port 23\n"
                          f"Host stranger\n  HostName {self.hosts[0].address}\n  HostKeyAlias unknown\n")
        for host, text in (("gone", "Connection refused"), ("stranger", "Host key verification failed")):
            code, said = self.failure(hosts=f"host2\n{host}\n")
            self.assertEqual(code, 1, said)
            self.assertRegex(said, f"^expertmesh up: host {host}: ssh failed .*{text}")
        # No program; another build; one that refuses.
        program = self.folder / "bin" / "expertmesh"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\nexec {shlex.quote(EXPERTMESH)} \"$@\"\n")
        program.chmod(0o755)
        self.hosts[1].run("mount", "-t", "tmpfs", "tmpfs", str(program.parent))
        code, said = self.failure("--program", program)
        self.assertEqual(code, 1, said)
        self.assertIn(f"host host2: there is no {program} that runs: ", said)
        for text, code, reason in (("echo expertmesh 0.0.9", 1, f"another build: {program} there is expertmesh 0.0.9, here it is expertmesh "),
                                   (f'[ "$1" = --version ] || set -- "$@" --colour=blue; exec {shlex.quote(EXPERTMESH)} "$@"', 2,
                                    "its workers ended with exit code 2: ")):
            self.hosts[1].run("sh", "-c", f"printf '#!/bin/sh\\n%s\\n' {shlex.quote(text)} >{program} && chmod 755 {program}")
            got, said = self.failure("--program", program)
            self.assertIn(f"host host2: {reason}", said)
            self.assertEqual(got, code, said)

    def test_what_cannot_be_meant_is_refused(self):
        for hosts, text in (("", "there are no hosts"), ("host1 cores=2\n", "'cores=2': only slots=N is known"), ("host1\nhost1\n", "twice"),
                            ("host1 slots=257\n", "'slots=257': there may be 256")):
            code, said = self.failure(hosts=hosts)
            self.assertEqual((code, text in said), (2, True), said)
        code, said = self.failure("--cluster", self.folder / "none")
        self.assertEqual(code, 2, said)
        # What the coordinator does not take ends the hosts' workers, too, with its exit code.
        for options in (("--max-num-seqs", 0), ("--workers", 2)):
            self.assertEqual(self.failure(*options)[0], 2)


if __name__ == "__main__":
    namespaces.main(SSHD, "/usr/bin/ssh-keygen", root=True)
