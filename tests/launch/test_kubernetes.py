"""launch/kubernetes without a Kubernetes: every object against the types of the API (the python client's), what refers to
each other, and then the pods as a node would run them: host names, DNS, volumes, environment, user, capabilities, read-only
root, a process 1 of their own; probes by HTTP, SIGTERM at the end."""
import contextlib
import http.client
import json
import os
import re
import secrets
import shlex
import signal
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import debian_python  # noqa: E402
import namespaces  # noqa: E402
from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY, Server, has_failed, wait_until  # noqa: E402
from namespaces import run  # noqa: E402

debian_python.needs("kubernetes.client", "yaml")
import kubernetes.client  # noqa: E402
import yaml  # noqa: E402

GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]
FOLDER = REPOSITORY / "launch" / "kubernetes"
PROGRAM = Path(EXPERTMESH).resolve()
OBJECTS = [item for file in ("secret.yaml", "expertmesh.yaml") for item in yaml.safe_load_all((FOLDER / file).read_text())]


def find(kind, name):
    return next(item for item in OBJECTS if item["kind"] == kind and item["metadata"]["name"] == name)


def problems(type_name, value, where):
    """Whatever the API's type does not take: unknown fields, missing ones, values of another type."""
    if type_name.startswith("list["):
        if not isinstance(value, list):
            yield f"{where}: not a list"
            return
        for index, item in enumerate(value):
            yield from problems(type_name[len("list["):-1], item, f"{where}[{index}]")
    elif type_name.startswith("dict("):
        if not isinstance(value, dict):
            yield f"{where}: not a map"
            return
        for key, item in value.items():
            yield from problems(type_name[len("dict(str, "):-1], item, f"{where}.{key}")
    elif type_name in ("str", "int", "bool", "float"):
        if type(value).__name__ != type_name:
            yield f"{where}: {value!r} is no {type_name}"
    elif type_name == "object":  # a number or a text: ports, quantities, percentages
        if not isinstance(value, (str, int)):
            yield f"{where}: {value!r} is neither number nor text"
    else:
        model = getattr(kubernetes.client, type_name)
        fields = {name: attribute for attribute, name in model.attribute_map.items()}
        if not isinstance(value, dict):
            yield f"{where}: not an object"
            return
        for name, item in value.items():
            if name not in fields:
                yield f"{where}.{name}: unknown field of {type_name}"
            else:
                yield from problems(model.openapi_types[fields[name]], item, f"{where}.{name}")
        try:
            model(**{fields[name]: item for name, item in value.items() if name in fields})
        except ValueError as error:  # a required one is missing, or out of range
            yield f"{where}: {error}"


def type_of(item):
    version = item["apiVersion"].rpartition("/")[2]
    return version[0].upper() + version[1:] + item["kind"]


class ManifestTest(unittest.TestCase):
    def test_every_field_is_one_of_the_api(self):
        for item in OBJECTS:
            with self.subTest(item["kind"]):
                self.assertEqual(list(problems(type_of(item), item, item["kind"])), [])
        deployment = json.loads(json.dumps(find("Deployment", "expertmesh")))
        del deployment["spec"]["selector"]
        pod = deployment["spec"]["template"]["spec"]
        pod["containers"][0]["readinesProbe"] = {}
        pod["containers"][0]["livenessProbe"]["periodSeconds"] = "10"
        del pod["volumes"][0]["name"]
        self.assertEqual(len(list(problems("V1Deployment", deployment, ""))), 4, "four faults are seen")

    def test_what_refers_to_each_other(self):
        pods = {}
        for item in OBJECTS:
            if "template" in item.get("spec", {}):
                template = item["spec"]["template"]
                pods[item["metadata"]["name"]] = template["metadata"]["labels"]
                self.assertLessEqual(item["spec"]["selector"]["matchLabels"].items(), template["metadata"]["labels"].items())
                volumes = {volume["name"] for volume in template["spec"]["volumes"]}
                for container in template["spec"]["initContainers"] + template["spec"]["containers"]:
                    self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
                    self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
                    self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
                self.assertTrue(template["spec"]["securityContext"]["runAsNonRoot"])
        for item in OBJECTS:
            if item["kind"] == "Service":
                self.assertTrue(any(item["spec"]["selector"].items() <= labels.items() for labels in pods.values()), item["metadata"]["name"])
        cluster = json.loads(find("ConfigMap", "expertmesh")["data"]["cluster.json"])
        workers = find("StatefulSet", "expertmesh-worker")
        self.assertEqual([worker["host"] for worker in cluster["workers"]], [f"expertmesh-worker-{number}" for number in range(workers["spec"]["replicas"])])
        self.assertEqual(workers["spec"]["serviceName"], find("Service", "expertmesh-worker")["metadata"]["name"])
        control = find("Service", cluster["coordinator"]["address"])["spec"]
        self.assertEqual((control["clusterIP"], control["publishNotReadyAddresses"], control["ports"][0]["port"]), ("None", True, cluster["control_port"]))
        self.assertLessEqual(find("PodDisruptionBudget", "expertmesh-worker")["spec"]["selector"]["matchLabels"].items(), pods["expertmesh-worker"].items())
        # No secret that anybody knows.
        self.assertEqual(find("Secret", "expertmesh")["stringData"], {"secret": ""})


class Pod(namespaces.Host):
    """What a node makes of a pod's template, on a host of its own."""

    def __init__(self, number, name, template, folder, names):
        super().__init__(number, folder)
        self.name = name
        self.spec = template["spec"]
        self.folder = folder / name
        self.folder.mkdir()
        root = self.folder / "image"
        for path in ("bin", "tree"):
            (root / path).mkdir(parents=True)
        (root / "srv" / "model").mkdir(parents=True)
        (root / "bin" / "expertmesh").symlink_to(f"/opt/tree/{PROGRAM.parent.name}/expertmesh")
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in names.items()))
        etc = self.folder / "etc"
        # What an image has: the program, and places to mount at.
        for command in (f"hostname {name}", f"mount --bind {root} /opt", f"mount --bind {PROGRAM.parent.parent} /opt/tree",
                        "mount --bind /opt/bin /usr/local/bin && mount --bind /opt/srv /srv", "mount -t tmpfs tmpfs /run && mkdir /run/expertmesh",
                        f"cp -a /etc {etc} && mkdir -p {etc}/expertmesh/secret && touch {etc}/expertmesh/cluster.json && mount --bind {etc} /etc",
                        f"mount --bind {hosts} /etc/hosts"):
            self.run("sh", "-c", command)
        self.volumes = {volume["name"]: self._volume(volume) for volume in self.spec["volumes"]}
        self.process = None

    def _volume(self, volume):
        """-> folder that holds it"""
        folder = self.folder / f"volume-{volume['name']}"
        folder.mkdir()
        if "emptyDir" in volume:
            size = re.sub("i$", "", volume["emptyDir"]["sizeLimit"])
            self.run("mount", "-t", "tmpfs", "-o", f"mode=1777,size={size}", "tmpfs", str(folder))
        elif "secret" in volume:
            for key in find("Secret", volume["secret"]["secretName"])["stringData"]:
                file = folder / key
                file.write_text(KNOWN_SECRET)
                file.chmod(volume["secret"]["defaultMode"])
        elif "configMap" in volume:
            for key, text in find("ConfigMap", volume["configMap"]["name"])["data"].items():
                (folder / key).write_text(text)
        elif "persistentVolumeClaim" in volume:
            self.run("mount", "--bind", str(DEMO_MODEL), str(folder))
        else:
            raise AssertionError(f"{volume}: no such volume here")
        return folder

    def command(self, container, *more):
        """-> what runs a container: its mounts, a read-only root, its user without rights, process 1 of a namespace"""
        user = self.spec["securityContext"]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
        for variable in container.get("env", []):
            self_fields = {"metadata.name": self.name}
            environment[variable["name"]] = variable["value"] if "value" in variable else self_fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        words = [re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], word) for word in container["command"]]
        lines = ["set -e"]
        for mount in sorted(container["volumeMounts"], key=lambda mount: mount["mountPath"] == "/tmp"):  # the volumes may lie there
            source = self.volumes[mount["name"]] / mount.get("subPath", "")
            lines.append(f"mount --bind {source} {mount['mountPath']}")
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {mount['mountPath']}")
        if container["securityContext"]["readOnlyRootFilesystem"]:
            lines += ["mount -o remount,bind,ro /", "mount -o remount,ro,bind /etc", "mount -o remount,ro,bind /opt", "mount -o remount,ro /run"]
        lines.append(f"exec setpriv --reuid {user['runAsUser']} --regid {user['runAsGroup']} --clear-groups --no-new-privs --bounding-set=-all "
                     f"--inh-caps=-all env -i {shlex.join(f'{name}={value}' for name, value in environment.items())} {shlex.join([*words, *more])}")
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "\n".join(lines)]

    def start_containers(self, *more):
        for container in self.spec["initContainers"]:
            self.run(*self.command(container))
        [container] = self.spec["containers"]
        self.process = self.start(*self.command(container, *more))
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.pid = int(wait_until(lambda: children.read_text().split(), 20, "the container runs")[0])

    def terminate(self):
        """-> exit code, within the time that the pod has for it"""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(self.spec["terminationGracePeriodSeconds"])

    def probe(self, kind):
        """-> HTTP status, 0: nobody listens"""
        [container] = self.spec["containers"]
        get = container[kind]["httpGet"]
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == get["port"])
        connection = http.client.HTTPConnection(self.address, port, timeout=10)
        try:
            connection.request("GET", get["path"])
            return connection.getresponse().status
        except ConnectionError:
            return 0
        finally:
            connection.close()

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        super().close()


KNOWN_SECRET = secrets.token_hex(32)


class Served(Server):
    def __init__(self, address):
        self.address = address

    def connect(self):
        return http.client.HTTPConnection(self.address, 8000, timeout=60)


class PodsTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)
        namespaces.make_bridge()
        self.addCleanup(namespaces.remove_bridge)
        names = {"expertmesh-control": "10.77.0.2"}
        self.pods = []
        for number, (name, owner) in enumerate((("coordinator", find("Deployment", "expertmesh")), ("expertmesh-worker-0", find("StatefulSet", "expertmesh-worker")),
                                                ("expertmesh-worker-1", find("StatefulSet", "expertmesh-worker"))), 1):
            pod = Pod(number, name, owner["spec"]["template"], self.folder, names)
            self.addCleanup(pod.close)
            self.pods.append(pod)
        self.addCleanup(self.show)

    def show(self):
        if has_failed(self):
            for pod in self.pods:
                print(f"--- {pod.name}\n{pod.text()[-4000:]}", file=sys.stderr)

    def test_they_serve_and_end_as_they_are_asked_to(self):
        coordinator, *workers = self.pods
        coordinator.start_containers("--dtype", "float32", "--threads", "1")
        wait_until(lambda: coordinator.probe("startupProbe") == 200, 60, "it has started")
        self.assertEqual((coordinator.probe("livenessProbe"), coordinator.probe("readinessProbe")), (200, 503), "it lives, and waits for its workers")
        for worker in workers:
            worker.start_containers()
        wait_until(lambda: coordinator.probe("readinessProbe") == 200, 60, "it is ready")
        server = Served(coordinator.address)
        self.assertEqual(sorted(worker["host"] for worker in server.get("/v1/cluster")[1]["workers"]), [worker.name for worker in workers])
        answer = server.complete(prompt=GOLDEN["prompt"], max_tokens=len(GOLDEN["greedy_ids"]), temperature=0, ignore_eos=True, return_token_ids=True)
        self.assertEqual(answer["choices"][0]["token_ids"], GOLDEN["greedy_ids"])
        for pod in self.pods:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pod.pid}/status").read_text().splitlines())
            self.assertEqual((status["Uid"].split()[0], status["NoNewPrivs"], int(status["CapBnd"], 16)), ("10001", "1", 0))
        for pod in (workers[0], coordinator, workers[1]):
            self.assertEqual(pod.terminate(), 0, pod.text())


if __name__ == "__main__":
    namespaces.main(root=True)
