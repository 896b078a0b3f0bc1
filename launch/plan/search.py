"""The best split of a cluster: the most tokens a second within the bounds, and then with as few workers as keep that."""
import dataclasses
import functools
import math

import memory
from serving import serve
from step import Split

KEEPS = 0.99  # of the throughput, with fewer workers
MOST_MICRO_BATCHES = 4
MOST_SERVED_MICRO_BATCHES = 2  # by this version
STEP_TOKENS = (256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 3  # of looking at one dimension after the other


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds. sequences: most that decode at a time, None: as many as there is room for"""
    ttft: float
    itl: float
    sequences: int | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What may be chosen: most_coordinators that have a device; workers: of the cluster. Others: a value that is fixed, or None."""
    most_coordinators: int
    workers: int
    coordinators: int | None = None
    fixed_workers: int | None = None
    micro_batches: int | None = None
    redundant: int | None = None
    step_tokens: int | None = None

    def workers_left(self, coordinators):
        """The first coordinator has a device of its own, further ones take workers'."""
        return self.workers - (coordinators - 1)


@dataclasses.dataclass(frozen=True)
class Choice:
    """limit: what keeps the number of sequences from being higher. fits: within bounds and memory; else excess: how many times
    over the worst bound it is, with one sequence."""
    split: Split
    step_tokens: int
    service: object
    limit: str
    fits: bool
    excess: float = 0.0

    @property
    def score(self):
        return (1, self.service.tokens_per_second) if self.fits else (0, -self.excess)


def _steps_up(low, high):
    """low … high, in steps of about a half"""
    values, value = [], low
    while value < high:
        values.append(value)
        value = max(value + 1, value * 3 // 2)
    return [*values, high]


def _last_within(excess, high):
    """excess rises with its whole argument, from at most 1 at 1 to more than 1 at high -> the last at which it is at most 1, to a
    hundredth, and one beyond: by turns where a line through both ends says, and in the middle"""
    low, by_line = 1, True
    while high - low > max(1, low // 100):
        middle, ends = (low + high) // 2, (excess(low), excess(high))
        if by_line and math.isfinite(ends[1]):
            middle = low + int((1 - ends[0]) / (ends[1] - ends[0]) * (high - low))
            middle = min(max(middle, low + max(1, low // 100)), high - 1)
        low, high = (middle, high) if excess(middle) <= 1 else (low, middle)
        by_line = not by_line
    return low, high


class Search:
    def __init__(self, system, workload, bounds, limits):
        self._system = system
        self._workload = workload
        self._bounds = bounds
        self._limits = limits
        self.evaluate = functools.cache(self._evaluate)

    # ---- one split

    def _excess(self, service):
        return max(service.ttft / self._bounds.ttft, service.itl / self._bounds.itl)

    def _evaluate(self, split, step_tokens):
        """-> Choice with as many sequences as bounds and memory allow: more make every step longer"""
        system, workload = self._system, self._workload
        room = memory.most_sequences(system.model, split, workload, system.coordinator)
        service = functools.cache(lambda sequences: serve(system, split, workload, sequences, step_tokens))
        if room == 0 or not memory.workers_fit(system, split):
            who = "coordinators" if room == 0 else "workers"
            needed, there = ((memory.coordinator_bytes(system.model, split, workload, 1), memory.room(system.coordinator)) if room == 0 else
                             (memory.worker_bytes(system.model, split), memory.room(system.workers_of(split.workers)[0][0])))
            return Choice(split, step_tokens, service(1), f"memory of the {who}", False, 1e6 * max(1.0, needed / there))
        most, limit = room, "memory of the coordinators"
        if self._bounds.sequences is not None and self._bounds.sequences <= room:
            most, limit = self._bounds.sequences, "sequences"

        def excess(sequences):
            return self._excess(service(sequences))

        if excess(1) > 1:
            return Choice(split, step_tokens, service(1), self._bound(service(1)), False, excess(1))
        if excess(most) > 1:
            most, beyond = _last_within(excess, most)
            limit = self._bound(service(beyond))
        return Choice(split, step_tokens, service(most), limit, True)

    def _bound(self, service):
        return "time between tokens" if service.itl / self._bounds.itl >= service.ttft / self._bounds.ttft else "time to the first token"

    # ---- all of them

    def _redundants(self, split):
        """None, or as many as give each worker equally many, or none is idle"""
        experts = self._system.model.most_experts
        if self._limits.redundant is not None:
            return [self._limits.redundant]
        if not experts or split.workers < 2:
            return [0]
        full = -experts % split.workers if split.workers <= experts else split.workers - experts
        return sorted({0, full, full + split.workers, experts // 4})

    def _neighbours(self, dimension, split, step_tokens):
        limits, one = self._limits, dataclasses.replace
        if dimension == "micro_batches":
            counts = range(1, MOST_MICRO_BATCHES + 1) if limits.micro_batches is None else [limits.micro_batches]
            return [(one(split, micro_batches=m if split.workers else 1), step_tokens) for m in counts]
        if dimension == "redundant":
            return [(one(split, redundant=r), step_tokens) for r in self._redundants(split)]
        tokens = STEP_TOKENS if limits.step_tokens is None else [limits.step_tokens]
        return [(split, t) for t in tokens]

    def of_counts(self, coordinators, workers, start=None):
        """-> the best Choice with these, one dimension after the other, from where `start` is"""
        if start:
            split, step_tokens = dataclasses.replace(start.split, coordinators=coordinators, workers=workers), start.step_tokens
        else:
            split, step_tokens = Split(coordinators, workers, self._limits.micro_batches or 1), self._limits.step_tokens or STEP_TOKENS[2]
        if workers == 0:
            split = dataclasses.replace(split, micro_batches=1, redundant=0)
        best = None
        for _ in range(ROUNDS):
            before = best
            for dimension in ("micro_batches", "redundant", "step_tokens"):
                found = [self.evaluate(*neighbour) for neighbour in self._neighbours(dimension, split, step_tokens)]
                best = max([*found, *([best] if best else [])], key=lambda choice: choice.score)
                split, step_tokens = best.split, best.step_tokens
            if before and best.score == before.score:
                break
        return best

    def _counts(self):
        limits = self._limits
        if limits.coordinators is not None:
            return [limits.coordinators]
        most = max(1, min(limits.most_coordinators, limits.workers))
        return _steps_up(1, most)

    def _workers(self, coordinators):
        if self._limits.fixed_workers is not None:
            return self._limits.fixed_workers
        if not self._system.model.most_experts:
            return 0
        return max(0, self._limits.workers_left(coordinators))

    def _only_with_workers(self):
        return (self._limits.micro_batches or 1) > 1 or bool(self._limits.redundant)

    def best(self):
        counts = self._counts()
        found = {}

        def look(coordinators):
            if coordinators not in found:
                start = max(found.values(), key=lambda choice: choice.score) if found else None
                choice = self.of_counts(coordinators, self._workers(coordinators), start)
                found[coordinators] = choice
            return found[coordinators]

        for coordinators in counts:
            look(coordinators)
        # Between the coarse steps around the best one.
        for _ in range(6):
            at = max(found, key=lambda count: found[count].score)
            known = sorted(found)
            place = known.index(at)
            between = [(at + other) // 2 for other in known[max(0, place - 1):place + 2] if abs(other - at) > 1]
            if not between:
                break
            for coordinators in between:
                look(coordinators)
        best = max(found.values(), key=lambda choice: choice.score)
        best = self.of_counts(best.split.coordinators, best.split.workers, best)
        if self._limits.fixed_workers is None:
            best = self._fewest_workers(best)
            if (self._limits.workers == 0 or (self._limits.coordinators or 1) == 1) and not self._only_with_workers():
                alone = self.of_counts(1, 0)
                if alone.score >= best.score:
                    best = alone
        return best

    def _fewest_workers(self, best):
        """Bisection: fewer workers never have more throughput, but for how their experts happen to divide"""
        if not best.fits or best.split.workers == 0:
            return best
        wanted, low, high, kept = KEEPS * best.service.tokens_per_second, 0, best.split.workers, best
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            choice = self.of_counts(best.split.coordinators, middle, kept) if middle else None
            if choice and choice.fits and choice.service.tokens_per_second >= wanted:
                high, kept = middle, choice
            else:
                low = middle
        return kept

    def one_more(self, choice):
        """-> {what: Choice} with one worker, and one coordinator, more than these"""
        split = choice.split
        if self._system.model.most_experts == 0:
            return {}
        return {"worker": self.of_counts(split.coordinators, split.workers + 1, choice),
                "coordinator": self.of_counts(split.coordinators + 1, split.workers, choice)}
