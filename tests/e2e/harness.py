"""What the end-to-end tests share: a server under test, requests to it, and a reader of safetensors files."""
import array
import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERTMESH = os.environ.get("EXPERTMESH", str(REPOSITORY / "launch" / "expertmesh"))
DEMO_MODEL = REPOSITORY / "launch" / "demo-model"
MODEL_GOLDENS = REPOSITORY / "tests" / "goldens" / "models"

sys.path.append(str(REPOSITORY / "launch"))
from coordinators import free_ports  # noqa: E402, F401

START_SECONDS = 60  # bounds, not expectations: a loaded machine with sanitizers stays far below them
ANSWER_SECONDS = 60
STOP_SECONDS = 20


class Server:
    """`expertmesh serve` on a free port, in a process group of its own. A context manager; prints its log when the body fails."""

    SUBCOMMAND = ("serve",)

    def __init__(self, model_dir, *options):
        port = [] if "--port" in options else ["--port", "0"]
        self.command = [EXPERTMESH, *self.SUBCOMMAND, str(model_dir), *port, *map(str, options)]
        self._log = tempfile.TemporaryFile("w+b")
        # The command becomes the coordinator (exec), so this is the coordinator's pid.
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log,
                                        start_new_session=True)
        self.pid = self.process.pid
        try:
            self.port = self._wait_until_ready()
        except BaseException:
            self.close(failed=True)
            raise

    def _wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise AssertionError(f"not ready after {START_SECONDS} s: {self.command}")
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise AssertionError(f"ended with exit code {self.process.wait()} before it was ready: {self.command}")
            line += byte
        text = line.decode()
        prefix = "ExpertMesh is ready at http://127.0.0.1:"
        if not text.startswith(prefix):
            raise AssertionError(f"unexpected first line {text!r}")
        return int(text[len(prefix):])

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(failed=kind is not None)

    def close(self, failed=False):
        """Ends the server, softly and then hard, and shows its log if something went wrong."""
        code = None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(STOP_SECONDS)
        else:
            code = self.process.returncode
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        if failed or code != 0:
            print(f"--- log of {' '.join(self.command)} (exit code {code})\n{self.log()}---", file=sys.stderr, flush=True)
        self._log.close()
        if code is None and not failed:
            raise AssertionError(f"did not drain within {STOP_SECONDS} s")

    def log(self):
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)

    def request(self, method, path, body=None, headers=None):
        """-> (status, headers, bytes)"""
        connection = self.connect()
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.request("GET", path)
        return status, json.loads(body) if body.strip() else None

    def post(self, path, body):
        status, _, answer = self.request("POST", path, body)
        return status, json.loads(answer)

    def complete(self, **body):
        status, answer = self.post("/v1/completions", body)
        if status != 200:
            raise AssertionError(f"{status}: {answer}")
        return answer

    def chat(self, **body):
        status, answer = self.post("/v1/chat/completions", body)
        if status != 200:
            raise AssertionError(f"{status}: {answer}")
        return answer

    def complete_together(self, bodies):
        """All at the same time -> their answers in order."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.complete(**body), bodies))

    @contextlib.contextmanager
    def stream(self, path, body):
        """-> the events' JSON objects; a missing [DONE] is an error unless the body of the with leaves early."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise AssertionError(f"{response.status}: {response.read()}")
            if not response.headers["Content-Type"].startswith("text/event-stream"):
                raise AssertionError(f"content type {response.headers['Content-Type']}")
            yield _events(response)
        finally:
            connection.close()

    def metrics(self):
        """-> {name with labels: value} of one scrape"""
        status, _, body = self.request("GET", "/metrics")
        if status != 200:
            raise AssertionError(f"/metrics: {status}")
        lines = [line for line in body.decode().splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def metric(self, name):
        return self.metrics()["expertmesh:" + name]


def _events(response):
    for line in response:
        line = line.rstrip(b"\r\n")
        if line == b"data: [DONE]":
            return
        if line and not line.startswith(b":"):
            if not line.startswith(b"data: "):
                raise AssertionError(f"not a data line: {line!r}")
            yield json.loads(line[len(b"data: "):])
    raise AssertionError("the stream ended without [DONE]")


def wait_until(condition, seconds, what):
    """Polls until condition() is true; fails after `seconds`. -> its value"""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def has_failed(test):
    """Whether this test case has failed; for its tearDown and cleanups."""
    result = test._outcome.result
    return any(case is test for case, _ in result.failures + result.errors)


def is_alive(pid):
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid):
    """-> pids of all processes below this one"""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_ARRAY_CODES = {"F32": "f", "I64": "q"}


def read_safetensors(path):
    """-> {name: rows}: nested lists as the shape says (F32 and I64 only)"""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, info in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        values = array.array(_ARRAY_CODES[info["dtype"]], data[start + begin:start + end])
        tensors[name] = _shaped(values.tolist(), info["shape"])
    return tensors


def _shaped(flat, shape):
    for size in reversed(shape[1:]):
        flat = [flat[i:i + size] for i in range(0, len(flat), size)]
    return flat


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)}"""
    header, offset = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in tensors.values()))


def read_raw_safetensors(path):
    """-> {name: (dtype, shape, bytes)}, what write_safetensors takes"""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return {name: (info["dtype"], info["shape"], data[start + info["data_offsets"][0]:start + info["data_offsets"][1]])
            for name, info in json.loads(data[8:start]).items() if name != "__metadata__"}
