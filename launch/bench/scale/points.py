"""What is to be measured: points, each known by its settings alone, and the order in which they are taken."""
import dataclasses
import hashlib
import json

IN_PROCESS = "in-process"
NAMESPACES = "tcp-namespaces"  # by MPI over TCP, each worker on a host of its own: a network namespace
TRANSPORTS = (IN_PROCESS, "shm", "mpi", NAMESPACES)
FORM = 1  # of what is measured of a point: raised when that changes, so that older points are measured again


@dataclasses.dataclass(frozen=True)
class Setup:
    """Who computes. units: what is scaled; of workers their number, in process how many times the threads of one."""
    transport: str
    units: int
    workers: int
    threads: int  # of the coordinator
    worker_threads: int  # of each worker

    def __str__(self):
        if self.transport == IN_PROCESS:
            return f"in-process, {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.transport}, {self.workers} worker{'s' * (self.workers > 1)}"


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement. kind: `engine`, decode steps of `batch` sequences; `serve`, as many clients of a server."""
    kind: str
    setup: Setup
    batch: int
    input_len: int  # tokens of a prompt
    output_len: int  # decode steps; tokens of an answer
    requests: int  # of a server; 0: an engine
    dtype: str
    seed: int

    @property
    def settings(self):
        return dataclasses.asdict(self)

    def __str__(self):
        return f"{self.kind}: {self.setup}, prompts of {self.input_len}, batch {self.batch}"

    def key(self, fingerprint):
        """The same for the same settings, program, model and machine, else another"""
        text = json.dumps({"settings": self.settings, "fingerprint": fingerprint, "form": FORM}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def workload_seed(self):
        """Of its own, so that prompts of two points do not begin alike"""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).digest()
        return int.from_bytes(digest[:4], "little")


def setups(options, cores):
    """In process first: what the others are held against. More threads than cores are left out there."""
    for transport in TRANSPORTS:
        if transport not in options.transports:
            continue
        for units in sorted({1, *options.workers}):
            if transport != IN_PROCESS:
                yield Setup(transport, units, units, options.threads, options.worker_threads)
            elif units == 1 or units * options.threads <= cores:
                yield Setup(transport, units, 0, units * options.threads, 0)


def _kinds(setup, options):
    """An engine starts its workers itself, on this host."""
    if setup.transport != NAMESPACES:
        yield "engine"
    if not options.no_serve:
        yield "serve"


def plan(options, cores):
    """-> points in the order in which they are measured. Of every setup: each batch size (strong: the load stays), and each
    times its units (weak: the load grows with them)."""
    points = []
    for setup in setups(options, cores):
        batches = sorted({batch * factor for batch in options.batch_sizes for factor in (1, setup.units)})
        for kind in _kinds(setup, options):
            for input_len in options.input_lens:
                for batch in batches:
                    requests = options.requests_per_client * batch if kind == "serve" else 0
                    points.append(Point(kind, setup, batch, input_len, options.output_len, requests, options.dtype, options.seed))
    return points
