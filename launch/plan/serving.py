"""What users of a server see: prompts come while others decode."""
import dataclasses
import math

from step import Rows


@dataclasses.dataclass(frozen=True)
class Workload:
    """Tokens of a prompt and of an answer. computed_elsewhere: prompts come with their keys and values (other machines prefill)"""
    input_len: int
    output_len: int
    computed_elsewhere: bool = False

    @property
    def context(self):
        """Of a token of an answer, on average"""
        return self.input_len + (self.output_len + 1) / 2


@dataclasses.dataclass(frozen=True)
class Service:
    """Of `sequences` that decode at any time. ttft, itl, longest_itl: seconds to the first token, between tokens on average, and
    beside a chunk of a prompt; load: share of steps that take such a chunk; above 1 prompts come faster than they are computed."""
    sequences: int
    tokens_per_second: float
    ttft: float
    itl: float
    longest_itl: float
    load: float
    decode_step: object  # StepTime, without prompts
    full_step: object  # with a chunk; None: prompts are computed elsewhere


def serve(system, split, workload, sequences, step_tokens):
    """step_tokens: most tokens of a coordinator's step (`--max-num-batched-tokens`).

    Each step brings each sequence a token, so an answer takes output_len of them, and as many answers end as begin: a step has to
    compute decodes * input / output tokens of prompts on average. They come as chunks of what decodes leave of step_tokens, in a
    share f of the steps. Waiting for them is a queue with one server of constant service time S = input / chunk full steps:
    f / (2 (1 - f)) S on average (Pollaczek 1930, Khinchine 1932, for M/D/1), after half a step until the next one begins."""
    context = workload.context
    decode = system.time(split, Rows(sequences, context))
    if workload.computed_elsewhere:
        return Service(sequences, sequences / decode.seconds, decode.seconds, decode.seconds, decode.seconds, 0.0, decode, None)
    chunk = step_tokens - sequences / split.coordinators
    if chunk < 1:
        return Service(sequences, 0.0, math.inf, math.inf, math.inf, math.inf, decode, None)
    taken = min(chunk, max(workload.input_len, 1) * 64)  # more prompts at once than that there never are
    full = system.time(split, Rows(sequences, context, prompt=taken * split.coordinators, prompt_context=workload.input_len / 2,
                                   prompts=taken * split.coordinators / workload.input_len))
    load = sequences / split.coordinators * workload.input_len / workload.output_len / taken
    itl = (1 - load) * decode.seconds + load * full.seconds
    if load >= 1:
        return Service(sequences, 0.0, math.inf, math.inf, full.seconds, load, decode, full)
    service = workload.input_len / taken * full.seconds
    ttft = itl / 2 + load / (2 * (1 - load)) * service + math.ceil(workload.input_len / taken) * full.seconds
    return Service(sequences, sequences / itl, ttft, itl, full.seconds, load, decode, full)
