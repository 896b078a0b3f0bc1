"""The cluster file that `serve --cluster` and `up --cluster` take, as an inventory of devices."""
import collections
import dataclasses
import re

from fields import PlanError, read_json

MOST_OF_AN_ENTRY = 256  # workers, as the program has it
GPU_MEMORY_SHARE = 0.9  # as `serve --gpu-memory-utilization` has it


@dataclasses.dataclass(frozen=True)
class Kind:
    """Workers that are alike. hardware: a name of the table, None: processors as measured, of which each has so many threads,
    and its host's workers together on_host. capacity: bytes a second that it is said to read."""
    hardware: str | None
    threads: int
    on_host: int
    host_workers: int
    capacity: float | None


@dataclasses.dataclass(frozen=True)
class Cluster:
    coordinator: str | None  # its hardware
    memory_share: float  # of a GPU
    one_host: bool
    workers: tuple  # of (Kind, count), most first

    @property
    def count(self):
        return sum(count for _, count in self.workers)


def _device(fields, name, value):
    if value != "cpu" and not re.fullmatch(r"cuda(:\d+)?", value):
        raise PlanError(f"{fields.where}: field '{name}': expected cpu, cuda or cuda:N, got '{value}'")
    return value


def _entry(fields):
    """-> (host, devices, count on each, threads or None, capacity or None)"""
    devices = fields.list("devices", ["cpu"])
    if not devices or not all(isinstance(device, str) for device in devices):
        raise PlanError(f"{fields.where}: field 'devices': expected names of devices")
    read = (fields.text("host"), [_device(fields, "devices", device) for device in devices],
            fields.whole("count", 1, low=1, high=MOST_OF_AN_ENTRY), fields.whole("threads", 0, high=4096) or None,
            fields.number("capacity", required=False, high=1e6))
    fields.finish()
    return read


def read(path, cores, hardware_of):
    """cores: of a host without GPUs; hardware_of: (host, device) -> a name of the hardware table"""
    fields = read_json(path)
    coordinator = fields.object("coordinator")
    host, device = coordinator.text("host"), _device(coordinator, "device", coordinator.text("device", "cpu"))
    share = coordinator.number("gpu_memory_utilization", GPU_MEMORY_SHARE, high=1)
    coordinator.drop("address")
    coordinator.finish()
    entries = [_entry(one) for one in fields.objects("workers")]
    if not entries:
        raise PlanError(f"{fields.where}: field 'workers' is empty")
    if "coordinators" in fields:
        raise PlanError(f"{fields.where}: field 'coordinators': here each has devices of its own; plan --coordinators fixes their number")
    fields.drop("interface", "control_port", "secret_file")
    fields.finish()
    on_host = collections.Counter()
    for name, devices, count, _, _ in entries:
        on_host[name] += count * len(devices)
    threads_on_host = collections.Counter()
    for name, devices, count, threads, _ in entries:
        threads_on_host[name] += count * devices.count("cpu") * (threads or max(1, cores // on_host[name]))
    kinds = collections.Counter()
    for name, devices, count, threads, capacity in entries:
        for each in devices:
            gpu = each != "cpu"
            kind = Kind(hardware=hardware_of(name, each) if gpu else None,
                        threads=0 if gpu else threads or max(1, cores // on_host[name]), on_host=0 if gpu else threads_on_host[name],
                        host_workers=0 if gpu else on_host[name], capacity=1e9 * capacity if capacity else None)
            kinds[kind] += count
    return Cluster(hardware_of(host, device) if device != "cpu" else None, share, set(on_host) == {host}, tuple(kinds.most_common()))
