"""`expertmesh plan --model CONFIG --cluster FILE --ttft-ms X --itl-ms Y`: how to split a cluster into coordinators and workers,
with how many micro-batches and replicas of experts, so that a model has the most throughput within these latencies; what that
gives and takes, what limits it, and what one more worker would bring. Nothing is started: times follow from the model's sizes
and from costs, measured on processors like this one (--calibrate makes their file) or published for GPUs (the hardware table)."""
import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path

# How programs are run and their traces read is shared with `bench scale`.
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench" / "scale"))

import model as models  # noqa: E402
import report  # noqa: E402
import routing  # noqa: E402
import system as systems  # noqa: E402
from fields import PlanError  # noqa: E402
from search import MOST_MICRO_BATCHES, MOST_SERVED_MICRO_BATCHES, Bounds, Limits, Search  # noqa: E402
from serving import Workload  # noqa: E402

BAD_COMMAND = 2
NOT_WITHIN_BOUNDS = 1
BROKEN_OFF = 130
FOOTER = """\
files:
  CONFIG    a model directory, a config.json, or what `expertmesh info --json` wrote
  cluster   the JSON file of `expertmesh serve --cluster`: its devices are what there is; the planner says who is coordinator
  costs     made by --calibrate on a machine like the cluster's, which should have nothing else to do

exit codes: 0 a split within the bounds; 1 there is none (the nearest is shown); 2 a bad command line or file; 130 broken off"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise PlanError(f"{message.removeprefix('argument ')}; see --help")


def _number(low, high, whole=True):
    def number(text):
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got '{text}'")
        return value

    return number


def _network(text):
    try:
        bandwidth, latency = map(float, text.split(","))
    except ValueError:
        bandwidth = latency = -1
    if not (bandwidth > 0 and latency >= 0):
        raise argparse.ArgumentTypeError(f"expected GB/S,US such as 1.25,30, got '{text}'")
    return bandwidth, latency


def _skew(text):
    kind, _, value = text.partition(":")
    try:
        value = float(value)
    except ValueError:
        value = -1
    if kind not in ("zipf", "cv2") or not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"expected zipf:EXPONENT or cv2:VALUE, got '{text}'")
    return kind, value


def parser():
    made = Parser(prog="expertmesh plan", allow_abbrev=False, description=__doc__, epilog=FOOTER, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--model", metavar="CONFIG", help="what is to be served; required")
    add("--cluster", metavar="FILE", help="the devices there are; required")
    add("--ttft-ms", type=_number(0.001, 1e9, whole=False), metavar="X", help="most milliseconds to the first token, on average; required unless --decode-only")
    add("--itl-ms", type=_number(0.001, 1e9, whole=False), metavar="Y", help="most milliseconds between tokens, on average; required")
    add("--input-len", type=_number(1, 1 << 24), metavar="N", default=1024, help="tokens of a prompt [1024]")
    add("--output-len", type=_number(1, 1 << 24), metavar="N", default=256, help="tokens of an answer [256]")
    add("--decode-only", action="store_true", help="prompts come with their keys and values, from machines that only prefill")
    add("--costs", metavar="FILE", help="measured costs of processors; required where the cluster has any")
    add("--hardware", metavar="[HOST=]NAME", action="append", default=[], help="which GPU cuda devices are (of a host), by its name in the hardware table")
    add("--hardware-file", metavar="FILE", action="append", default=[], help="more of the hardware table, in the form of share/expertmesh/plan/hardware.toml")
    add("--price", metavar="NAME=AMOUNT", action="append", default=[], help="of a device an hour, NAME as in the table or cpu [not known]")
    add("--network", type=_network, metavar="GB/S,US", help="between hosts: each way, and one way [the hardware table's; of processors required]")
    add("--transport", choices=("shm", "mpi"), default="shm", help="to workers on the coordinator's host, as measured [shm]")
    add("--threads", type=_number(1, 4096), metavar="N", help="of a coordinator on processors [all cores]")
    add("--dtype", choices=("bfloat16", "float32"), help="[the checkpoint's, as `serve` has it]")
    add("--quantization", choices=("none", "int8", "int4"), help="of the weights [none]")
    add("--kv-cache-dtype", choices=("bfloat16", "float32", "int8"), help="[as --dtype]")
    add("--skew", type=_skew, metavar="KIND:VALUE", default=("zipf", 0.0), help="how unequal the experts' importance is: zipf:EXPONENT, or cv2:VALUE as /v1/experts shows it [zipf:0]")
    add("--grouping", choices=("apart", "together"), default="apart",
        help="rows of several coordinators at a worker: computed one after the other, or together, weights read once [apart]")
    add("--sequences", type=_number(1, 10**9), metavar="N", help="most that decode at a time [as many as there is room for]")
    for option, low, high, what in (("coordinators", 1, 10**6, "coordinators"), ("workers", 0, 10**6, "workers; 0 has the experts in the coordinators"),
                                    ("micro-batches", 1, MOST_MICRO_BATCHES, f"micro-batches, {MOST_MICRO_BATCHES} at most"),
                                    ("redundant-experts", 0, 10**6, "replicas in each layer"), ("max-num-batched-tokens", 1, 10**6, "tokens of a step")):
        add(f"--{option}", type=_number(low, high), metavar="N", help=f"exactly so many {what} [what is best]")
    add("--json", action="store_true", help="print the plan as JSON")
    others = made.add_argument_group("in place of a plan")
    others.add_argument("--calibrate", metavar="FILE", help="measure the costs of this machine, in some minutes; --model [two that come with the program], "
                                                            "--dtype, --quantization and --kv-cache-dtype say with what")
    others.add_argument("--passes", type=_number(1, 1000), metavar="N", default=2,
                        help="of --calibrate, over all; of each stage the fastest counts, so more help where other work disturbs [2]")
    others.add_argument("--validate", metavar="RESULTS", nargs="+", help="hold predictions by --costs against results.json files of `bench scale`; --model as it had")
    others.add_argument("--published", action="store_true", help="hold predictions against published figures of systems of this shape")
    return made


def _required(options, *names):
    for name in names:
        if getattr(options, name.replace("-", "_")) is None:
            raise PlanError(f"--{name} is required; see --help")


def _limits(options, parts):
    if options.workers is not None and options.workers > parts.cluster.count:
        raise PlanError(f"--workers {options.workers}: the cluster has {parts.cluster.count}")
    for name, least in (("micro_batches", 2), ("redundant_experts", 1)):
        if (getattr(options, name) or 0) >= least and (options.workers == 0 or not parts.system.model.most_experts):
            raise PlanError(f"--{name.replace('_', '-')} {getattr(options, name)}: has no effect without workers")
    if options.coordinators is not None and options.coordinators > parts.coordinators:
        raise PlanError(f"--coordinators {options.coordinators}: the cluster has devices for {parts.coordinators}")
    return Limits(parts.coordinators, parts.cluster.count, options.coordinators, options.workers, options.micro_batches, options.redundant_experts,
                  options.max_num_batched_tokens)


def _served(limits):
    """-> the limits within what this version runs, where more micro-batches would be better"""
    return dataclasses.replace(limits, micro_batches=MOST_SERVED_MICRO_BATCHES)


def make_plan(program, options):
    """-> plain data"""
    _required(options, "model", "cluster", "itl-ms", *([] if options.decode_only else ["ttft-ms"]))
    numerics = models.numerics(options.dtype, options.quantization, options.kv_cache_dtype)
    model = models.read(program, options.model, numerics, "cpu" if options.costs else "cuda")  # costs: of processors
    kind, value = options.skew
    options.skew = value if kind == "zipf" or not model.most_experts else routing.skew_of_cv2(model.most_experts, value)
    if options.input_len + options.output_len > model.max_position:
        raise PlanError(f"--input-len {options.input_len} and --output-len {options.output_len} are more than the {model.max_position} positions of the model")
    parts = systems.build(model, options)
    workload = Workload(options.input_len, options.output_len, options.decode_only)
    bounds = Bounds((options.ttft_ms or 1e15) / 1e3, options.itl_ms / 1e3, options.sequences)
    limits = _limits(options, parts)
    search = Search(parts.system, workload, bounds, limits)
    best = search.best()
    more = search.one_more(best)
    served = None
    if best.split.micro_batches > MOST_SERVED_MICRO_BATCHES:
        served = Search(parts.system, workload, bounds, _served(limits)).best()
    return report.plan(parts, workload, bounds, best, more, served, parts.system.num_steps)


def _run(program, folder_of_programs, arguments):
    options = parser().parse_args(arguments)
    if options.calibrate:
        import calibrate
        return calibrate.main(program, folder_of_programs, options, arguments)
    if options.validate:
        import validate
        _required(options, "model", "costs")
        return validate.main(program, options)
    if options.published:
        import published
        return published.main(program, options)
    found = make_plan(program, options)
    print(json.dumps(found, indent=1) if options.json else report.text(found), end="\n" if options.json else "")
    return 0 if found["best"]["within_bounds"] else NOT_WITHIN_BOUNDS


def main(program, folder_of_programs, arguments):
    """-> exit code"""
    try:
        return _run(program, folder_of_programs, arguments)
    except OSError as error:
        print(f"expertmesh plan: {error.filename}: {error.strerror}", file=sys.stderr)
    except PlanError as error:
        print(f"expertmesh plan: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("expertmesh plan: broken off", file=sys.stderr)
        return BROKEN_OFF
    return BAD_COMMAND


def _broken_off(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _broken_off)  # so that what is under way ends, and its folders go
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
