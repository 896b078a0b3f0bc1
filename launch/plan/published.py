"""`plan --published`: what the planner says of systems whose figures were published, by published/systems.toml, which has the
assumptions. A split of its own, not theirs: a prediction above what they reached says what their peaks would allow."""
import json
from pathlib import Path

import hardware as hardware_table
import model as models
from fields import read_toml
from search import Bounds, Limits, Search
from serving import Workload
from step import System

FOLDER = Path(__file__).with_name("published")


def _of(program, fields, table):
    title, published, source = fields.text("title"), fields.number("tokens_per_second"), fields.text("source")
    options = models.numerics(None, fields.text("quantization", required=False), None)
    model = models.read(program, FOLDER / fields.text("model"), options, "cuda")
    hardware = table[fields.text("hardware")]
    devices = fields.whole("devices", low=2)
    workload = Workload(fields.whole("input_len", low=1), fields.whole("output_len", low=1), computed_elsewhere=True)
    bounds = Bounds(1e12, fields.number("itl_ms") / 1e3)
    fields.finish()
    device = hardware.device(model.weights, 0.9)
    system = System(model, device, lambda n: [(device, n)], lambda _: hardware.network, together=True)
    best = Search(system, workload, bounds, Limits(devices, devices - 1)).best()
    used = best.split.coordinators + best.split.workers
    return {"system": title, "devices": used, "split": f"{best.split.coordinators} + {best.split.workers}, {best.split.micro_batches} micro-batches",
            "predicted": best.service.tokens_per_second / used, "published": published, "ratio": best.service.tokens_per_second / used / published,
            "itl_ms": 1e3 * best.service.itl, "bottleneck": best.service.decode_step.bottleneck, "limit": best.limit, "source": source}


def main(program, options):
    table = hardware_table.read(options.hardware_file)
    systems = read_toml(FOLDER / "systems.toml")
    found = [_of(program, systems.object(name), table) for name in systems.names()]
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("| system | coordinators + workers | predicted tok/s a device | published | ratio | limited by | source |\n|---|---|---|---|---|---|---|")
    for one in found:
        print(f"| {one['system']} | {one['split']} | {one['predicted']:.0f} | {one['published']:.0f} | {one['ratio']:.2f} | {one['bottleneck']}; {one['limit']} | "
              f"{one['source']} |")
    return 0
