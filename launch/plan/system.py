"""Puts model, cluster, measured costs and the hardware table together."""
import dataclasses

import cluster as cluster_file
import costs as costs_file
import hardware as hardware_table
from device import Link
from fields import PlanError
from step import System

MOST_PRICE = 10**9


def hardware_of(names, table):
    """names: of `--hardware`, NAME or HOST=NAME -> (host, device) -> NAME"""
    of_host, all_others = {}, None
    for text in names:
        host, _, name = text.rpartition("=")
        if name not in table:
            raise PlanError(f"--hardware {text}: not in the hardware table, which has {', '.join(sorted(table))}")
        if host:
            of_host[host] = name
        else:
            all_others = name

    def find(host, device):
        name = of_host.get(host, all_others)
        if name is None:
            raise PlanError(f"host {host}, device {device}: say which GPU that is: --hardware NAME, or {host}=NAME; the table has "
                            f"{', '.join(sorted(table))}")
        return name

    return find


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a plan is made from. coordinators: how many there may be at most; prices: a device's, an hour, None if not all are known"""
    system: System
    cluster: object
    coordinators: int
    price_of: object  # (coordinators, workers) -> price an hour, or None


class _Workers:
    """The first n workers of a cluster, and what connects them."""

    def __init__(self, cluster, device_of, link, crowded_from):
        self._cluster = cluster
        self._device_of = device_of
        self._link = link
        self._crowded_from = crowded_from  # of workers; None: never
        self._made = {}

    def devices(self, count):
        if count not in self._made:
            left, made = count, []
            for kind, there in self._cluster.workers:
                taken = min(left, there)
                if taken:
                    made.append((self._device_of(kind, count), taken))
                left -= taken
            if left:  # one more than there are: like the last
                device, taken = made.pop() if made else (self._device_of(self._cluster.workers[-1][0], count), 0)
                made.append((device, taken + left))
            self._made[count] = made
        return self._made[count]

    def link(self, count):
        if self._crowded_from is None or count < self._crowded_from:
            return dataclasses.replace(self._link, crowded=0.0)
        return self._link


def build(model, options):
    """options: of the command line -> Parts"""
    table = hardware_table.read(options.hardware_file)
    costs = costs_file.read(options.costs) if options.costs else None
    cores = costs.cores if costs else 1
    cluster = cluster_file.read(options.cluster, cores, hardware_of(options.hardware, table))
    names = {cluster.coordinator, *(kind.hardware for kind, _ in cluster.workers)}
    if None in names and costs is None:
        raise PlanError(f"{options.cluster}: has processors: --costs FILE is required (expertmesh plan --calibrate FILE makes it on one of them)")
    if costs and None not in names:
        raise PlanError(f"--costs {options.costs}: has no effect: no device of {options.cluster} is a processor")
    if costs and costs.weights != model.weights:
        raise PlanError(f"--costs {options.costs}: measured with weights of type {costs.weights}, the model's are {model.weights} "
                        "(--dtype, --quantization; or calibrate with them)")
    if costs and not cluster.coordinator and costs.kv_cache_dtype != model.kv_cache_dtype:
        raise PlanError(f"--costs {options.costs}: measured with a KV cache of {costs.kv_cache_dtype}, the model's is {model.kv_cache_dtype} "
                        "(--kv-cache-dtype; or calibrate with it)")
    if cluster.coordinator and model.kv_cache_dtype == "int8":
        raise PlanError(f"--kv-cache-dtype int8: coordinators with a GPU have none ({options.cluster})")
    threads = options.threads or cores

    def device_of(kind, count):
        if kind.hardware:
            device = table[kind.hardware].device(model.weights, cluster.memory_share)
        else:
            on_host = kind.on_host if not cluster.one_host else min(kind.on_host, kind.threads * count)
            device = costs.device(kind.threads, on_host, costs.memory / max(1, kind.host_workers + cluster.one_host))
        return dataclasses.replace(device, bandwidth=kind.capacity) if kind.capacity else device

    if cluster.coordinator:
        coordinator = table[cluster.coordinator].device(model.weights, cluster.memory_share)
    else:
        coordinator = costs.device(threads)
    workers = _Workers(cluster, device_of, _link(cluster, table, costs, options), cores if None in names and cluster.one_host else None)
    movable = sum(count for kind, count in cluster.workers if kind.hardware == cluster.coordinator and kind.host_workers <= 1)
    prices = _prices(options.price, table, names)
    system = System(model, coordinator, workers.devices, workers.link, options.skew, options.grouping == "together")

    def price_of(split):
        used = [(cluster.coordinator, split.coordinators)]
        left = split.workers
        for kind, there in cluster.workers:
            used.append((kind.hardware, min(left, there)))
            left -= min(left, there)
        each = [(prices.get(name or "cpu"), count) for name, count in used if count]
        return None if any(price is None for price, _ in each) else sum(price * count for price, count in each)

    return Parts(system, cluster, 1 + movable, price_of)


def _prices(wanted, table, names):
    prices = {name: one.price_per_hour for name, one in table.items()}
    for text in wanted:
        name, equals, amount = text.partition("=")
        if not equals or name not in {one or "cpu" for one in names}:
            raise PlanError(f"--price {text}: expected NAME=AMOUNT of a device of the cluster, such as {sorted(one or 'cpu' for one in names)[0]}=2.5")
        try:
            prices[name] = float(amount)
        except ValueError:
            prices[name] = -1.0
        if not 0 <= prices[name] <= MOST_PRICE:
            raise PlanError(f"--price {text}: expected a number from 0 to {MOST_PRICE} behind the =")
    return prices


def _link(cluster, table, costs, options):
    if options.network:
        bandwidth, latency = options.network
        return Link("--network", 2 * latency / 1e6, bandwidth * 1e9)
    gpus = [name for name in (cluster.coordinator, *(kind.hardware for kind, _ in cluster.workers)) if name]
    if costs is None:
        links = [table[name].host_link if cluster.one_host else table[name].network for name in gpus]
        return Link(links[0].name, max(link.latency for link in links), min(link.bandwidth for link in links))
    if not cluster.one_host:
        raise PlanError(f"{options.cluster}: has workers on other hosts, to which nothing was measured: --network GB/S,US is required")
    return costs.link(options.transport)
