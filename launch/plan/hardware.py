"""Devices by their published peaks: hardware.toml, and files like it."""
import dataclasses
from pathlib import Path

from device import Device, Link
from fields import PlanError, read_toml

TABLE = Path(__file__).with_name("hardware.toml")
PEAKS = {"bfloat16": "bf16_tflops", "float32": "fp32_tflops", "int8": "int8_tops", "int4": "int8_tops"}


@dataclasses.dataclass(frozen=True)
class Hardware:
    name: str
    memory: float
    bandwidth: float
    peaks: dict  # by type of weights, operations a second
    host_link: Link
    network: Link
    overhead: float
    price_per_hour: float | None

    def device(self, weights, memory_share):
        if weights not in self.peaks:
            raise PlanError(f"hardware {self.name}: no peak for weights of type {weights}")
        return Device(self.name, memory=self.memory * memory_share, bandwidth=self.bandwidth, peak=self.peaks[weights], overhead=self.overhead,
                      key_peak=self.peaks["float32" if weights == "float32" else "bfloat16"])


def _hardware(name, fields):
    memory = fields.number("memory_gb") * 1e9
    bandwidth = fields.number("memory_gb_per_second") * 1e9 * fields.number("memory_share", high=1)
    compute = fields.number("compute_share", high=1)
    read = {peak: fields.number(peak) * 1e12 * compute for peak in dict.fromkeys(PEAKS.values()) if peak in fields}
    peaks = {weights: read[peak] for weights, peak in PEAKS.items() if peak in read}
    links = [Link(link, latency=2 * fields.number(f"{link}_latency_us", 0) / 1e6, bandwidth=fields.number(f"{link}_gb_per_second") * 1e9)
             for link in ("host_link", "network")]
    overhead = fields.number("layer_overhead_us", 0) / 1e6
    price = fields.number("price_per_hour", required=False)
    fields.finish()
    return Hardware(name, memory, bandwidth, peaks, *links, overhead, price)


def read(files):
    """files: beside the table that comes with the program; later ones win -> {name: Hardware}"""
    found = {}
    for path in (TABLE, *files):
        table = read_toml(path)
        for name in table.names():
            found[name] = _hardware(name, table.object(name))
    return found
