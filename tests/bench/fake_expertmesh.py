"""Stands in for `expertmesh` where what `bench scale` starts is to be seen: writes its arguments to $FAKE_LOG, and figures made
up from them. $FAKE_REFUSES: a transport that there is not; $FAKE_BREAKS_AT: the start at which it ends who started it."""
import json
import os
import signal
import sys
from pathlib import Path


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def figures_of(batch, workers):
    step_ms = 10 * batch / (1 + workers)
    stages = {"attention": 0.2 * step_ms, "router": 0.1 * step_ms, "dispatch": 0.1 * step_ms, "experts": 0.4 * step_ms,
              "combine": 0.1 * step_ms, "other": 0.1 * step_ms}
    return {"batch_size": batch,
            "prefill": {"tokens_per_second": 500, "share_of_compute_ceiling": 0.5},
            "decode": {"median_step_ms": step_ms, "mean_step_ms": step_ms, "tokens_per_second": 1e3 * batch / step_ms, "stage_ms": stages,
                       "weight_bytes_per_step": 1000, "kv_bytes_per_step": 100, "experts_hit_per_layer": 2, "share_of_floor": 0.5}}


def main():
    if "--version" in sys.argv:
        print("expertmesh of nobody")
        return 0
    log = Path(os.environ["FAKE_LOG"])
    with log.open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    if len(log.read_text().splitlines()) == int(os.environ.get("FAKE_BREAKS_AT", 0)):
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    if option("--transport") == os.environ.get("FAKE_REFUSES", ""):
        print("expertmesh: there is no such transport here", file=sys.stderr)
        return 1
    batches = [int(batch) for batch in option("--batch-sizes").split(",")]
    Path(option("--json")).write_text(json.dumps({
        "ceilings": {"threads": 1, "memory_gb_per_second": 10, "compute_gflop_per_second": 100},
        "results": [figures_of(batch, int(option("--workers", "0"))) for batch in batches]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
