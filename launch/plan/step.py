"""How long a step takes, and where its time goes."""
import dataclasses

import pipeline
from routing import Placement

ROUTED_TWICE = 4  # times that a row is read or written beside the matrices, in each layer: norms, residuals, packing


@dataclasses.dataclass(frozen=True)
class Split:
    """Who computes what. workers: 0 has the experts in the coordinator; redundant: replicas in each layer beyond one of each."""
    coordinators: int = 1
    workers: int = 0
    micro_batches: int = 1
    redundant: int = 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a step computes, in all coordinators together: a token of each of `decodes` sequences, the last of `context` tokens,
    and `prompt` tokens of prompts, which attend to `prompt_context` tokens on average and end `prompts` prompts."""
    decodes: float
    context: float
    prompt: float = 0.0
    prompt_context: float = 0.0
    prompts: float = 0.0

    @property
    def tokens(self):
        return self.decodes + self.prompt

    def divided(self, by):
        return Rows(self.decodes / by, self.context, self.prompt / by, self.prompt_context, self.prompts / by)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """seconds: of the step; parts: of them by name, what a micro-batch's way through the layers has, times the micro-batches'
    share of it; busy: shares of the step in which coordinator, link and busiest worker have something to do."""
    seconds: float
    parts: dict
    busy: dict

    @property
    def bottleneck(self):
        return max(self.busy, key=self.busy.get)


def rest_bytes(model, rows, logit_rows):
    """What a step moves beside weights and keys: rows through norms, residuals and packing, one a slot to experts and back, and
    logits as float32"""
    passes = sum(layer.count * (ROUTED_TWICE + 2 * layer.per_token) for layer in model.layers)
    return rows * model.row_bytes * passes + 4 * logit_rows * model.vocab


def kv_work(layer, rows):
    """-> (bytes of keys and values read, multiply-adds with them). A prompt's tokens read theirs once for a tile; what is
    left is counted once for each chunk."""
    seen, prompt_seen = layer.keys(rows.context), layer.keys(rows.prompt_context)
    bytes_read = layer.kv_bytes * (rows.decodes * seen + min(rows.prompt, prompt_seen))
    return bytes_read, layer.multiply_adds_per_key * (rows.decodes * seen + rows.prompt * prompt_seen)


class System:
    """A model on devices. workers_of(n) -> [(Device, count)] of the first n workers; link_of(n) -> Link to them. together: whether
    a worker reads its weights once for the rows of all coordinators, which then keep step."""

    def __init__(self, model, coordinator, workers_of, link_of, skew=0.0, together=False):
        self.model = model
        self.coordinator = coordinator
        self.skew = skew
        self.together = together
        self.num_steps = 0  # that were computed
        self._workers_of = workers_of
        self._link_of = link_of
        self._placements = {}

    def placement(self, layer, split):
        key = layer.experts, layer.per_token, split.redundant, max(1, split.workers)
        if key not in self._placements:
            self._placements[key] = Placement(layer.experts, layer.per_token, self.skew, split.redundant, max(1, split.workers))
        return self._placements[key]

    def workers_of(self, count):
        return self._workers_of(count)

    def _on_coordinator(self, part, work, rows, working_set):
        return self.coordinator.seconds(part, work.bytes, work.multiply_adds * rows, rows, working_set)

    def _attention(self, layer, rows, working_set):
        kv_bytes, kv_multiply_adds = kv_work(layer, rows)
        kv = self.coordinator.seconds("kv", kv_bytes, kv_multiply_adds, rows.tokens, working_set)
        return self._on_coordinator("attention", layer.attention, rows.tokens, working_set) + kv

    def _experts(self, layer, split, rows, devices, working_set):
        """Of the busiest worker. Workers of several kinds share by their speed: the harmonic mean."""
        hits, hit, most_rows = self.placement(layer, split).taken(rows)
        each = max(1.0, rows * layer.per_token / hits)
        count = sum(n for _, n in devices)
        return 1 / sum(n / count / device.seconds("experts", hit * layer.expert.bytes, most_rows * layer.expert.multiply_adds, each, working_set)
                       for device, n in devices)

    def time(self, split, rows):
        """rows: of all coordinators"""
        self.num_steps += 1
        model, mine = self.model, rows.divided(split.coordinators * split.micro_batches)
        all_rows = mine.tokens * (split.coordinators if self.together else 1)
        turns = 1 if self.together else split.coordinators
        experts_here = split.workers == 0
        own_set = model.coordinator_bytes + (model.expert_bytes(0) if experts_here else 0)
        devices = [(self.coordinator, 1)] if experts_here else self._workers_of(split.workers)
        link = None if experts_here else self._link_of(split.workers)
        worker_set = own_set if experts_here else model.expert_bytes(split.redundant) / split.workers
        logit_rows = mine.decodes + mine.prompts
        layers = sum(layer.count for layer in model.layers)
        rest = self.coordinator.seconds("rest", rest_bytes(model, mine.tokens, logit_rows), 0, mine.tokens, own_set) / max(1, layers)
        stages, parts = [], dict.fromkeys(("attention", "router", "dense_ffn", "shared_expert", "experts", "exchange", "rest"), 0.0)
        for layer in model.layers:
            attention = self._attention(layer, mine, own_set)
            dense = self._on_coordinator("dense_ffn", layer.dense_ffn, mine.tokens, own_set)
            router = self._on_coordinator("router", layer.router, mine.tokens, own_set)
            shared = self._on_coordinator("shared_expert", layer.shared_expert, mine.tokens, own_set)
            alone = attention + dense + router + rest + self.coordinator.overhead
            found = {"attention": attention, "dense_ffn": dense, "router": router, "shared_expert": shared, "rest": rest + self.coordinator.overhead}
            if layer.experts and experts_here:
                experts = self._experts(layer, split, mine.tokens, devices, own_set)
                stages.append((layer.count, pipeline.Stage(alone + shared + experts)))
                found["experts"] = experts
            elif layer.experts:
                out, back, busiest = self._bytes(layer, split, mine.tokens)
                wire = (out + back) / link.bandwidth
                exchange = link.latency + max(wire, busiest / link.bandwidth) + link.crowded
                overhead = devices[0][0].overhead
                taken = overhead + self._experts(layer, split, all_rows, devices, worker_set)
                stages.append((layer.count, pipeline.Stage(alone, shared, exchange, max(out, back) / link.bandwidth, taken, turns * taken)))
                found.update(experts=taken, exchange=exchange, shared_expert=max(0.0, shared - exchange - taken))
            else:
                stages.append((layer.count, pipeline.Stage(alone + shared)))
            for name, seconds in found.items():
                parts[name] += layer.count * seconds
        head = self._on_coordinator("lm_head", model.lm_head, logit_rows, own_set)
        parts["lm_head"] = head
        own = split.micro_batches * (sum(count * (stage.attention + stage.shared) for count, stage in stages) + head)
        seconds = pipeline.layers_seconds(stages, split.micro_batches) + split.micro_batches * head
        busy = {"coordinators": own / seconds}
        if not experts_here:
            busy["workers"] = split.micro_batches * sum(count * stage.worker for count, stage in stages) / seconds
            busy["links"] = split.micro_batches * sum(count * stage.link for count, stage in stages) / seconds
        whole = sum(parts.values())
        return StepTime(seconds, {name: part / whole * seconds for name, part in parts.items() if part > 0}, busy)

    def _bytes(self, layer, split, rows):
        """-> bytes of one coordinator's rows out (once for each worker that holds some of a row's experts) and back (one a slot), and
        what the busiest worker gets and gives, of all coordinators"""
        placement, row_bytes = self.placement(layer, split), self.model.row_bytes
        out, back = rows * placement.workers_of_a_row() * row_bytes, rows * layer.per_token * row_bytes
        _, _, entries = placement.taken(rows)
        of_busiest = (entries / (rows * layer.per_token)) * (out + back) * split.coordinators
        return out, back, of_busiest
