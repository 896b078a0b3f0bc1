"""Costs measured on this machine: the file that `plan --calibrate FILE` writes and `plan --costs FILE` reads.

ceilings: by threads, what the machine reads and computes at best. profiles: of a model, by threads, what share of the floor
(device.py) each part of a layer reached with so many rows at once. links: an exchange of rows with a worker process."""
import json
from pathlib import Path

from device import Curve, Device, Link, Profile
from fields import Fields, PlanError, read_json

FORM = 1  # of the file
PARTS = ("attention", "kv", "router", "dense_ffn", "shared_expert", "experts", "lm_head", "rest")


class Costs:
    def __init__(self, fields):
        if fields.whole("form", low=1) != FORM:
            raise PlanError(f"{fields.where}: field 'form': of another version; make it anew with plan --calibrate")
        self.where = fields.where
        self.weights = fields.text("weights")
        self.kv_cache_dtype = fields.text("kv_cache_dtype", "float32" if self.weights == "float32" else "bfloat16")  # as files before it
        self.cores = fields.whole("cores", low=1)
        self.memory = 1e9 * fields.number("memory_gb")
        self._ceilings = dict(_ceiling(one) for one in fields.objects("ceilings"))
        self._profiles = {}
        for one in fields.objects("profiles"):
            threads, profile = _profile(one)
            self._profiles.setdefault(threads, []).append(profile)
        self.links = {}
        links = fields.object("links")
        for name in links.names():
            self.links[name] = _link(name, links.object(name))
        fields.drop("date", "command", "machine", "programs")
        fields.finish()
        for threads in self._profiles:
            if threads not in self._ceilings:
                raise PlanError(f"{self.where}: field 'ceilings': none for {threads} threads, of which there are profiles")
        if not self._profiles:
            raise PlanError(f"{self.where}: field 'profiles': is empty")

    def _measured(self, threads):
        """The nearest number of threads that was measured"""
        return min(self._profiles, key=lambda one: (abs(one - threads), one))

    def _ceiling(self, threads):
        """Bytes and operations a second of so many threads together; more than the cores are no more"""
        threads = min(threads, self.cores)
        near = min(self._ceilings, key=lambda one: (abs(one - threads), one))
        bytes_per_second, operations = self._ceilings[near]
        return bytes_per_second, operations * threads / near

    def device(self, threads, on_host=None, memory=None):
        """A process with so many threads on a machine like this one, where on_host threads compute at the same time. The
        efficiency is that of as many threads alone; what they compete for are the ceilings."""
        on_host = max(threads, on_host or threads)
        profiles = tuple(sorted(self._profiles[self._measured(threads)], key=lambda one: one.working_set))
        bandwidth, peak = self._ceiling(threads)
        shared_bandwidth, shared_peak = self._ceiling(on_host)
        share = threads / on_host
        return Device(name=f"{threads} thread{'s' * (threads > 1)}", memory=self.memory if memory is None else memory,
                      bandwidth=min(bandwidth, shared_bandwidth * share), peak=min(peak, shared_peak * share), profiles=profiles)

    def link(self, name):
        if name not in self.links:
            raise PlanError(f"{self.where}: field 'links': nothing was measured of '{name}'")
        return self.links[name]


def _ceiling(fields):
    threads = fields.whole("threads", low=1)
    read = fields.number("memory_gb_per_second") * 1e9, fields.number("compute_gflop_per_second") * 1e9
    fields.finish()
    return threads, read


def _profile(fields):
    threads, working_set = fields.whole("threads", low=1), fields.number("working_set_bytes")
    parts = fields.object("parts")
    curves = {}
    for name in parts.names():
        if name not in PARTS:
            raise PlanError(f"{parts.where}: unknown field '{name}'")
        points = parts.list(name)
        if not points or not all(isinstance(point, list) and len(point) == 2 and all(isinstance(x, (int, float)) and x > 0 for x in point)
                                 for point in points):
            raise PlanError(f"{parts.where}: field '{name}': expected [[rows, share], …]")
        curves[name] = Curve(points)
    missing = [name for name in ("attention", "kv", "router", "experts", "lm_head", "rest") if name not in curves]
    if missing:
        raise PlanError(f"{parts.where}: field '{missing[0]}' is missing")
    fields.drop("model")
    fields.finish()
    return threads, Profile(working_set, curves)


def _link(name, fields):
    link = Link(name, latency=fields.number("latency_us", 0) / 1e6, bandwidth=fields.number("gb_per_second") * 1e9,
                crowded=fields.number("crowded_us", 0) / 1e6)
    fields.finish()
    return link


def read(path):
    return Costs(read_json(path))


def of_content(content, where="costs"):
    return Costs(Fields(json.loads(json.dumps(content)), where))


def write(path, content):
    of_content(content, str(path))  # what is written can be read
    Path(path).write_text(json.dumps({"form": FORM, **content} if "form" not in content else content, indent=1) + "\n")
