"""Steps of a trace of `bench engine --trace`: how long each stage of them took."""
import collections
import dataclasses

import trace_file

WARM_UP_STEPS = 2  # of each number of tokens, that are not taken


@dataclasses.dataclass(frozen=True)
class Steps:
    """Of as many tokens. stages: seconds of a step by stage, `other` what is left of it. exchange: of them, of dispatch, experts and
    combine, what is beyond the longest computation of a worker; in each layer the worker's own clock says how long that was."""
    tokens: int
    decodes: int  # of the tokens, that end a sequence and get logits
    stages: dict
    exchange: float = 0.0

    @property
    def seconds(self):
        return sum(self.stages.values())

    def best_with(self, other):
        """The faster of each: what another run of the same found"""
        return dataclasses.replace(self, stages={name: min(seconds, other.stages.get(name, seconds)) for name, seconds in self.stages.items()},
                                   exchange=min(self.exchange, other.exchange))


def _at(share, values):
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def read(path, share):
    """-> [Steps] of every kind of step, those of the warm-up left out. Of each stage of each layer the time that `share` of the steps
    stayed below: a low one is what the machine takes when nothing else runs, since all that is preempted is above."""
    steps, computed, started = [], [], {}
    stages = collections.defaultdict(lambda: collections.defaultdict(float))
    for event in trace_file.events(path):
        arguments, kind = event.get("args", {}), event.get("cat")
        if kind == "step":
            steps.append((arguments["step"], event["ts"], arguments["tokens"], arguments["decodes"], event["dur"] / 1e6))
        elif kind == "stage":
            stages[arguments["step"]][event["name"], arguments.get("layer")] += event["dur"] / 1e6
        elif kind == "exchange" and event["ph"] == "b":
            started[event["id"]] = event["ts"]
        elif kind == "compute":
            computed.append((arguments["exchange"], arguments["layer"], event["dur"] / 1e6))
    steps.sort()
    longest = trace_file.longest_computations([(begin, step) for step, begin, *_ in steps], started, computed)
    prompts = [place for place, (_, _, tokens, decodes, _) in enumerate(steps) if decodes < tokens]
    first = prompts[1] if len(prompts) > 1 else 0  # behind the warm-up's prompt and steps
    groups = collections.defaultdict(list)
    for step, _, tokens, decodes, seconds in steps[first:]:
        groups[tokens, decodes].append((step, seconds))
    return [_steps(share, tokens, decodes, members, stages, longest) for (tokens, decodes), members in sorted(groups.items())]


def _steps(share, tokens, decodes, members, stages, longest):
    members = members[WARM_UP_STEPS:] if decodes and len(members) > 2 * WARM_UP_STEPS else members
    sums, exchange = collections.defaultdict(float), 0.0
    keys = {key for step, _ in members for key in stages[step]}
    for name, layer in keys:
        sums[name] += _at(share, [stages[step].get((name, layer), 0.0) for step, _ in members])
    for layer in {layer for name, layer in keys if name == "experts"}:
        exchange += _at(share, [max(0.0, sum(stages[step].get((name, layer), 0.0) for name in trace_file.EXCHANGE) - longest.get((step, layer), 0.0))
                                for step, _ in members])
    sums["other"] = max(0.0, _at(share, [seconds - sum(stages[step].values()) for step, seconds in members]))
    return Steps(tokens, decodes, dict(sums), exchange)
