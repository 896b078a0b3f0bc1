"""The file that `--trace` writes: its events, and what they say of a step's exchanges with workers."""
import bisect
import json

EXCHANGE = ("dispatch", "experts", "combine")  # stages


def events(path):
    with open(path) as file:
        for line in file:
            try:
                yield json.loads(line.rstrip("\n,"))
            except ValueError:
                continue  # the brackets around them


def longest_computations(steps, started, computed):
    """steps: [(begin, step)] in order. started: exchange -> when. computed: [(exchange, layer, duration)] of workers
    -> {(step, layer): the longest duration}"""
    begins, longest = [begin for begin, _ in steps], {}
    for exchange, layer, duration in computed:
        at = bisect.bisect_right(begins, started.get(exchange, -1)) - 1
        if at >= 0:
            where = (steps[at][1], layer)
            longest[where] = max(longest.get(where, 0), duration)
    return longest
