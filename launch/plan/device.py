"""How long a device takes for a part of a layer."""
import bisect
import dataclasses
import math


class Curve:
    """What share of the floor's speed was reached with so many rows: between two measured numbers of rows by the logarithm,
    beyond them as at the last."""

    def __init__(self, points):
        self._rows, self._shares = zip(*sorted(points))

    def at(self, rows):
        if rows <= self._rows[0]:
            return self._shares[0]
        if rows >= self._rows[-1]:
            return self._shares[-1]
        high = bisect.bisect_right(self._rows, rows)
        low = high - 1
        part = math.log(rows / self._rows[low]) / math.log(self._rows[high] / self._rows[low])
        return self._shares[low] + part * (self._shares[high] - self._shares[low])


@dataclasses.dataclass(frozen=True)
class Profile:
    """Curves measured with a model of so many bytes: small ones stay in caches. curves: {part: Curve}"""
    working_set: float
    curves: dict

    # FFNs that were not there to be measured are like the experts.
    def share(self, part, rows):
        curve = self.curves.get(part) or self.curves.get("experts")
        return curve.at(rows)


@dataclasses.dataclass(frozen=True)
class Device:
    """bandwidth: bytes a second read, and peak: operations a second (a multiply-add is two), at best; key_peak: with keys and
    values, where it is another than with weights. profiles: by working_set, ascending, of what share of these is reached; none:
    all. overhead: seconds a layer that neither explains."""
    name: str
    memory: float  # bytes that may be taken
    bandwidth: float
    peak: float
    profiles: tuple = ()
    overhead: float = 0.0
    key_peak: float | None = None

    def share(self, part, rows, working_set):
        if not self.profiles:
            return 1.0
        at = bisect.bisect([profile.working_set for profile in self.profiles], working_set)
        if at in (0, len(self.profiles)):
            return self.profiles[min(at, len(self.profiles) - 1)].share(part, rows)
        low, high = self.profiles[at - 1], self.profiles[at]
        part_of_way = math.log(working_set / low.working_set) / math.log(high.working_set / low.working_set)
        return (1 - part_of_way) * low.share(part, rows) + part_of_way * high.share(part, rows)

    def floor(self, bytes, multiply_adds, part=None):
        """The roofline (Williams et al. 2009, doi:10.1145/1498765.1498785)"""
        return max(bytes / self.bandwidth, 2 * multiply_adds / (self.key_peak if part == "kv" and self.key_peak else self.peak))

    def seconds(self, part, bytes, multiply_adds, rows, working_set):
        """rows: that meet the weights at once; multiply_adds: of all of them"""
        floor = self.floor(bytes, multiply_adds, part)
        return floor / self.share(part, rows, working_set) if floor > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Link:
    """Rows to workers and back. latency: seconds of an exchange of no rows, both ways. crowded: seconds a layer more where the
    processes of a host are more than its cores, and wait for their turn."""
    name: str
    latency: float
    bandwidth: float  # bytes a second, each way
    crowded: float = 0.0
