"""What the fault tests share: a crowd of streaming clients that knows every answer beforehand, and looks for what a
cluster leaves behind."""
import contextlib
import os
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import DEMO_MODEL, Server, descendants, wait_until  # noqa: E402,F401  (shared with the tests)

PROMPTS = ["Once upon a time", "The fox said to the crow", "In a dark forest there lived an old woman who",
           "A king had three sons"]
NUM_JOBS = 24


def job(index):
    """The index-th request: prompts and answers of mixed length, greedy and seeded sampling."""
    rng = random.Random(index)
    return {"prompt": PROMPTS[index % len(PROMPTS)] + " and" * rng.randrange(120), "max_tokens": rng.choice((20, 60, 150)),
            "temperature": (0, 0.8)[index % 2], "seed": index, "ignore_eos": True, "logprobs": 0}


def answer(server, body):
    """-> ([(token, log-probability)], [time of each chunk]) of a stream; an error event or a broken stream raises."""
    tokens, times = [], []
    with server.stream("/v1/completions", body) as events:
        for event in events:
            if "error" in event:
                raise AssertionError(event["error"])
            for choice in event["choices"]:
                logprobs = choice.get("logprobs")
                if logprobs:
                    tokens += zip(logprobs["tokens"], logprobs["token_logprobs"])
                    times.append(time.monotonic())
    return tokens, times


class Crowd:
    """Streaming clients that run until told to stop. A context manager: leaving it waits for their last answers, and
    raises what went wrong for any."""

    def __init__(self, server, expected, clients):
        self.server = server
        self.expected = expected
        self.pauses = []  # (begin, end) of every wait between two chunks of a stream
        self.answers = 0
        self.tokens = 0
        self.failures = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if kind is None and self.failures:
            raise AssertionError(f"{len(self.failures)} of {self.answers} requests went wrong, the first: {self.failures[0]}")

    def _client(self, number):
        rng = random.Random(number)
        while not self._stop.is_set():
            index = rng.randrange(len(self.expected))
            problem, times = None, []
            try:
                tokens, times = answer(self.server, job(index))
                if tokens != self.expected[index]:
                    problem = f"job {index}: {tokens} instead of {self.expected[index]}"
            except Exception as error:  # whatever a client may meet: it counts
                problem = f"job {index}: {error!r}"
            with self._lock:
                self.answers += 1
                self.tokens += len(times)
                self.pauses += zip(times, times[1:])
                if problem:
                    self.failures.append(problem)

    def lowest_rate(self, begin, end, window=1.0):
        """-> the lowest tokens a second of any window of so many seconds between the two moments, or of all of a shorter time"""
        with self._lock:
            times = sorted(time for _, time in self.pauses if begin <= time <= end)
        counts = [0] * (int((end - begin) * 10) + 1)
        for time_ in times:
            counts[int((time_ - begin) * 10)] += 1
        width = min(int(window * 10), len(counts))
        return min(sum(counts[i:i + width]) for i in range(len(counts) - width + 1)) / (width / 10)

    def longest_pauses(self, moments):
        """-> per moment, the longest wait of any stream that it fell into, in seconds"""
        with self._lock:
            pauses = list(self.pauses)
        return [max((end - begin for begin, end in pauses if begin <= moment <= end), default=0.0) for moment in moments]


def quiet_answers(server):
    return [answer(server, job(index))[0] for index in range(NUM_JOBS)]


def workers_of(server):
    status, cluster = server.get("/v1/cluster")
    if status != 200:
        raise AssertionError(status)
    return cluster["workers"]


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def books_are_closed(metrics):
    get = lambda name: metrics["expertmesh:" + name]  # noqa: E731
    return get("requests_accepted_total") == sum(get(name) for name in (
        "num_requests_waiting", "num_requests_running", "requests_finished_total", "requests_failed_total",
        "requests_cancelled_total"))


class Leftovers:
    """What a server's processes hold: to be compared before and after."""

    def __init__(self, server):
        self.shm = set(os.listdir("/dev/shm"))
        self.files = len(os.listdir(f"/proc/{server.pid}/fd"))
        self.resident = resident_bytes(server.pid)
        self.threads = len(os.listdir(f"/proc/{server.pid}/task"))
        self.zombies = [pid for pid in descendants(server.pid) if state_of(pid) == "Z"]
        self.processes = len(descendants(server.pid))

    def __str__(self):
        return (f"{self.files} open files, {self.threads} threads, {self.processes} processes below, "
                f"{self.resident / 1e6:.0f} MB resident")


def state_of(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
