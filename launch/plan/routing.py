"""How many experts a step reads, and how much the busiest worker has of them. Rows choose independently; `skew` is how unequal
the experts' importance is: 0 for equal, else the exponent of a Zipf distribution (importance of the n-th ~ n^-skew)."""
import functools
import heapq
import math
from statistics import NormalDist


@functools.cache
def importance(experts, skew):
    """-> [E], descending, sum 1"""
    weights = [n ** -skew for n in range(1, experts + 1)]
    whole = sum(weights)
    return tuple(weight / whole for weight in weights)


def cv2(experts, skew):
    """The squared coefficient of variation of the importance (Shazeer et al. 2017, arXiv:1701.06538, section 4), as
    `/v1/experts` shows it: E sum p^2 - 1"""
    return experts * sum(p * p for p in importance(experts, skew)) - 1


def skew_of_cv2(experts, wanted):
    """The exponent that has this CV^2 with as many experts; more than E - 1 there cannot be."""
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cv2(experts, middle) < wanted else (low, middle)
    return low


@functools.cache
def chances(experts, per_token, skew):
    """-> [E] how probable it is that a row chooses each expert: K times its importance, at most 1, and K in sum"""
    if skew == 0:
        return (per_token / experts,) * experts
    shares, certain = importance(experts, skew), 0
    while True:
        left = sum(shares[certain:])
        scale = (per_token - certain) / left if left > 0 else 0
        if certain >= per_token or scale * shares[certain] <= 1:
            return (1.0,) * certain + tuple(scale * share for share in shares[certain:])
        certain += 1


@functools.cache
def largest_of(count):
    """The expected largest of `count` standard normal numbers (Blom 1958: the quantile at (n - 0.375) / (n + 0.25))"""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


class Placement:
    """E experts and `redundant` replicas more, of the hottest by load a replica (as common/moe/placement_plan.h chooses them),
    on workers of one speed. Replicas share an expert's rows evenly."""

    def __init__(self, experts, per_token, skew, redundant, workers):
        self._per_token = per_token
        self.replicas = experts + redundant
        self.workers = min(workers, self.replicas)  # that have something to do in a layer
        self.held = -(-self.replicas // self.workers)  # by a worker, at most
        groups = _groups(experts, per_token, skew, redundant)
        self._groups = _merged(groups)  # (chance of a replica, how many such)
        self._imbalance = _imbalance(groups, self.workers)

    def taken(self, rows):
        """-> (distinct replicas that `rows` rows choose; of the worker that has most: such replicas, and rows), all expected.

        The first is the sum of 1 - (1 - q)^rows. A worker's are sums of many small chances: the mean, and as many standard
        deviations more as the largest of W normal numbers has; rows also follow the placement's imbalance."""
        hits = variance = 0.0
        for chance, count in self._groups:
            hit = 1.0 if chance >= 1 else -math.expm1(rows * math.log1p(-chance))
            hits += count * hit
            variance += count * hit * (1 - hit)
        sigmas, entries = largest_of(self.workers), rows * self._per_token
        share = entries / self.workers
        hit = min(self.held, hits, (hits + sigmas * math.sqrt(variance * self.workers)) / self.workers)
        return hits, hit, min(entries, share * self._imbalance + sigmas * math.sqrt(share * (1 - 1 / self.workers)))

    def workers_of_a_row(self):
        """Distinct workers that a row goes to, expected: K balls into W, each worker's chance alike"""
        return self.workers * (1 - (1 - 1 / self.workers) ** self._per_token)


@functools.cache
def _groups(experts, per_token, skew, redundant):
    if skew == 0:
        each, more = divmod(experts + redundant, experts)
        q = per_token / experts
        return tuple((q / r, r * n) for r, n in ((each, experts - more), (each + 1, more)) if n)
    queue = [(-q, q, 1) for q in chances(experts, per_token, skew)]
    heapq.heapify(queue)
    for _ in range(redundant):
        _, q, r = queue[0]
        heapq.heapreplace(queue, (-q / (r + 1), q, r + 1))
    counted = {}
    for load, _, r in queue:
        share = round(-load, 12)
        counted[share] = counted.get(share, 0) + r
    return tuple(sorted(counted.items(), reverse=True))


MOST_GROUPS = 40


@functools.cache
def _merged(groups):
    """Neighbours as one of their mean chance, where there are more than MOST_GROUPS"""
    while len(groups) > MOST_GROUPS:
        pairs = [groups[at:at + 2] for at in range(0, len(groups), 2)]
        groups = tuple((sum(chance * count for chance, count in pair) / sum(count for _, count in pair), sum(count for _, count in pair)) for pair in pairs)
    return groups


@functools.cache
def _imbalance(groups, workers):
    """The largest load of a worker over the mean, the heaviest replica first to the least loaded (Graham 1969)"""
    whole = sum(chance * count for chance, count in groups)
    if sum(count for _, count in groups) <= workers:
        return groups[0][0] * workers / whole
    if len(groups) == 1:
        (chance, count), = groups
        return -(-count // workers) * chance * workers / whole
    loads = [0.0] * workers
    for chance, count in groups:
        for _ in range(count):
            heapq.heapreplace(loads, loads[0] + chance)
    return max(loads) * workers / whole
