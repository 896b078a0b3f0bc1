"""Workers of other hosts: network namespaces are the hosts, a bridge is the network between them. Links go down, swallow
everything, lose packets one way, slow down; workers are killed and stopped: no request fails, no token changes, and
whoever was lost comes back by itself.

Needs the right to make namespaces; says so and passes over what the kernel does not let it do.
"""
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path

from crowd import DEMO_MODEL, Crowd, Server, books_are_closed, quiet_answers, wait_until, workers_of
import namespaces
from harness import EXPERTMESH, has_failed, is_alive
from namespaces import BRIDGE, run

CONTROL = f"{namespaces.ADDRESS}:7070"


class Host(namespaces.Host):
    """A host with a worker in it."""

    def __init__(self, number, secret_file, folder, options=()):
        super().__init__(number, folder)
        self.command = [EXPERTMESH, "worker", "--join", CONTROL, "--secret-file", str(secret_file), "--threads", "1",
                        "--shared-cores", "--capacity", "1", "--rejoin-for", "60", *options]
        self.worker = None

    def start(self):
        self.worker = super().start(*self.command)

    def close(self):
        if self.worker:
            self.worker.terminate()
            self.worker.wait(30)
        super().close()


def remote_workers(server, state="serving"):
    return [worker for worker in workers_of(server) if worker["remote"] and worker["state"] == state]


class OtherHostsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.secret = Path(self.folder.name) / "secret"
        self.secret.write_text(secrets.token_hex(16))
        self.secret.chmod(0o600)
        namespaces.make_bridge()
        self.hosts = []

    def tearDown(self):
        for host in self.hosts:
            host.close()
        if has_failed(self):
            for log in Path(self.folder.name).glob("*.log"):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
        namespaces.remove_bridge()
        self.folder.cleanup()

    def host(self, *options, secret=None):
        self.hosts.append(Host(len(self.hosts) + 1, secret or self.secret, self.folder.name, options))
        return self.hosts[-1]

    def serve(self, *options):
        return Server(DEMO_MODEL, "--interface", BRIDGE, "--secret-file", self.secret, *options)

    def faults(self, host):
        """-> (name, begin, end) of what can happen to a host's link"""
        def link(state):
            return lambda: run("ip", "link", "set", host.port, state)

        lossy = ("root", "tbf", "rate", "96kbit", "burst", "2000", "latency", "1ms")
        yield "its link is down", link("down"), link("up")
        yield ("everything is swallowed", lambda: run("ip", "link", "set", host.port, "nomaster"),
               lambda: run("ip", "link", "set", host.port, "master", BRIDGE))
        yield ("most of what it sends is lost", lambda: host.run("tc", "qdisc", "add", "dev", "eth0", *lossy),
               lambda: host.run("tc", "qdisc", "del", "dev", "eth0", "root"))
        yield ("most of what is sent to it is lost", lambda: run("tc", "qdisc", "add", "dev", host.port, *lossy),
               lambda: run("tc", "qdisc", "del", "dev", host.port, "root"))
        delay = ("root", "netem", "delay", "40ms", "20ms")
        if host.run("tc", "qdisc", "add", "dev", "eth0", *delay, check=False).returncode == 0:
            host.run("tc", "qdisc", "del", "dev", "eth0", "root")
            yield ("what it sends is late", lambda: host.run("tc", "qdisc", "add", "dev", "eth0", *delay),
                   lambda: host.run("tc", "qdisc", "del", "dev", "eth0", "root"))
        else:
            print("SKIPPED: added delay (this kernel has no netem)", flush=True)

    def test_the_network_fails(self):
        hosts = [self.host(), self.host()]
        for host in hosts:
            host.start()
        with self.serve("--workers", 1, "--worker-capacity", 1, "--remote-workers", 2) as server:
            self.assertEqual(len(remote_workers(server)), 2)
            self.assertEqual({worker["host"] for worker in remote_workers(server)}, {"host1", "host2"})
            expected = quiet_answers(server)
            local = next(worker for worker in workers_of(server) if not worker["remote"])
            with Crowd(server, expected, 8) as crowd:
                wait_until(lambda: crowd.answers >= 8, 120, "the crowd is at work")
                for what, begin, end in self.faults(hosts[0]):
                    deaths = server.metric("worker_deaths_total")
                    done, start = crowd.answers, time.monotonic()
                    begin()
                    time.sleep(1)  # that long it lasts
                    end()
                    wait_until(lambda: len(remote_workers(server)) == 2, 60, f"{what}: it serves again")
                    back = time.monotonic() - start
                    wait_until(lambda done=done: crowd.answers > done + 4, 60, f"{what}: streams end")
                    print(f"{what} for 1 s: {server.metric('worker_deaths_total') - deaths:.0f} deaths, all serve after "
                          f"{back:.1f} s, longest pause of a stream {max(e - b for b, e in crowd.pauses if e > start):.2f} s",
                          flush=True)
            self.assertEqual(crowd.failures, [])
            self.assertTrue(books_are_closed(server.metrics()))
            self.assertEqual(server.metric("requests_failed_total"), 0)
            now = next(worker for worker in workers_of(server) if worker["id"] == local["id"])
            self.assertEqual(now["pid"], local["pid"], "the worker of this host was none of its business")

    def test_workers_of_other_hosts_die_stop_leave_and_stay_away(self):
        hosts = [self.host(), self.host()]
        # Nothing of the model is on the second host: its weights come from the coordinator.
        hosts[1].run("mount", "-t", "tmpfs", "tmpfs", str(DEMO_MODEL))
        for host in hosts:
            host.start()
        with self.serve("--remote-workers", 2) as server:
            self.assertIn("the weights come from 10.77.0.1:", hosts[1].text())
            expected = quiet_answers(server)
            experts = sum(worker["experts"] for worker in workers_of(server))
            by_host = lambda name: next(w for w in workers_of(server) if w["host"] == name)  # noqa: E731
            with Crowd(server, expected, 8) as crowd:
                wait_until(lambda: crowd.answers >= 8, 120, "the crowd is at work")
                for number, name in ((signal.SIGKILL, "host1"), (signal.SIGKILL, "host2"), (signal.SIGSTOP, "host1")):
                    before = by_host(name)
                    os.kill(before["pid"], number)
                    wait_until(lambda before=before: by_host(before["host"])["state"] == "dead"
                               or by_host(before["host"])["incarnation"] > before["incarnation"], 30, "it is missed")
                    if number == signal.SIGSTOP:
                        os.kill(before["pid"], signal.SIGCONT)
                    wait_until(lambda before=before: len(remote_workers(server)) == 2
                               and by_host(before["host"])["incarnation"] > before["incarnation"], 30, "it is back")
                # Asked to leave by its own host: for good, its experts go to the other first.
                hosts[0].worker.terminate()
                self.assertEqual(hosts[0].worker.wait(30), 0)
                wait_until(lambda: by_host("host2")["experts"] == experts, 30, "the other holds all")
                deaths = server.metric("worker_deaths_total")
                # Another one comes.
                hosts[0].start()
                wait_until(lambda: len(remote_workers(server)) == 2 and not server.get("/v1/cluster")[1]["placement"]["moving"]
                           and by_host("host2")["experts"] < experts, 30, "it has its share")
                self.assertEqual(server.metric("worker_deaths_total"), deaths)
                # All are asked to leave at once; the coordinator goes on by itself.
                for host in hosts:
                    host.worker.terminate()
                for host in hosts:
                    self.assertEqual(host.worker.wait(30), 0)
                done = crowd.answers
                wait_until(lambda: crowd.answers > done + 8, 60, "answers")
                self.assertEqual(server.metric("worker_deaths_total"), deaths)
                for host in hosts:
                    host.start()
                wait_until(lambda: len(remote_workers(server)) == 2
                           and not server.get("/v1/cluster")[1]["placement"]["moving"], 60, "both are back")
                self.assertEqual(len(workers_of(server)), 2, "who comes back takes the place of one that left")
                # All die for good; the same.
                for host in hosts:
                    host.worker.kill()  # the launcher, so that nobody comes back
                    host.worker.wait()
                pids = [worker["pid"] for worker in remote_workers(server)]
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not remote_workers(server), 30, "both are missed")
                done = crowd.answers
                wait_until(lambda: crowd.answers > done + 8, 60, "answers")
                hosts[1].start()
                wait_until(lambda: len(remote_workers(server)) == 1, 60, "one is back")
            self.assertEqual(crowd.failures, [])
            self.assertTrue(books_are_closed(server.metrics()))

    def test_they_come_and_go(self):
        hosts = [self.host(), self.host()]
        with self.serve("--workers", 0) as server:
            for _ in range(int(os.environ.get("EM_FAULT_JOINS", "20")) // len(hosts)):
                for host in hosts:  # at the same moment
                    host.start()
                wait_until(lambda: len(remote_workers(server)) == len(hosts), 60, "all serve")
                for host in hosts:
                    host.worker.terminate()
                for host in hosts:
                    self.assertEqual(host.worker.wait(30), 0)
            self.assertEqual(server.metric("worker_deaths_total"), 0)
            self.assertEqual(len(workers_of(server)), len(hosts), "who comes takes the place of one that left")

    def test_who_is_not_wanted(self):
        wrong = Path(self.folder.name) / "wrong"
        wrong.write_text("guess")
        wrong.chmod(0o600)
        other = Path(self.folder.name) / "other"
        other.mkdir()
        for file in DEMO_MODEL.iterdir():
            if file.suffix in (".json", ".safetensors"):
                (other / file.name).write_bytes(file.read_bytes())
        (other / "config.json").write_bytes((other / "config.json").read_bytes() + b"\n")
        # Whoever gets an answer stays away by itself; who gets none has to be told how long to try.
        cases = [(self.host("--rejoin-for", "0", secret=wrong), 1, "closed"),
                 (self.host("--model", str(other)), 2, "another checkpoint: not the coordinator's config.json"),
                 (self.host("--model", str(other / "nothing")), 2, str(other / "nothing"))]
        silent = self.host()
        silent.run("mount", "-t", "tmpfs", "tmpfs", str(DEMO_MODEL))
        cases.append((silent, 2, f"{DEMO_MODEL} is not on this host"))
        # The same names, types, shapes and sizes, but other numbers: seen when they are loaded.
        rotten = Path(self.folder.name) / "rotten"
        shutil.copytree(other, rotten)
        shutil.copyfile(DEMO_MODEL / "config.json", rotten / "config.json")
        for file in rotten.glob("*.safetensors"):
            data = bytearray(file.read_bytes())
            for place in range(8 + int.from_bytes(data[:8], "little"), len(data), 4096):
                data[place] ^= 1
            file.write_bytes(data)
        with self.serve("--workers", 1, "--worker-capacity", 1, "--weights-rate", 0, "--checksum-messages") as server:
            wanted = server.complete(prompt="Once upon a time", max_tokens=8, temperature=0)["choices"]
            for host, code, text in cases:
                host.start()
                self.assertEqual(host.worker.wait(60), code, host.text())
                self.assertIn(text, host.text())
                self.assertNotIn(self.secret.read_text(), host.text())
            spoiled = self.host("--model", str(rotten))
            spoiled.start()
            wait_until(lambda: "loaded other bytes for expert" in server.log(), 60, "its weights are refused")
            spoiled.worker.terminate()
            spoiled.worker.wait(60)
            wait_until(lambda: not remote_workers(server), 60, "it is dead")
            self.assertEqual(server.complete(prompt="Once upon a time", max_tokens=8, temperature=0)["choices"], wanted)
            status, _, body = server.request("GET", "/v1/cluster")
            self.assertNotIn(self.secret.read_text(), body.decode() + server.log())
            # Nothing of the control plane or the weight port listens elsewhere.
            listening = run("ss", "-Hltnp").stdout
            mine = [line.split()[3] for line in listening.splitlines() if f"pid={server.pid}," in line]
            self.assertIn(CONTROL, mine)
            self.assertEqual([place for place in mine if not place.startswith(("127.0.0.1", "10.77.0.1"))], [])

    def test_the_coordinator_dies(self):
        host = self.host()
        host.start()
        with self.serve("--remote-workers", 1) as server:
            worker = remote_workers(server)[0]["pid"]
            os.killpg(server.pid, signal.SIGKILL)
            begin = time.monotonic()
            wait_until(lambda: not is_alive(worker), 5, "its worker ends")
            print(f"coordinator killed: its worker of another host is gone after {time.monotonic() - begin:.2f} s", flush=True)
            server.process.wait()
            server.process.returncode = 0  # it was meant to
        with self.serve("--remote-workers", 1) as server:  # the same launcher's next worker
            self.assertEqual(len(remote_workers(server)), 1)


if __name__ == "__main__":
    namespaces.main()
