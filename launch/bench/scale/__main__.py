"""`expertmesh bench scale MODEL`: strong and weak scaling over numbers of workers and ways to reach them, batch sizes and
prompt lengths, by `bench engine` and by `serve` with `bench serve`; figures and a report go into a folder, from which a run
that was broken off goes on."""
import argparse
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import hosts
import machine
import points
import report
from store import Store
from sweep import Sweep, say

BAD_COMMAND = 2
BROKEN_OFF = 130
QUICK = {"transports": ["in-process", "shm"], "batch_sizes": [1, 4], "input_lens": [32], "output_len": 16,
         "requests_per_client": 2}
USUAL = {"transports": list(points.TRANSPORTS), "batch_sizes": [1, 4, 16], "input_lens": [32, 128], "output_len": 32,
         "requests_per_client": 3}


class CommandError(Exception):
    """What the user has to put right."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise CommandError(f"{message.removeprefix('argument ')}; see --help")


def _number(low, high):
    def number(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got '{text}'")
        return int(text)

    return number


def _list_of(item):
    def read(text):
        return list(dict.fromkeys(item(part) for part in text.split(",")))

    return read


def _transport(text):
    if text not in points.TRANSPORTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(points.TRANSPORTS)}, got '{text}'")
    return text


def _parse(arguments, cores):
    parser = Parser(prog="expertmesh bench scale", allow_abbrev=False, description=__doc__)
    doubled = [1 << n for n in range(cores.bit_length() + 1) if 1 << n <= max(2, cores)]

    def listed(values):
        return ",".join(map(str, values))

    def numbers(option, low, high, help, **more):
        parser.add_argument(option, type=_list_of(_number(low, high)), metavar="N,N", help=help, **more)

    def number(option, low, high, help, **more):
        parser.add_argument(option, type=_number(low, high), metavar="N", help=help, **more)

    parser.add_argument("model", help="model directory, or a config.json (dummy weights then)")
    parser.add_argument("--out", metavar="DIR",
                        help="folder for figures and report; points in it are not measured again [scale-MODEL]")
    numbers("--workers", 1, 1024, f"numbers of workers; 1 is always among them [{listed(doubled)}]", default=doubled)
    parser.add_argument("--transports", type=_list_of(_transport), metavar="NAME,NAME",
                        help=f"of {listed(points.TRANSPORTS)}; in-process: no workers, but as many times the threads, up to the cores; "
                             f"{points.NAMESPACES}: servers whose workers are on hosts of their own, network namespaces that root may make [all]")
    numbers("--batch-sizes", 1, 65536, f"sequences that decode together, clients of a server [{listed(USUAL['batch_sizes'])}]")
    numbers("--input-lens", 1, 1 << 20, f"tokens of a prompt [{listed(USUAL['input_lens'])}]")
    number("--output-len", 2, 1 << 20, f"decode steps, tokens of an answer [{USUAL['output_len']}]")
    number("--requests-per-client", 1, 1 << 16, f"of a server [{USUAL['requests_per_client']}]")
    number("--threads", 1, 1024, "compute threads of the coordinator [1]", default=1)
    number("--worker-threads", 1, 1024, "compute threads of each worker [1]", default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="[bfloat16]")
    number("--seed", 0, 2**32 - 1, "of dummy weights and prompts [0]", default=0)
    parser.add_argument("--no-serve", action="store_true", help="engines only")
    parser.add_argument("--no-plots", action="store_true", help="a report without plots (these need Debian's python3-matplotlib)")
    number("--point-timeout", 1, 1 << 20, "seconds after which a point has failed [600]", default=600)
    parser.add_argument("--quick", action="store_true",
                        help="less of all that is not said: in process and shared memory only, batches 1 and 4, one prompt length, shorter answers")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else USUAL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _configuration(options):
    path = Path(options.model)
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
        if not isinstance(config, dict):
            raise ValueError
    except ValueError:
        raise CommandError(f"{file}: not a JSON object") from None
    # An engine decodes some steps more than it times.
    longest, most = max(options.input_lens) + options.output_len + 3, config.get("max_position_embeddings")
    if isinstance(most, int) and longest > most:
        raise CommandError(f"--input-lens {max(options.input_lens)} and --output-len {options.output_len} are more than the {most} "
                           f"positions of the model ({file}: max_position_embeddings)")
    return config


def _broken_off(*_):
    raise KeyboardInterrupt


def main(program, folder_of_programs, arguments):
    cores = machine.usable_cores()
    options = _parse(arguments, cores)
    config = _configuration(options)
    if points.NAMESPACES in options.transports and not hosts.inside():
        why = hosts.refusal()
        if why is None:
            hosts.enter()
        say(f"{points.NAMESPACES} is left out: {why}")
        options.transports.remove(points.NAMESPACES)
    here, programs, model = machine.machine(), machine.programs(program, folder_of_programs), machine.model(options.model)
    fingerprint = machine.fingerprint(here, programs, model)
    folder = Path(options.out or f"scale-{model['name']}")
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "points.jsonl")
    wanted = points.plan(options, cores)
    head = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": shlex.join(["expertmesh", "bench", "scale", *arguments]),
            "fingerprint": fingerprint, "machine": here, "programs": programs, "model": model,
            "settings": {name: value for name, value in vars(options).items() if name not in ("model", "out")}}
    sweep = Sweep(program, options.model, int(config.get("vocab_size", 1000)), fingerprint, store, options.point_timeout,
                  load_before=round(os.getloadavg()[0], 2))
    signal.signal(signal.SIGTERM, _broken_off)
    broken_off = False
    try:
        sweep.run(wanted)
    except KeyboardInterrupt:
        broken_off = True
        say("broken off; the same command goes on with the points that are missing")
    keys = {point.key(fingerprint): point for point in wanted}
    failed = [{"key": key, "point": str(keys[key]), "why": why} for key, why in sweep.failed.items()]
    records = [store.get(key) for key in keys if key in store]
    missing = report.write(folder, head, records, cores, failed) if records else None
    if records:
        say(f"{len(records)} of {len(keys)} points in {folder}: report.md, results.json, results.csv")
    if missing:
        say(f"no plots: {missing}")
    return BROKEN_OFF if broken_off else 1 if missing or failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        sys.exit(BAD_COMMAND)
    except CommandError as error:
        say(error)
        sys.exit(BAD_COMMAND)
