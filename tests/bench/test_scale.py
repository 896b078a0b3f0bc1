"""`expertmesh bench scale`: its figures from made-up points, what it starts and starts again, and one small sweep for real. Never
how fast."""
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY

RUN_SECONDS = 300
SCALE = REPOSITORY / "launch" / "bench" / "scale"
FAKE = Path(__file__).with_name("fake_expertmesh.py").read_text()
sys.path.insert(0, str(SCALE))

import engine_trace  # noqa: E402
import figures  # noqa: E402
import hosts  # noqa: E402

STAGES = ("attention", "router", "dispatch", "experts", "combine", "other")
TINY = ("--batch-sizes", "2", "--input-lens", "8", "--output-len", "4", "--requests-per-client", "2")


def record(kind, transport, units, batch, tokens_per_second, **measured):
    workers = 0 if transport == "in-process" else units
    setup = {"transport": transport, "units": units, "workers": workers, "threads": 1 if workers else units,
             "worker_threads": 1 if workers else 0}
    step_ms = 1e3 * batch / tokens_per_second
    shares = measured.pop("shares", (0.2, 0.1, 0.1, 0.5, 0.05, 0.05))
    latency = {"step": {"p50": 1}} if kind == "engine" else {"tpot": {"p50": measured.pop("tpot_ms"), "p99": 9}, **{
        name: {"p50": 1, "p95": 2, "p99": 3} for name in ("ttft", "itl", "e2el")}}
    measured.update(tokens_per_second=tokens_per_second, step_ms=step_ms, latency_ms=latency, load_before=0,
                    stage_ms={stage: share * step_ms for stage, share in zip(STAGES, shares)})
    if kind == "engine":
        measured.update(exchange_share=0.25, floor_ms=5.0, prefill_ceiling_tokens_per_second=2000.0,
                        machine_ceilings={"memory_gb_per_second": 10.0, "compute_gflop_per_second": 100.0})
    return {"key": f"{kind} {transport} {units} {batch}", "measured": measured,
            "settings": {"kind": kind, "setup": setup, "batch": batch, "input_len": 100, "output_len": 10, "requests": 0,
                         "dtype": "bfloat16", "seed": 0}}


class FiguresTest(unittest.TestCase):
    RECORDS = [record("engine", "in-process", 1, 4, 200), record("engine", "shm", 1, 4, 100), record("engine", "shm", 2, 4, 150),
               record("engine", "shm", 2, 8, 180), record("engine", "shm", 4, 4, 160), record("serve", "shm", 1, 4, 80, tpot_ms=5),
               record("serve", "shm", 2, 4, 120, tpot_ms=6), record("serve", "shm", 2, 8, 110, tpot_ms=7)]

    def setUp(self):
        self.rows = {row["key"]: row for row in figures.rows(self.RECORDS, 4)}

    def test_efficiency_is_throughput_a_unit(self):
        self.assertEqual(figures.efficiency(150, 2, 100, 1), 0.75)
        self.assertEqual(figures.efficiency(100, 4, 100, 2), 0.5)
        for key, strong, weak in (("engine shm 1 4", 1, 1), ("engine shm 2 4", 0.75, None), ("engine shm 2 8", None, 0.9),
                                  ("engine shm 4 4", 0.4, None)):
            row = self.rows[key]
            self.assertEqual((row["strong_efficiency"], row["weak_efficiency"]), (strong, weak), key)
        self.assertEqual(self.rows["engine shm 2 4"]["speedup"], 1.5)
        self.assertEqual(self.rows["engine shm 2 4"]["of_in_process"], 0.75)
        self.assertEqual(self.rows["serve shm 2 4"]["strong_efficiency"], 0.75)  # of servers, not of engines

    def test_ceilings(self):
        self.assertEqual(self.rows["engine shm 2 4"]["ceiling_tokens_per_second"], 800)  # 4 tokens in 5 ms
        self.assertEqual(self.rows["engine shm 2 4"]["share_of_ceiling"], 150 / 800)
        # 4 prompts of 100 at 2000 a second, then 10 steps of 5 ms
        self.assertAlmostEqual(self.rows["serve shm 2 4"]["ceiling_tokens_per_second"], 40 / (0.2 + 0.05))
        self.assertEqual(self.rows["serve shm 2 4"]["memory_gb_per_second"], 10)
        alone = figures.rows([record("serve", "shm", 1, 4, 80, tpot_ms=5)], 4)[0]
        self.assertEqual((alone["ceiling_tokens_per_second"], alone["share_of_ceiling"]), (None, None))

    def test_more_processes_than_cores(self):
        def marked(cores):
            return {row["key"] for row in figures.rows(self.RECORDS, cores) if row["more_than_cores"]}

        self.assertEqual(marked(4), {"engine shm 4 4"})
        self.assertEqual(marked(3), {"engine shm 4 4", "serve shm 2 4", "serve shm 2 8"})  # two workers, a coordinator, clients
        self.assertEqual(marked(2), {row["key"] for row in self.RECORDS} - {"engine in-process 1 4", "engine shm 1 4"})

    def test_where_scaling_stops(self):
        found = {(one["mode"], one["kind"]): figures.stop(one) for one in figures.series(list(self.rows.values()))}
        self.assertEqual(set(found), {("strong", "engine"), ("weak", "engine"), ("strong", "serve"), ("weak", "serve")})
        strong = found["strong", "engine"]
        self.assertEqual((strong["at"], strong["stopped"], strong["seen_at"], strong["efficiency"]), (2, True, 4, 0.4))  # 160 is not 10% above 150
        self.assertTrue(strong["more_than_cores"])
        self.assertEqual((found["weak", "engine"]["at"], found["weak", "engine"]["stopped"]), (2, False))

    def test_losses_add_up(self):
        one, four = self.rows["engine shm 1 4"], self.rows["engine shm 4 4"]
        strong = figures.losses(four, one, "strong")
        self.assertAlmostEqual(sum(strong.values()), four["step_ms"] - one["step_ms"] / 4)
        self.assertAlmostEqual(strong["coordinator"], 0.35 * 25 - 0.35 * 40 / 4)
        self.assertAlmostEqual(strong["exchange"], 0.25 * 25 - 0.25 * 40 / 4)
        two = self.rows["engine shm 2 8"]
        self.assertAlmostEqual(sum(figures.losses(two, one, "weak").values()), two["step_ms"] - one["step_ms"])

    def test_frontier(self):
        self.assertEqual([row["key"] for row in figures.frontier(list(self.rows.values()))], ["serve shm 1 4", "serve shm 2 4"])

    def test_stage_shares_are_of_no_more_than_the_step(self):
        late = record("serve", "shm", 1, 4, 80, tpot_ms=5, shares=(0.5, 0.1, 0.1, 0.5, 0.1, 0))
        self.assertAlmostEqual(sum(figures.rows([late], 4)[0]["stage_shares"].values()), 1)


class TraceTest(unittest.TestCase):
    def test_exchange_and_percentiles(self):
        """Warm-up, then one batch size: a step that is not timed and three that are, of 100, 200 and 400 us."""
        lines, now = ["["], 0

        def add(**event):
            lines.append(json.dumps(event) + ",")

        for step, (name, duration) in enumerate([("prefill step", 50), ("decode step", 70), ("prefill step", 50), ("decode step", 900),
                                                 ("decode step", 100), ("decode step", 200), ("decode step", 400)], 1):
            add(ph="X", cat="step", name=name, ts=now, dur=duration, args={"step": step})
            for worker, computes in ((1, 5), (2, 15)):
                add(ph="b", cat="exchange", id=f"{worker}.{step}", ts=now + 10, args={"layer": 0})
                # The clock of a worker may say anything; how long it computed it knows.
                add(ph="X", cat="compute", name="experts", ts=now - 1000, dur=computes, args={"layer": 0, "exchange": f"{worker}.{step}"})
            for stage, took in (("attention", 5), ("dispatch", 5), ("experts", 30), ("combine", 1)):
                add(ph="X", cat="stage", name=stage, ts=now, dur=took, args={"step": step, "layer": 0})
            now += duration + 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            path.write_text("\n".join(lines) + "\n{}]\n")
            (found,) = engine_trace.read(path, 1, 3)
            self.assertAlmostEqual(found["exchange_share"], 3 * (5 + 30 - 15 + 1) / 700)
            self.assertEqual(found["step_ms"], {"p50": 0.2, "p95": 0.38, "p99": 0.396})
            self.assertIsNone(engine_trace.read(path, 2, 3))


class ScaleTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "out"
        self.log = self.folder / "log"
        self.program = self.folder / "expertmesh"
        self.program.write_text(f"#!{sys.executable} -IS\n{FAKE}")  # started many times: without what makes Python slow to start
        self.program.chmod(0o700)

    def run_it(self, command, *arguments, code=0, **environment):
        command = [*map(str, command), str(DEMO_MODEL), "--out", str(self.out), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
                              env={**os.environ, "FAKE_LOG": str(self.log), **environment})
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def fake(self, *arguments, **options):
        """-> what was started: a list of command lines; what was said"""
        self.log.write_text("")
        said = self.run_it((sys.executable, "-B", SCALE, self.program, self.folder), *arguments, **options)
        started = map(json.loads, self.log.read_text().splitlines())
        return [words[:words.index("--trace")] if "--trace" in words else words for words in started], said

    def results(self):
        return json.loads((self.out / "results.json").read_text())

    def table(self):
        with (self.out / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))


class StartsTest(ScaleTest):
    OPTIONS = ("--no-serve", "--workers", "1,2", "--transports", "in-process,mpi", "--batch-sizes", "1,4", "--input-lens", "8",
               "--output-len", "4", "--no-plots")

    def test_a_sweep_starts_each_setup_once_for_a_prompt_length(self):
        started, _ = self.fake(*self.OPTIONS)
        setups = [(words[words.index("--threads") + 1], words[words.index("--workers") + 1] if "--workers" in words else "0") for words in started]
        many = len(os.sched_getaffinity(0)) > 1
        self.assertEqual(sorted(set(setups)), [("1", "0"), ("1", "1"), ("1", "2")] + [("2", "0")] * many)
        self.assertEqual(len(started), len(set(setups)))
        of_two = next(words for words in started if "--workers" in words and words[words.index("--workers") + 1] == "2")
        self.assertEqual(of_two[of_two.index("--batch-sizes") + 1], "1,2,4,8")  # strong 1 and 4, weak 2 and 8
        rows = {(row["transport"], row["units"], row["batch"]): row for row in self.results()["points"]}
        # The stand-in takes 10 ms a sequence over 1 + workers: 200 and 300 tokens/s with one and two.
        self.assertAlmostEqual(rows["mpi", 2, 4]["strong_efficiency"], 0.75)
        self.assertAlmostEqual(rows["mpi", 2, 8]["weak_efficiency"], 0.75)
        self.assertEqual(len(self.table()), len(self.results()["points"]))

    def test_a_second_run_measures_nothing(self):
        self.fake(*self.OPTIONS)
        before = self.results()["points"]
        started, said = self.fake(*self.OPTIONS)
        self.assertEqual(started, [])
        self.assertIn(f"{len(before)} of {len(before)} points are there already", said)
        self.assertEqual(self.results()["points"], before)

    def test_only_what_is_missing_is_measured(self):
        self.fake(*self.OPTIONS)
        before = self.results()["points"]
        points = self.out / "points.jsonl"
        points.write_text(points.read_text()[:-40])  # broken off in the middle of the last line
        started, _ = self.fake(*self.OPTIONS)
        self.assertEqual([words[words.index("--batch-sizes") + 1] for words in started], ["8"])
        after = self.results()["points"]
        after[-1]["load_before"] = before[-1]["load_before"]  # of the run that measured it
        self.assertEqual(after, before)
        started, _ = self.fake(*self.OPTIONS, "--input-lens", "8,16")
        self.assertEqual({words[words.index("--input-len") + 1] for words in started}, {"16"})

    def test_points_of_another_program_are_not_taken(self):
        first, _ = self.fake(*self.OPTIONS)
        (self.folder / "expertmesh-worker").write_text("of a later build")
        self.assertEqual(self.fake(*self.OPTIONS)[0], first)

    def test_broken_off(self):
        whole, _ = self.fake(*self.OPTIONS)
        (self.out / "points.jsonl").unlink()
        started, said = self.fake(*self.OPTIONS, code=130, FAKE_BREAKS_AT="3")
        self.assertEqual(len(started), 3)
        self.assertIn("broken off", said)
        self.assertEqual(len(self.results()["points"]), len(self.table()))
        self.assertEqual(self.fake(*self.OPTIONS)[0], whole[2:])

    def test_broken_off_while_a_server_starts(self):
        started, _ = self.fake(*self.OPTIONS[1:], code=130, FAKE_BREAKS_AT="2")
        self.assertEqual([words[0] for words in started], ["bench", "serve"])
        self.assertEqual(len(self.results()["points"]), 2)

    def test_a_setup_that_fails_is_named_and_tried_again(self):
        _, said = self.fake(*self.OPTIONS, code=1, FAKE_REFUSES="mpi")
        self.assertIn("failed: there is no such transport here", said)
        self.assertEqual({row["transport"] for row in self.results()["points"]}, {"in-process"})
        self.assertIn("there is no such transport here", (self.out / "report.md").read_text())
        started, _ = self.fake(*self.OPTIONS)
        self.assertTrue(started and all("mpi" in words for words in started))
        self.assertEqual(self.results()["failed"], [])

    def test_without_matplotlib(self):
        (self.folder / "matplotlib.py").write_text("raise ImportError\n")
        options = [option for option in self.OPTIONS if option != "--no-plots"]
        _, said = self.fake(*options, code=1, PYTHONPATH=str(self.folder))
        self.assertIn("python3-matplotlib", said)
        self.assertTrue(self.results()["points"] and self.table())
        self.assertIn("python3-matplotlib", (self.out / "report.md").read_text())

    def test_bad_options_are_one_line_that_names_them(self):
        for option, value in (("--workers", "0"), ("--workers", "1,x"), ("--transports", "shm,tcp"), ("--batch-sizes", ""), ("--input-lens", "-1"),
                              ("--input-lens", "600"), ("--output-len", "1"), ("--dtype", "int8"), ("--seed", "1.5"), ("--frobnicate", "1")):
            with self.subTest(option=option, value=value):
                started, said = self.fake(*self.OPTIONS, f"{option}={value}", code=2)
                self.assertEqual((started, said.count("\n")), ([], 1), said)
                self.assertIn(option, said)
        done = subprocess.run([EXPERTMESH, "bench", "scale", "/nowhere"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
        self.assertIn("/nowhere", done.stderr)


class OtherHostsTest(ScaleTest):
    def test_where_there_can_be_none_they_are_left_out(self):
        few = self.folder / "few"
        few.mkdir()
        (few / "setpriv").symlink_to(shutil.which("setpriv"))
        _, said = self.fake(*StartsTest.OPTIONS, "--transports", "in-process,tcp-namespaces", PATH=str(few))
        self.assertIn("tcp-namespaces is left out: " + ("only root" if os.geteuid() else "there is no ip "), said)
        self.assertEqual({row["transport"] for row in self.results()["points"]}, {"in-process"})

    def test_engines_have_none(self):
        started, _ = self.fake(*StartsTest.OPTIONS, "--transports", "tcp-namespaces")
        self.assertEqual(started, [])

    def test_for_real(self):
        why = hosts.refusal()
        if why:
            self.skipTest(why)
        links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
        self.run_it((EXPERTMESH, "bench", "scale"), "--workers", "1,2", "--no-plots", *TINY, "--transports", "tcp-namespaces")
        rows = self.results()["points"]
        self.assertEqual([(row["kind"], row["transport"], row["workers"], row["batch"]) for row in rows],
                         [("serve", "tcp-namespaces", 1, 2), ("serve", "tcp-namespaces", 2, 2), ("serve", "tcp-namespaces", 2, 4)])
        for row in rows:
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertGreater(row["stage_shares"]["experts"], 0)
        self.assertEqual(subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout, links, "something stays")


class SweepTest(ScaleTest):
    def test_for_real(self):
        self.run_it((EXPERTMESH, "bench", "scale"), *TINY, "--workers", "1", "--transports", "in-process,shm")
        results, table, report = self.results(), self.table(), (self.out / "report.md").read_text()
        rows = results["points"]
        self.assertEqual([(row["kind"], row["transport"], row["workers"], row["batch"]) for row in rows],
                         [("engine", "in-process", 0, 2), ("serve", "in-process", 0, 2), ("engine", "shm", 1, 2), ("serve", "shm", 1, 2)])
        self.assertEqual([row["key"] for row in table], [row["key"] for row in rows])
        for row in rows:
            with self.subTest(row["key"]):
                for name in ("tokens_per_second", "step_ms", "ceiling_tokens_per_second", "memory_gb_per_second", "compute_gflop_per_second"):
                    self.assertGreater(row[name], 0, name)
                self.assertAlmostEqual(row["share_of_ceiling"] * row["ceiling_tokens_per_second"], row["tokens_per_second"])
                shares = row["stage_shares"]
                self.assertLessEqual(set(STAGES), set(shares))
                self.assertTrue(all(share >= 0 for share in shares.values()), shares)
                self.assertLessEqual(sum(shares.values()), 1 + 1e-9)
                self.assertGreater(shares["experts"], 0)
                self.assertEqual((row["strong_efficiency"], row["weak_efficiency"], row["processes"]), (1, 1, 1 + row["workers"] + (row["kind"] == "serve")))
                for of in row["latency_ms"].values():
                    self.assertTrue(0 < of["p50"] <= of["p95"] <= of["p99"], of)
                if row["kind"] == "engine":
                    self.assertAlmostEqual(sum(shares.values()), 1)
                    self.assertTrue(0 < row["exchange_share"] < 1, row["exchange_share"])
        self.assertEqual(results["failed"], [])
        self.assertGreater(results["machine"]["usable_cores"], 0)
        plots = sorted(path.name for path in self.out.glob("*.svg"))
        self.assertEqual(plots, ["exchange.svg", "frontier.svg", "latency.svg", "stages.svg", "throughput.svg"])  # one unit alone has no efficiency
        for name in plots:
            xml.dom.minidom.parse(str(self.out / name))
            self.assertIn(f"({name})", report)


if __name__ == "__main__":
    unittest.main()
