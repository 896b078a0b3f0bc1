"""`expertmesh plan`: its formulas against hand-made cases and against simulations, what it refuses, `info --json` against `info`,
and plans of the demo model. Never how fast: work is counted."""
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY, wait_until

PLAN = REPOSITORY / "launch" / "plan"
CONFIGS = REPOSITORY / "launch" / "bench" / "configs"
sys.path[:0] = [str(PLAN), str(PLAN.parent / "bench" / "scale")]

import calibrate  # noqa: E402
import costs  # noqa: E402
import memory  # noqa: E402
import model as models  # noqa: E402
import pipeline  # noqa: E402
import routing  # noqa: E402
import step_trace  # noqa: E402
import validate  # noqa: E402
from device import Curve, Device, Link, Profile  # noqa: E402
from fields import Fields  # noqa: E402
from search import Bounds, Limits, Search, _last_within  # noqa: E402
from serving import Workload, serve  # noqa: E402
from step import Rows, Split, System, rest_bytes  # noqa: E402

RUN_SECONDS = 60
_SPEC = importlib.util.spec_from_file_location("plan_command", PLAN / "__main__.py")
COMMAND = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(COMMAND)


def facts(**changes):
    """A model of two layers, of which one has 4 experts and 2 a token, in round numbers."""
    attention, kv = {"bytes": 1000, "multiply_adds": 500}, {"bytes_per_token": 10, "multiply_adds_per_key": 20}
    return {"weights": "bfloat16", "row_bytes": 20, "vocab": 100, "coordinator_bytes": 6000, "max_position": 1000,
            "parameters": {"total": 20000, "active": 12000}, "lm_head": {"bytes": 2000, "multiply_adds": 1000},
            "stacks": [{"kind": "decoder", "layers": [
                {"count": 1, "attention": attention, "kv": kv, "dense_ffn": {"bytes": 3000, "multiply_adds": 1500}},
                {"count": 1, "attention": attention, "kv": kv, "router": {"bytes": 160, "multiply_adds": 40},
                 "experts": {"bytes": 4000, "multiply_adds": 2000, "count": 4, "per_token": 2}}]}], **changes}


MODEL = models.of_facts(Fields(facts(), "facts"), "round")
DEVICE = Device("round", memory=1e6, bandwidth=1e6, peak=1e6)  # a microsecond a byte, or an operation
LINK = Link("link", latency=0.001, bandwidth=1e6)


def system(workers=True, device=DEVICE, link=LINK, **options):
    return System(MODEL, device, lambda n: [(device, n)], (lambda _: link) if workers else None, **options)


class RoutingTest(unittest.TestCase):
    def simulated(self, experts, per_token, skew, rows, rounds=300):
        """-> mean number of experts hit"""
        rng, shares, total = random.Random(1), routing.importance(experts, skew), 0
        for _ in range(rounds):
            hit = set()
            for _ in range(rows):
                keys = sorted(range(experts), key=lambda e: rng.random() ** (1 / shares[e]), reverse=True)  # without replacement, by weight
                hit.update(keys[:per_token])
            total += len(hit)
        return total / rounds

    def test_hits_as_simulated(self):
        for experts, per_token, skew, rows in ((8, 2, 0, 1), (8, 2, 0, 4), (32, 4, 0, 8), (32, 4, 0.6, 8), (16, 1, 1.0, 10)):
            hits, _, _ = routing.Placement(experts, per_token, skew, 0, 1).taken(rows)
            with self.subTest(experts=experts, skew=skew, rows=rows):
                self.assertAlmostEqual(hits, self.simulated(experts, per_token, skew, rows), delta=0.04 * experts)

    def test_bounds(self):
        for skew in (0, 0.8):
            for workers in (1, 2, 3, 7, 16, 40):
                for rows in (1, 5, 1000):
                    placement = routing.Placement(16, 2, skew, 8, workers)
                    hits, hit, most = placement.taken(rows)
                    self.assertTrue(hits / placement.workers <= hit <= min(placement.held, hits) + 1e-9, (skew, workers, rows))
                    self.assertTrue(2 * rows / placement.workers <= most <= 2 * rows + 1e-9, (skew, workers, rows))
        self.assertEqual(routing.Placement(16, 2, 0, 0, 1).taken(7)[2], 14)  # one worker has every row
        self.assertEqual(routing.Placement(16, 2, 0, 0, 40).workers, 16)  # the others have nothing to do

    def test_chances_sum_to_the_experts_of_a_token(self):
        for skew in (0, 0.5, 2, 5):
            chances = routing.chances(32, 4, skew)
            self.assertAlmostEqual(sum(chances), 4)
            self.assertLessEqual(max(chances), 1)

    def test_skew_of_a_cv2(self):
        self.assertAlmostEqual(routing.cv2(64, 0), 0)
        for wanted in (0.1, 1.0, 5.0):
            self.assertAlmostEqual(routing.cv2(64, routing.skew_of_cv2(64, wanted)), wanted)

    def test_replicas_go_to_the_hottest_replica(self):
        """Chances 12, 6, 4 and 3 of 25; three replicas more: 12 becomes 3 of 4, 6 becomes 2 of 3"""
        groups = routing._groups(4, 1, 1.0, 3)
        self.assertEqual([count for _, count in groups], [4, 3])
        for (chance, _), by_hand in zip(groups, (4 / 25, 3 / 25)):
            self.assertAlmostEqual(chance, by_hand)

    def test_replicas_level_the_load(self):
        loads = [routing.Placement(32, 4, 1.0, redundant, 16).taken(1e6)[2] for redundant in (0, 16, 64)]
        self.assertEqual(loads, sorted(loads, reverse=True))
        self.assertGreater(loads[0], 1.2 * loads[2])


class PipelineTest(unittest.TestCase):
    def test_closed_form_is_the_recurrence(self):
        for attention, exchange, experts in ((1, 0, 1), (1, 0.5, 1), (3, 1, 1), (1, 1, 3), (0.2, 4, 0.3), (2, 0.2, 1.9)):
            for micro_batches in (1, 2, 3, 4, 6):
                stage = pipeline.Stage(attention, 0, exchange, 0, experts, experts)
                with self.subTest(stage=stage, micro_batches=micro_batches):
                    self.assertAlmostEqual(pipeline.layers_seconds([(12, stage)], micro_batches), pipeline.simulated_seconds(12, micro_batches, stage))

    def test_as_the_paper_has_it(self):
        """arXiv:2504.02263: (T_a + T_e + 2 T_c) + T_f (m L - 1), with enough micro-batches"""
        stage = pipeline.Stage(2.0, 0, 1.0, 0, 1.5, 1.5)
        self.assertAlmostEqual(pipeline.layers_seconds([(10, stage)], 4), 4.5 + 2.0 * (4 * 10 - 1))


class StepTest(unittest.TestCase):
    def test_by_hand_in_process(self):
        """One row, 9 keys: attention 1000 us twice, keys 2 * 20 * 9 = 360 operations twice, dense 3000, router 160, two experts
        8000, head 2000, and what is moved beside: 20 bytes * (4 + (4 + 2 * 2)) and 4 * 100 of logits."""
        rest = 20 * (4 + 8) + 400
        self.assertEqual(rest_bytes(MODEL, 1, 1), rest)
        found = system(workers=False).time(Split(), Rows(1, 9))
        self.assertAlmostEqual(found.seconds * 1e6, 2 * 1000 + 2 * 360 + 3000 + 160 + 8000 + 2000 + rest)
        self.assertAlmostEqual(sum(found.parts.values()), found.seconds)

    def test_by_hand_with_a_worker(self):
        """The same, and an exchange: 1000 us, and a row out and two back, 60 bytes"""
        alone, apart = (system(workers=w).time(Split(1, w), Rows(1, 9)).seconds * 1e6 for w in (0, 1))
        self.assertAlmostEqual(apart - alone, 1000 + 60)

        self.assertAlmostEqual(system().time(Split(1, 2), Rows(1, 9)).parts["exchange"] * 1e6, 1000 + 20 * 1.5 + 40)  # 1.5 of 2 workers, 2 rows back
        crowded = system(link=dataclasses.replace(LINK, crowded=0.5)).time(Split(1, 1), Rows(1, 9)).seconds * 1e6
        self.assertAlmostEqual(crowded, apart + 500000)

    def test_one_worker_without_a_cost_of_exchange_is_in_process(self):
        free = Link("free", 0.0, 1e30)
        for rows in (1, 7, 300):
            times = [system(workers=w, link=free).time(Split(1, w), Rows(rows, 50)).seconds for w in (0, 1)]
            self.assertAlmostEqual(times[0], times[1])

    def test_more_of_anything_is_never_slower(self):
        base = system().time(Split(2, 3, 2), Rows(40, 100)).seconds
        for change in ({"bandwidth": 1.5e6}, {"peak": 1.5e6}):
            self.assertLess(system(device=dataclasses.replace(DEVICE, **change)).time(Split(2, 3, 2), Rows(40, 100)).seconds, base, change)
        for change in ({"bandwidth": 2e6}, {"latency": 0.0005}):
            self.assertLessEqual(system(link=dataclasses.replace(LINK, **change)).time(Split(2, 3, 2), Rows(40, 100)).seconds, base, change)
        reads = dataclasses.replace(DEVICE, peak=1e12)  # where reading weights is all that takes time, reading them once is less
        together, apart = (system(device=reads, together=once).time(Split(2, 3, 2), Rows(40, 100)).seconds for once in (True, False))
        self.assertLess(together, apart)
        for more, fewer in ((Rows(41, 100), Rows(40, 100)), (Rows(40, 101), Rows(40, 100)), (Rows(40, 100, 5, 9, 1), Rows(40, 100))):
            self.assertGreater(system().time(Split(1, 2), more).seconds, system().time(Split(1, 2), fewer).seconds)
        one, two, four = (system().time(Split(1, workers), Rows(64, 9)).seconds for workers in (1, 2, 4))  # 3 do not divide 4 experts
        self.assertTrue(four < two < one)

    def test_shares_of_time_are_within_the_step(self):
        for split in (Split(), Split(1, 2), Split(3, 2, 4), Split(2, 4, 2, 2)):
            found = system(workers=bool(split.workers)).time(split, Rows(30, 50))
            self.assertTrue(all(0 <= share <= 1 + 1e-9 for share in found.busy.values()), (split, found.busy))

    def test_curves(self):
        curve = Curve([[4, 0.8], [1, 0.4]])
        self.assertEqual([curve.at(0.5), curve.at(1), curve.at(4), curve.at(100)], [0.4, 0.4, 0.8, 0.8])
        self.assertAlmostEqual(curve.at(2), 0.6)
        small, large = (Profile(size, {"experts": Curve([[1, share]])}) for size, share in ((1e6, 2.0), (1e8, 0.5)))
        device = dataclasses.replace(DEVICE, profiles=(small, large))
        for working_set, share in ((1, 2.0), (1e6, 2.0), (1e7, 1.25), (1e8, 0.5), (1e12, 0.5)):
            self.assertAlmostEqual(device.share("shared_expert", 3, working_set), share)  # no curve of its own: like the experts


class ServingTest(unittest.TestCase):
    def test_prompts_take_steps(self):
        service = serve(system(), Split(1, 2), Workload(100, 50), 10, 60)
        self.assertAlmostEqual(service.load, 10 * 100 / 50 / 50)  # 20 prompt tokens a step of 50 that there is room for
        self.assertAlmostEqual(service.itl, 0.6 * service.decode_step.seconds + 0.4 * service.full_step.seconds)
        self.assertAlmostEqual(service.tokens_per_second, 10 / service.itl)
        wait = 0.4 / (2 * 0.6) * 2 * service.full_step.seconds
        self.assertAlmostEqual(service.ttft, service.itl / 2 + wait + 2 * service.full_step.seconds)

    def test_too_many_prompts(self):
        service = serve(system(), Split(1, 2), Workload(400, 50), 20, 100)
        self.assertGreater(service.load, 1)
        self.assertEqual((service.tokens_per_second, service.ttft), (0.0, float("inf")))

    def test_memory(self):
        split, workload = Split(2, 3, 1, 1), Workload(20, 10)
        self.assertEqual(memory.worker_bytes(MODEL, split), 2 * 4000)  # 5 replicas on 3
        self.assertEqual(memory.coordinator_bytes(MODEL, split, workload, 5), 6000 + 3 * 32 * 20)  # two blocks of 16 tokens, 20 bytes each
        self.assertEqual(memory.coordinator_bytes(MODEL, Split(), workload, 0), 6000 + 4 * 4000)
        self.assertEqual(memory.most_sequences(MODEL, split, workload, dataclasses.replace(DEVICE, memory=20000)), 2 * int((19000 - 6000) / 640))
        self.assertEqual(memory.most_sequences(MODEL, split, workload, dataclasses.replace(DEVICE, memory=6000)), 0)


class SearchTest(unittest.TestCase):
    WORK = Workload(100, 50)

    def best(self, bounds, limits, **options):
        made = system(**options)
        return Search(made, self.WORK, bounds, limits).best(), made

    def test_nothing_that_was_looked_at_is_better(self):
        bounds, limits = Bounds(3.0, 0.2), Limits(4, 6)
        best, made = self.best(bounds, limits)
        self.assertTrue(best.fits)
        self.assertTrue(best.service.ttft <= 3.0 and best.service.itl <= 0.2)
        search = Search(made, self.WORK, bounds, limits)
        for coordinators in (1, 2, 3, 4):
            for micro_batches in (1, 2, 3, 4):
                for tokens in (256, 512, 1024, 2048, 4096, 8192):
                    other = search.evaluate(Split(coordinators, 7 - coordinators, micro_batches), tokens)
                    if other.fits:
                        self.assertGreaterEqual(best.service.tokens_per_second, 0.97 * other.service.tokens_per_second, other)

    def test_tighter_bounds_never_give_more(self):
        loose, tight = (self.best(Bounds(9.0, itl), Limits(4, 6))[0].service.tokens_per_second for itl in (0.3, 0.06))
        self.assertLess(tight, loose)

    def test_the_nearest_where_nothing_is_within_the_bounds(self):
        best, _ = self.best(Bounds(9.0, 1e-6), Limits(4, 6))
        self.assertFalse(best.fits)
        self.assertGreater(best.excess, 1)

    def test_what_does_not_fit_into_memory(self):
        best, _ = self.best(Bounds(9.0, 1.0), Limits(4, 6), device=dataclasses.replace(DEVICE, memory=7000))
        self.assertFalse(best.fits)
        self.assertIn("memory", best.limit)

    def test_fewer_workers_where_more_bring_nothing(self):
        best, _ = self.best(Bounds(9.0, 1.0), Limits(1, 200), link=Link("free", 0.0, 1e12))
        self.assertLessEqual(best.split.workers, 40)

    def test_as_many_sequences_as_are_within_the_bounds(self):
        for last in (1, 2, 17, 1000, 54321):
            low, high = _last_within(lambda n, last=last: n / last if n < 90000 else math.inf, 100000)
            self.assertTrue(low <= last < high and high - low <= max(1, last // 100), (last, low, high))

    def test_fixed_dimensions_stay(self):
        best, _ = self.best(Bounds(9.0, 1.0), Limits(4, 6, coordinators=2, fixed_workers=3, micro_batches=2, redundant=1, step_tokens=300))
        self.assertEqual((best.split, best.step_tokens), (Split(2, 3, 2, 1), 300))
        # Also where one process would be faster.
        slow = Link("slow", 100.0, 1.0)
        self.assertEqual(self.best(Bounds(9e9, 9e9), Limits(1, 2), link=slow)[0].split.workers, 0)
        for name in ("micro_batches", "redundant"):
            best, _ = self.best(Bounds(9e9, 9e9), Limits(1, 2, **{name: 2}), link=slow)
            self.assertEqual((getattr(best.split, name), best.split.workers > 0), (2, True), best.split)


class CalibrationTest(unittest.TestCase):
    """A trace of steps as long as a known device would take gives that device's curves back."""

    def test_curves_from_steps(self):
        shares = {"attention": 0.5, "router": 0.25, "dense_ffn": 0.8, "experts": 0.4, "lm_head": 0.6, "rest": 0.1, "kv": 0.7}
        device = dataclasses.replace(DEVICE, profiles=(Profile(1.0, {part: Curve([[1, share]]) for part, share in shares.items()}),))
        real = System(MODEL, device, None, None)

        def steps(batch, input_len):
            parts = real.time(Split(), Rows(batch, input_len + calibrate.TIMED_CONTEXT)).parts
            stages = {**{name: parts[name] for name in ("attention", "router", "dense_ffn", "experts", "lm_head")}, "combine": parts["rest"]}
            return step_trace.Steps(batch, batch, stages)

        curves = calibrate.Curves(MODEL, DEVICE)
        short = [steps(b, calibrate.INPUT_LEN) for b in (1, 4)]
        curves.add(short, curves.add_keys(short, [steps(b, calibrate.LONG_INPUT_LEN) for b in (1, 4)]))
        for part, share in shares.items():
            for _, found in curves.points[part]:
                self.assertAlmostEqual(found, share, places=4, msg=part)

    def test_a_line_through_exchanges(self):
        latency, per_byte = calibrate._line([(100, 0.0012), (300, 0.0016)])
        self.assertAlmostEqual(latency, 0.001)
        self.assertAlmostEqual(per_byte, 2e-6)

    def test_trace(self):
        lines, step = ["["], 0

        def add(tokens, decodes, microseconds):
            nonlocal step
            step += 1
            now = 10000 * step
            lines.append(json.dumps({"cat": "step", "ts": now, "dur": microseconds, "args": {"step": step, "tokens": tokens, "decodes": decodes}}) + ",")
            for layer in (0, 1):
                lines.append(json.dumps({"cat": "stage", "name": "attention", "dur": microseconds / 4, "args": {"step": step, "layer": layer}}) + ",")
            lines.append(json.dumps({"cat": "stage", "name": "experts", "dur": microseconds / 5, "args": {"step": step, "layer": 1}}) + ",")
            for worker, share in ((1, 10), (2, 20)):  # whose clock may say anything
                lines.append(json.dumps({"cat": "exchange", "ph": "b", "ts": now + 1, "id": f"{worker}.{step}"}) + ",")
                lines.append(json.dumps({"cat": "compute", "dur": microseconds / share, "args": {"layer": 1, "exchange": f"{worker}.{step}"}}) + ",")

        add(8, 0, 9000), add(1, 1, 9000)  # the warm-up
        add(8, 0, 800)
        for microseconds in (900, 900, 100, 200, 300):
            add(1, 1, microseconds)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            path.write_text("\n".join(lines) + "\n{}]\n")
            found = step_trace.read(path, 0.5)
        self.assertEqual([(steps.tokens, steps.decodes) for steps in found], [(1, 1), (8, 0)])
        self.assertAlmostEqual(found[0].seconds, 200e-6)
        self.assertAlmostEqual(found[0].stages["attention"], 100e-6)
        self.assertAlmostEqual(found[0].exchange, 40e-6 - 20e-6)  # beyond the longer of the workers' computations
        self.assertAlmostEqual(found[1].stages["other"], 400e-6 - 160e-6)
        faster = found[0].best_with(dataclasses.replace(found[0], stages={**found[0].stages, "attention": 30e-6}, exchange=1.0))
        self.assertEqual((faster.stages["attention"], faster.exchange), (30e-6, found[0].exchange))


def costs_content(**changes):
    parts = {name: [[1, 0.5], [64, 0.25]] for name in ("attention", "kv", "router", "experts", "lm_head", "rest")}
    return {"form": 1, "weights": "bfloat16", "cores": 2, "memory_gb": 16,
            "ceilings": [{"threads": n, "memory_gb_per_second": 10 + n, "compute_gflop_per_second": 50 * n} for n in (1, 2)],
            "profiles": [{"threads": n, "working_set_bytes": 1e7, "parts": parts} for n in (1, 2)],
            "links": {"shm": {"latency_us": 20, "gb_per_second": 1, "crowded_us": 500}, "mpi": {"latency_us": 40, "gb_per_second": 0.5}}, **changes}


class CostsTest(unittest.TestCase):
    def test_threads_share_what_there_is(self):
        read = costs.of_content(costs_content())
        one, two, half = read.device(1), read.device(2), read.device(1, on_host=2)
        self.assertEqual((one.bandwidth, one.peak, two.bandwidth, two.peak), (11e9, 50e9, 12e9, 100e9))
        self.assertEqual((half.bandwidth, half.peak), (6e9, 50e9))
        crowded = read.device(1, on_host=4)
        self.assertEqual((crowded.bandwidth, crowded.peak), (3e9, 25e9))

    def test_validation_of_made_up_points(self):
        read, model = costs.of_content(costs_content()), MODEL
        point = {"kind": "engine", "transport": "in-process", "units": 1, "workers": 0, "threads": 1, "worker_threads": 0, "batch": 4, "input_len": 10,
                 "output_len": 5, "more_than_cores": False}
        alone = validate.predicted(model, read, point)
        worker = {**point, "transport": "shm", "workers": 1, "worker_threads": 1}
        self.assertLess(validate.predicted(model, read, worker), alone)
        self.assertLess(validate.predicted(model, read, {**worker, "transport": "mpi"}), validate.predicted(model, read, worker))
        self.assertLess(validate.predicted(model, read, {**point, "kind": "serve"}), alone)
        table = validate.table([(point, 100.0, 110.0), (worker, 100.0, 80.0), ({**worker, "more_than_cores": True}, 100.0, 130.0)])
        self.assertIn("| all | 3 | 20% | 30% |", table)
        self.assertIn("| more processes than cores (!) | 1 | 30% | 30% |", table)

    def test_the_best_of_each_point_is_held_against_predictions(self):
        slow = {"kind": "serve", "transport": "mpi", "units": 2, "input_len": 10, "batch": 4, "tokens_per_second": 100}
        fast, other = {**slow, "tokens_per_second": 120}, {**slow, "batch": 8}
        elsewhere = {**slow, "transport": "tcp-namespaces"}  # a link that no costs have
        self.assertEqual(validate.best_of([slow, fast, other, elsewhere, elsewhere]), ([fast, other], 1))


class CommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.cluster = self.write("cluster.json", {"coordinator": {"host": "here"}, "workers": [{"host": "here", "count": 2, "threads": 1}]})
        self.costs = self.write("costs.json", costs_content())

    def write(self, name, content):
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def plan(self, *arguments, code=0):
        """In this process: a start of Python for each would take longer than all the plans."""
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                found = COMMAND.main(EXPERTMESH, "", list(map(str, arguments)))
            except SystemExit as exit:  # --help
                found = exit.code
        self.assertEqual(found, code, out.getvalue() + error.getvalue())
        return subprocess.CompletedProcess(arguments, found, out.getvalue(), error.getvalue())

    def test_as_a_command(self):
        for arguments, code in ((self.usual(), 0), (self.usual(itl_ms=0.001), 1), (["--frobnicate"], 2), (["--help"], 0)):
            done = subprocess.run([EXPERTMESH, "plan", *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                  timeout=RUN_SECONDS, check=False)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (code, *((said := self.plan(*arguments, code=code)).stdout, said.stderr)))

    def usual(self, model=DEMO_MODEL, cluster=None, **options):
        given = {"model": model, "cluster": cluster or self.cluster, "ttft_ms": 1000, "itl_ms": 100, "input_len": 64, "output_len": 32,
                 "costs": self.costs, **options}
        return [word for name, value in given.items() if value is not None for word in ("--" + name.replace("_", "-"), value)]

    def gpus(self, hosts):
        return self.write("gpus.json", {"interface": "eth0", "secret_file": "s", "coordinator": {"host": "n0", "address": "10.0.0.1", "device": "cuda:0"},
                                        "workers": [{"host": f"n{n}", "devices": [f"cuda:{d}" for d in range(8)]} for n in range(1, hosts + 1)]})

    def test_the_demo_model(self):
        found = json.loads(self.plan(*self.usual(), "--json").stdout)
        best = found["best"]
        self.assertEqual((found["model"], found["cluster_workers"], best["split"]["coordinators"]), ("demo-model", 2, 1))
        self.assertTrue(best["within_bounds"] and best["ttft_ms"] <= 1000 and best["itl_ms"] <= 100)
        self.assertGreater(best["tokens_per_second"], 0)
        self.assertAlmostEqual(sum(ms for name, ms in best["decode_step_ms"].items() if name != "whole"), best["decode_step_ms"]["whole"])
        text = self.plan(*self.usual(), "--price", "cpu=2").stdout
        for line in ("split", "options", "throughput", "latency", "decode step", "bottleneck", "memory", "cost", "one worker more"):
            self.assertRegex(text, f"(?m)^{line} ")
        self.assertRegex(text, r"(?m)^cost +[\d.]+ an hour, [\d.e+-]+ a million tokens$")

    def test_broken_off_it_leaves_nothing(self):
        place = {**os.environ, "TMPDIR": str(self.folder)}
        with subprocess.Popen([EXPERTMESH, "plan", "--calibrate", self.folder / "mine.json", "--model", DEMO_MODEL / "config.json"], env=place,
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: list(self.folder.glob("expertmesh-plan-*")), RUN_SECONDS, "it measures")
            process.terminate()
            said = process.stderr.read()
        self.assertEqual((process.returncode, said.splitlines()[-1]), (130, "expertmesh plan: broken off"))
        self.assertEqual(list(self.folder.glob("expertmesh-*")), [])
        self.assertFalse((self.folder / "mine.json").exists())

    def test_more_processes_than_cores_wait_for_their_turn(self):
        links = {"shm": {"latency_us": 20, "gb_per_second": 1, "crowded_us": 0}}
        for workers, alike in ((1, True), (2, False)):
            there, free = (json.loads(self.plan(*self.usual(costs=costs, workers=workers), "--json").stdout)["best"]["tokens_per_second"]
                           for costs in (self.costs, self.write("free.json", costs_content(links=links))))
            self.assertEqual(there == free, alike, workers)

    def test_what_info_json_wrote_is_a_model(self):
        written = subprocess.run([EXPERTMESH, "info", str(DEMO_MODEL), "--json"], capture_output=True, text=True, check=True).stdout
        config, other = (json.loads(self.plan(*self.usual(model=model), "--json").stdout)["best"] for model in
                         (DEMO_MODEL / "config.json", self.write("facts.json", written)))
        self.assertEqual(config, other)

    def test_an_int8_kv_cache_is_smaller(self):
        """More sequences of long prompts find room; costs must be of the same."""
        options = self.usual(DEMO_MODEL, costs=self.write("int8.json", costs_content(kv_cache_dtype="int8")), kv_cache_dtype="int8")
        self.assertTrue(json.loads(self.plan(*options, "--json").stdout)["best"])
        found = {kind: models.read(str(EXPERTMESH), DEMO_MODEL, models.numerics("bfloat16", None, kind)) for kind in (None, "float32", "int8")}
        whole = found[None].sequence_bytes(64)
        self.assertEqual(found["float32"].sequence_bytes(64), 2 * whole)
        self.assertTrue(whole / 2 < found["int8"].sequence_bytes(64) < whole, found["int8"])

    def test_not_within_bounds(self):
        done = self.plan(*self.usual(itl_ms=0.001), code=1)
        self.assertIn("NOTHING HERE IS WITHIN THE BOUNDS", done.stdout)

    def test_ten_thousand_workers(self):
        cluster, model = self.gpus(1250), CONFIGS / "deepseek-v3.json"
        options = self.usual(model, cluster, costs=None, hardware="h200-sxm", quantization="int8", skew="zipf:0.8", grouping="together")
        found = json.loads(self.plan(*options, "--json").stdout)
        self.assertEqual(found["cluster_workers"], 10000)
        self.assertLess(found["steps_computed"], 30000)  # each some 0.2 ms
        split = found["best"]["split"]
        self.assertLessEqual(split["coordinators"] - 1 + split["workers"], 10000)
        self.assertTrue(found["best"]["within_bounds"])
        self.assertEqual((split["micro_batches"] > 2, found["served_today"]["split"]["micro_batches"]), (True, 2))

    def test_gpus(self):
        options = self.usual(CONFIGS / "qwen3-30b-a3b.json", self.gpus(1), costs=None, hardware="h100-sxm")
        found = json.loads(self.plan(*options, "--price", "h100-sxm=3", "--json").stdout)["best"]
        used = found["split"]["coordinators"] + found["split"]["workers"]
        self.assertAlmostEqual(found["price_per_hour"], 3 * used)
        faster = self.write("more.toml", (PLAN / "hardware.toml").read_text().replace("memory_gb_per_second = 3350", "memory_gb_per_second = 6700"))
        better = json.loads(self.plan(*options, "--hardware-file", faster, "--json").stdout)["best"]
        self.assertGreater(better["tokens_per_second"], found["tokens_per_second"])

    def test_a_dense_model_needs_no_workers(self):
        model = REPOSITORY / "tests" / "goldens" / "models" / "llama"
        best = json.loads(self.plan(*self.usual(model, self.gpus(1), costs=None, hardware="h100-sxm"), "--json").stdout)["best"]
        self.assertEqual((best["split"]["workers"], best["split"]["redundant_experts"], best["worker_bytes"]), (0, 0, 0))

    def test_processors_beside_a_gpu(self):
        cluster = self.write("mixed.json", {"coordinator": {"host": "here", "device": "cuda"}, "workers": [{"host": "here", "count": 2, "capacity": 5}]})
        best = json.loads(self.plan(*self.usual(cluster=cluster, hardware="l40s"), "--json").stdout)["best"]
        self.assertEqual(best["split"]["coordinators"], 1)  # a processor becomes none beside a GPU

    def test_published(self):
        found = json.loads(self.plan("--published", "--json").stdout)
        self.assertEqual(len(found), 4)
        for one in found:
            self.assertTrue(one["source"] and one["predicted"] > 0)
            self.assertAlmostEqual(one["ratio"], one["predicted"] / one["published"])

    def refused(self, words, *arguments):
        done = self.plan(*arguments, code=2)
        self.assertEqual((done.stdout, done.stderr.count("\n")), ("", 1), done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_bad_options(self):
        for words, arguments in (
                (["--model"], []), (["--cluster"], self.usual()[:2]), (["--ttft-ms"], self.usual(ttft_ms=None)),
                (["--itl-ms"], self.usual(itl_ms="x")), (["--frobnicate"], [*self.usual(), "--frobnicate"]),
                (["--skew"], self.usual(skew="flat:1")), (["--network"], self.usual(network="1")), (["--workers", "2"], self.usual(workers=3)),
                (["--coordinators"], self.usual(coordinators=2)), (["--costs"], self.usual(costs=None)), (["/nowhere"], self.usual(model="/nowhere")),
                (["/nowhere"], self.usual(cluster="/nowhere")), (["int8", "bfloat16"], self.usual(quantization="int8")),
                (["int8", "KV cache", "bfloat16"], self.usual(kv_cache_dtype="int8")),
                (["--kv-cache-dtype int8", "GPU"], self.usual(CONFIGS / "qwen3-30b-a3b.json", self.gpus(1), costs=None, hardware="h100-sxm", kv_cache_dtype="int8")),
                (["--price h100-sxm=2"], self.usual(price="h100-sxm=2")),
                *((["--price", "from 0 to 1000000000"], self.usual(price=f"cpu={amount}")) for amount in ("-1", "nan", "1e10", "x")),
                (["--micro-batches", "from 1 to 4"], self.usual(micro_batches=99)), (["--micro-batches 2", "workers"], self.usual(micro_batches=2, workers=0)),
                (["--redundant-experts 1", "workers"], self.usual(redundant_experts=1, workers=0)),
                (["--calibrate", "no folder /nowhere"], ["--calibrate", "/nowhere/costs.json"]),
                (["--calibrate", "is a folder"], ["--calibrate", self.folder]), (["--hardware", "h100-sxm"], self.usual(hardware="abacus")),
                (["512"], self.usual(input_len=600)), (["encoder"], self.usual(model=CONFIGS / "switch-base-8.json"))):
            with self.subTest(words=words):
                self.refused(words, *arguments)

    def test_bad_files(self):
        cluster = json.loads(Path(self.cluster).read_text())
        for words, content in ((["unknown", "'colour'"], {**cluster, "colour": 1}), (["'workers'"], {"coordinator": {"host": "here"}}),
                               (["'coordinators'"], {**cluster, "coordinators": 2}),
                               (["workers[0]", "'count'"], {**cluster, "workers": [{"host": "here", "count": 0}]}),
                               (["workers[0]", "tpu"], {**cluster, "workers": [{"host": "here", "devices": ["tpu"]}]}),
                               (["--hardware"], {**cluster, "workers": [{"host": "here", "devices": ["cuda:0"]}]}),
                               (["--network"], {**cluster, "workers": [{"host": "there"}]}), (["not JSON"], "{")):
            with self.subTest(words=words):
                self.refused([*words, "other.json"] if words != ["--hardware"] else words, *self.usual(cluster=self.write("other.json", content)))
        for words, content in ((["'colour'"], costs_content(colour=1)), (["'cores'"], costs_content(cores=0)), (["'form'"], costs_content(form=99)),
                               (["'links'", "shm"], costs_content(links={})), (["profiles[0].parts", "'kv'"], costs_content(profiles=[
                                   {"threads": 1, "working_set_bytes": 1, "parts": {"attention": [[1, 1]]}}]))):
            with self.subTest(words=words):
                self.refused([*words, "costs.json"], *self.usual(costs=self.write("costs.json", content)))
        for words, content in ((["'colour'"], facts(colour=1)), (["'row_bytes'"], facts(row_bytes=0)), (["'weights'"], facts(weights=None))):
            with self.subTest(words=words):
                self.refused([*words, "facts.json"], *self.usual(model=self.write("facts.json", content)))

    def test_help(self):
        text = self.plan("--help").stdout
        for option in ("--model", "--cluster", "--ttft-ms", "--itl-ms", "--costs", "--hardware", "--skew", "--calibrate", "--validate", "--published"):
            self.assertIn(option, text)


class InfoTest(unittest.TestCase):
    def info(self, folder, *options):
        return subprocess.run([EXPERTMESH, "info", str(folder), *options], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)

    def test_json_says_what_the_text_says(self):
        for name in ("deepseek-v3", "gpt-oss-20b", "llama-4-scout-text", "mixtral-8x7b", "nllb-moe-54b", "qwen1.5-moe-a2.7b"):
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text((CONFIGS / f"{name}.json").read_text())
                done, text = self.info(folder, "--json", "--workers", "3"), self.info(folder, "--workers", "3").stdout
                self.assertEqual(done.returncode, 2)  # there are no weights
                found = json.loads(done.stdout)
                line = dict(re.findall(r"(?m)^(\S.*?)  +(.*)$", text))
                self.assertEqual(found["family"], line["family"])
                self.assertEqual(line["parameters"], f"{found['parameters']['total'] / 1e9:.2f} B in all, {found['parameters']['active'] / 1e9:.2f} B active")
                self.assertEqual(line["coordinator"], f"{found['coordinator_bytes'] / 1e9:.2f} GB of weights")
                self.assertEqual([line[f"worker {n}"] for n in (1, 2, 3)], [f"{size / 1e9:.2f} GB of experts" for size in found["worker_bytes"]])
                self.assertTrue(line["KV cache"].startswith(f"{found['kv_bytes_per_token']} bytes"))
                self.assertEqual(found["would_be_refused"], [line["would be refused"]])
                layers = found["stacks"][-1]["layers"]
                self.assertTrue(line["layers"].startswith(f"{sum(layer['count'] for layer in layers)} "))

    def test_parts_add_up(self):
        done = self.info(DEMO_MODEL, "--json", "--workers", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        found = json.loads(done.stdout)
        (layer,) = found["stacks"][0]["layers"]
        coordinator = layer["count"] * (layer["attention"]["bytes"] + layer["router"]["bytes"])
        self.assertEqual(found["coordinator_bytes"], coordinator + found["embedding_bytes"] + found["lm_head"]["bytes"] + 4 * found["hidden"])
        self.assertEqual(sum(found["worker_bytes"]), layer["count"] * layer["experts"]["count"] * layer["experts"]["bytes"])
        self.assertEqual(found["kv_bytes_per_token"], layer["count"] * layer["kv"]["bytes_per_token"])
        self.assertEqual(found["parameters"]["routed"], layer["count"] * layer["experts"]["count"] * layer["experts"]["multiply_adds"])

    def test_a_broken_configuration(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text("{")
            done = self.info(folder, "--json")
            self.assertEqual(done.returncode, 2)
            self.assertTrue(json.loads(done.stdout)["would_be_refused"])


if __name__ == "__main__":
    unittest.main()
