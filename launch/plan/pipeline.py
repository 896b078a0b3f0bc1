"""Micro-batches between a coordinator and its workers."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """Seconds of one layer, for one micro-batch of one coordinator.

    attention: all that the coordinator does before its rows leave and after they are back. shared: what it does while they are
    away. exchange: rows on their way, there and back. link: how long its link is taken in the busier direction. experts: of the
    busiest worker until the answer. worker: how long that worker is taken, for the same micro-batch of all coordinators."""
    attention: float
    shared: float = 0.0
    exchange: float = 0.0
    link: float = 0.0
    experts: float = 0.0
    worker: float = 0.0

    @property
    def path(self):
        """Of a micro-batch that waits for nobody"""
        return self.attention + max(self.shared, self.exchange + self.experts)

    @property
    def longest(self):
        """What limits how often a micro-batch can follow another"""
        return max(self.attention + self.shared, self.link, self.worker)


def layers_seconds(stages, micro_batches):
    """[(number of layers, Stage)] in order -> seconds until the last micro-batch is through them all.

    With T_f = longest and m micro-batches, L equal layers take L max(m T_f, path) + min(m T_f, path) - T_f: the bottleneck is
    taken without a break once m T_f >= path, else each layer waits for its own rows. Equal to m L T_f + path - T_f of
    MegaScale-Infer (Zhu et al. 2025, arXiv:2504.02263, section 4.1), which holds in the first case. Unequal layers are taken
    one kind after the other, without what they overlap at the seams. Of several coordinators that take turns at the workers this is
    the optimistic bound: nobody waits for another's turn before the bottleneck has no pause (Denning and Buzen 1978,
    doi:10.1145/356733.356735)."""
    total = 0.0
    for count, stage in stages:
        busy = micro_batches * stage.longest
        total += count * max(busy, stage.path)
    last = stages[-1][1] if stages else Stage(0.0)
    return total + min(micro_batches * last.longest, last.path) - last.longest


def simulated_seconds(layers, micro_batches, stage):
    """The same by recurrence, event by event: for tests, one coordinator without a shared expert."""
    coordinator = worker = 0.0
    ready = [0.0] * micro_batches
    for _ in range(layers):
        for j in range(micro_batches):
            coordinator = max(coordinator, ready[j]) + stage.attention
            worker = max(worker, coordinator + stage.exchange / 2) + stage.experts
            ready[j] = worker + stage.exchange / 2
    return max(ready)
