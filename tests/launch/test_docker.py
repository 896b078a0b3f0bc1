"""launch/docker/Dockerfile without Docker. Always: its instructions, what it copies, and that its image has every library
that the programs need. In the long form (EM_IMAGE: stages to run, `final` or `all`) its steps are executed in bare roots that
debootstrap makes, and the result serves as its user; `final` takes the programs that were built for the tests."""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY, Server, wait_until  # noqa: E402
from namespaces import run  # noqa: E402

GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]
DOCKERFILE = REPOSITORY / "launch" / "docker" / "Dockerfile"
PROGRAM = Path(EXPERTMESH).resolve()
IMAGE = os.environ.get("EM_IMAGE", "")
PLAIN = {"WORKDIR", "EXPOSE", "STOPSIGNAL", "USER"}  # a word
LISTS = {"ENTRYPOINT", "CMD"}
ALWAYS_THERE = {"libc6", "libgcc-s1", "libstdc++6"}  # of what the others depend on


def instructions(text):
    """-> [(name, rest)], continued lines joined"""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line.strip()]


def stages(text):
    """-> [{from, name, steps}]"""
    found = []
    for name, rest in instructions(text):
        if name == "FROM":
            words = rest.split()
            if len(words) not in (1, 3) or words[1:2] not in ([], ["AS"]):
                raise AssertionError(f"FROM {rest}")
            found.append({"from": words[0], "name": words[2] if words[2:] else "", "steps": []})
        else:
            found[-1]["steps"].append((name, rest))
    return found


def problems(text):
    found = stages(text)
    names = [stage["name"] for stage in found]
    for stage in found:
        if stage["from"] != "debian:12-slim" and stage["from"] not in names:
            yield f"FROM {stage['from']}"
        for name, rest in stage["steps"]:
            if name == "RUN":
                done = subprocess.run(["sh", "-n"], input=rest, capture_output=True, text=True)
                if done.returncode:
                    yield f"RUN: {done.stderr}"
                if "apt-get install" in rest and not all(words in rest for words in ("--no-install-recommends", "rm -rf /var/lib/apt/lists", " -y ")):
                    yield "RUN: apt-get install leaves what nobody needs"
            elif name == "COPY":
                words = rest.split()
                if words[0].startswith("--from="):
                    if words[0][len("--from="):] not in names:
                        yield f"COPY {rest}: no such stage"
                elif not all((REPOSITORY / word).exists() for word in words[:-1]):
                    yield f"COPY {rest}: not in the source tree"
            elif name in LISTS:
                if not isinstance(json.loads(rest), list):
                    yield f"{name}: no list of words"
            elif name not in PLAIN or len(rest.split()) != 1:
                yield f"{name} {rest}: not known here"
    last = dict(found[-1]["steps"])
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        yield "USER: not a number, which Kubernetes can tell from root"
    if json.loads(last["ENTRYPOINT"]) != ["expertmesh"]:
        yield "ENTRYPOINT: not the program"


def packages_of_image():
    text = next(rest for name, rest in stages(DOCKERFILE.read_text())[-1]["steps"] if "apt-get install" in rest)
    words = text.split("apt-get install")[1].split("&&")[0].split()
    return {word for word in words if not word.startswith("-")}


class LintTest(unittest.TestCase):
    def test_the_file_is_in_order(self):
        text = DOCKERFILE.read_text()
        self.assertEqual(list(problems(text)), [])
        for old, new in (("USER 10001:10001", "USER root"), ("--from=build", "--from=built"), ("COPY launch/", "COPY lunch/"), ("EXPOSE", "EXPOSED"),
                         ("--no-install-recommends", ""), ("rm -rf /var/lib/apt/lists/* &&", "rm -rf /var/lib/apt/lists/* && ("), ('["expertmesh"]', '["sh"]')):
            self.assertIn(old, text)
            self.assertNotEqual(list(problems(text.replace(old, new, 1))), [], f"{old} -> {new} is seen")

    @unittest.skipUnless("VERSION_CODENAME=bookworm\n" in Path("/etc/os-release").read_text(), "packages have other names on other systems than the image's")
    def test_the_image_has_the_libraries_of_the_programs(self):
        folder = PROGRAM.parent if (PROGRAM.parent / "expertmesh-coordinator").exists() else REPOSITORY / "build" / "bin"
        places = set()
        for program in ("coordinator", "worker", "bench"):
            file = str(folder / f"expertmesh-{program}")
            all_places = dict(re.findall(r"^\s*(\S+) => (\S+) ", run("ldd", file).stdout, re.MULTILINE))
            needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", file).stdout)
            places |= {str(Path(all_places[library]).resolve()) for library in needed if library in all_places}  # all but the loader
        # Packages of before the merge of /lib into /usr/lib know the shorter paths.
        found = run("dpkg", "-S", *places, *(place.removeprefix("/usr") for place in places), check=False).stdout
        packages = {line.split(":")[0] for line in found.splitlines()}
        self.assertEqual(packages - packages_of_image() - ALWAYS_THERE, set())
        self.assertIn("libopenmpi3", packages)


class Root:
    """A bare Debian 12 in which a stage's steps are executed."""

    def __init__(self, folder, base):
        self.folder = folder
        self.workdir = "/"
        self.user = ""
        run("cp", "-a", str(base), str(folder))
        for file in ("resolv.conf", "hosts"):
            shutil.copyfile(f"/etc/{file}", folder / "etc" / file)

    def command(self, *words, user="0:0"):
        uid, gid = user.split(":")
        script = f"""set -e
mount --bind {self.folder} {self.folder}
for place in proc sys dev; do mount --rbind /$place {self.folder}/$place; done
cd {self.folder}{self.workdir}
exec chroot --userspec={uid}:{gid} {self.folder} env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/ sh -c 'cd "$0" && exec "$@"' {self.workdir} {shlex.join(words)}"""
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]

    def execute(self, steps, others):
        for name, rest in steps:
            print(f"{name} {rest}"[:100], flush=True)
            if name == "RUN":
                run(*self.command("sh", "-c", rest))
            elif name == "WORKDIR":
                self.workdir = rest
                (self.folder / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif name == "USER":
                self.user = rest
            elif name == "COPY":
                self._copy(*rest.split(), others=others)

    def _copy(self, *words, others):
        source = REPOSITORY
        if words[0].startswith("--from="):
            source, words = others[words[0][len("--from="):]], words[1:]
        *names, target = words
        target = self.folder / os.path.join(self.workdir, target).lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name == ".":  # less what .dockerignore names
                files = run("git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
                subprocess.run(["sh", "-c", f"tar -C {REPOSITORY} --null --files-from=- -c | tar -C {target} -x"], input=files, text=True, check=True)
            else:
                place = source / name.lstrip("/")
                run("cp", "-a", *([f"{place}/."] if place.is_dir() else [str(place)]), str(target))


class Served(Server):
    """A server that somebody else started and ends."""

    def __init__(self, port):
        self.port = port


@unittest.skipUnless(IMAGE and os.geteuid() == 0, "the long form runs the steps, as root")
class ImageTest(unittest.TestCase):
    def test_its_steps_make_an_image_that_serves(self):
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        base = Path(os.environ.get("EM_IMAGE_BASE", folder / "base"))  # one that debootstrap has made before
        if not base.exists():
            run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(base))
        roots = {}
        *before, final = stages(DOCKERFILE.read_text())
        for stage in before:
            if IMAGE == "all":
                root = Root(folder / stage["name"], base)
                root.execute(stage["steps"], roots)
                roots[stage["name"]] = root.folder
            else:
                roots[stage["name"]] = self.as_installed(folder / stage["name"])
        root = Root(folder / "final", base)
        root.execute(final["steps"], roots)
        self.assertEqual(root.user, "10001:10001")
        (root.folder / "srv" / "model").mkdir()
        run("cp", "-a", f"{DEMO_MODEL}/.", str(root.folder / "srv" / "model"))
        [program] = json.loads(dict(final["steps"])["ENTRYPOINT"])
        log = self.enterContext(open(folder / "log", "w+", encoding="utf-8"))
        options = ("--dtype", "float32", "--threads", "1", "--workers", "2")
        process = subprocess.Popen(root.command(program, "serve", "/srv/model", "--port", "0", *options, user=root.user), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(lambda: "ExpertMesh is ready" in (folder / "log").read_text() or process.poll() is not None, 60, "it serves")
            self.assertIsNone(process.poll(), (folder / "log").read_text())
            server = Served(int(re.search(r"ready at http://127.0.0.1:(\d+)", (folder / "log").read_text())[1]))
            answer = server.complete(prompt=GOLDEN["prompt"], max_tokens=len(GOLDEN["greedy_ids"]), temperature=0, ignore_eos=True, return_token_ids=True)
            self.assertEqual(answer["choices"][0]["token_ids"], GOLDEN["greedy_ids"])
            # A chat template needs the image's python3 and jinja2.
            done = run(*root.command("python3", "-c", "import jinja2"))
            self.assertEqual(done.returncode, 0)
            [below] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            run("kill", "-TERM", below)
            self.assertEqual(process.wait(60), 0, (folder / "log").read_text())
        finally:
            process.kill()
            process.wait()

    def as_installed(self, folder):
        """The programs of the tests' build, as `cmake --install` lays them out under the prefix of the build stage."""
        prefix = folder / "opt" / "expertmesh"
        (prefix / "bin").mkdir(parents=True)
        tree = PROGRAM.parent.parent
        build = tree if (tree / "bin").exists() else tree / "build"
        for program in ("coordinator", "worker", "bench"):
            shutil.copy(build / "bin" / f"expertmesh-{program}", prefix / "bin")
        shutil.copy(PROGRAM, prefix / "bin")
        shutil.copytree((build / "bin" / "expertmesh-coordinator").resolve().parents[1] / "share", prefix / "share")
        return folder


if __name__ == "__main__":
    unittest.main()
