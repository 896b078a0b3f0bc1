"""`expertmesh bench`: both benchmarks for real, their figures complete and consistent; never how fast."""
import json
import os
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY, Server, wait_until

RUN_SECONDS = 120
STAGES = {"embedding", "attention", "router", "dispatch", "shared_expert", "experts", "combine", "dense_ffn", "lm_head", "sampling", "other"}
LATENCIES = {f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p50", "p95", "p99") for name in ("ttft", "tpot", "itl", "e2el")}


class BenchTest(unittest.TestCase):
    def bench(self, *arguments, code=0):
        """-> the JSON file's content (none if the command failed), what it printed"""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "figures.json"
            done = subprocess.run([EXPERTMESH, "bench", *map(str, arguments), "--json", str(file)], stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
            self.assertEqual(done.returncode, code, done.stderr)
            return (json.loads(file.read_text()) if file.exists() else None), done.stdout, done.stderr


class EngineBenchTest(BenchTest):
    OPTIONS = ("--batch-sizes", "1,3", "--input-len", 20, "--output-len", 5, "--prefill-tokens", 16, "--threads", 2, "--seed", 3)

    def check(self, figures, experts):
        self.assertEqual((figures["benchmark"], figures["input_len"], figures["output_len"]), ("engine", 20, 5))
        self.assertGreater(figures["ceilings"]["memory_gb_per_second"], 0)
        self.assertGreater(figures["ceilings"]["compute_gflop_per_second"], 0)
        self.assertEqual([r["batch_size"] for r in figures["results"]], [1, 3])
        for result in figures["results"]:
            prefill, decode, size = result["prefill"], result["decode"], result["batch_size"]
            self.assertEqual(prefill["tokens"], 20 * size)
            self.assertAlmostEqual(prefill["tokens_per_second"] * prefill["duration_ms"] / 1e3, 20 * size)
            self.assertAlmostEqual(decode["tokens_per_second"] * decode["median_step_ms"] / 1e3, size)
            self.assertEqual(set(decode["stage_ms"]), STAGES)
            self.assertAlmostEqual(sum(decode["stage_ms"].values()), decode["mean_step_ms"])
            self.assertTrue(all(ms >= 0 for ms in decode["stage_ms"].values()), decode["stage_ms"])
            self.assertTrue(min(experts, figures["num_experts"]) <= decode["experts_hit_per_layer"] <= min(experts * size, figures["num_experts"]))
            moved = (decode["weight_bytes_per_step"] + decode["kv_bytes_per_step"]) / 1e9
            self.assertAlmostEqual(decode["gb_per_second"] * decode["median_step_ms"] / 1e3, moved)
            self.assertAlmostEqual(decode["share_of_memory_ceiling"] * figures["ceilings"]["memory_gb_per_second"], decode["gb_per_second"])
        one, three = (result["decode"] for result in figures["results"])
        self.assertEqual(three["kv_bytes_per_step"], 3 * one["kv_bytes_per_step"])

    def test_in_process(self):
        config = json.loads((DEMO_MODEL / "config.json").read_text())
        figures, table, _ = self.bench("engine", DEMO_MODEL, *self.OPTIONS)
        self.check(figures, config["num_experts_per_tok"])
        self.assertEqual(figures["workers"], 0)
        for word in ("prefill", "decode", "GB/s", "attention"):
            self.assertIn(word, table)

    def test_workers_move_the_same_bytes(self):
        config = json.loads((DEMO_MODEL / "config.json").read_text())
        alone, _, _ = self.bench("engine", DEMO_MODEL / "config.json", *self.OPTIONS)
        spread, _, _ = self.bench("engine", DEMO_MODEL / "config.json", *self.OPTIONS, "--workers", 2, "--worker-threads", 1)
        self.check(spread, config["num_experts_per_tok"])
        for a, b in zip(alone["results"], spread["results"]):
            for name in ("experts_hit_per_layer", "weight_bytes_per_step", "kv_bytes_per_step"):
                self.assertEqual(a["decode"][name], b["decode"][name])

    def test_broken_off_it_leaves_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            with subprocess.Popen([EXPERTMESH, "bench", "engine", str(DEMO_MODEL / "config.json"), "--output-len", "300",
                                   "--batch-sizes", ",".join(map(str, range(1, 65)))],
                                  env={**os.environ, "TMPDIR": folder}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as process:
                wait_until(lambda: list(place.glob("expertmesh-bench-*")), RUN_SECONDS, "it has begun")
                process.terminate()
            self.assertEqual(process.returncode, -signal.SIGTERM)
            self.assertEqual(list(place.glob("expertmesh-*")), [])

    def test_float32(self):
        figures, _, _ = self.bench("engine", DEMO_MODEL, *self.OPTIONS, "--dtype", "float32", "--isa", "scalar")
        self.assertEqual((figures["dtype"], figures["isa"]), ("float32", "scalar"))

    def test_quantised_weights_are_fewer_bytes(self):
        alone, _, _ = self.bench("engine", DEMO_MODEL, *self.OPTIONS)
        for kind, least, most in (("int8", 0.5, 0.56), ("int4", 0.28, 0.34)):
            figures, table, _ = self.bench("engine", DEMO_MODEL, *self.OPTIONS, "--quantization", kind)
            self.check(figures, 2)
            self.assertEqual((figures["dtype"], figures["weights"]), ("bfloat16", kind))
            self.assertIn(f"({kind})", table)
            for a, b in zip(alone["results"], figures["results"]):
                share = b["decode"]["weight_bytes_per_step"] / a["decode"]["weight_bytes_per_step"]
                self.assertTrue(least < share < most, share)
                self.assertEqual(a["decode"]["kv_bytes_per_step"], b["decode"]["kv_bytes_per_step"])
                self.assertGreater(b["decode"]["share_of_floor"], 0)

    def test_an_int8_kv_cache_is_fewer_bytes(self):
        alone, _, _ = self.bench("engine", DEMO_MODEL, *self.OPTIONS)
        figures, table, _ = self.bench("engine", DEMO_MODEL, *self.OPTIONS, "--kv-cache-dtype", "int8")
        self.check(figures, 2)
        self.assertEqual((figures["dtype"], figures["kv_cache_dtype"], alone["kv_cache_dtype"]), ("bfloat16", "int8", "bfloat16"))
        self.assertIn("KV cache int8", table)
        for a, b in zip(alone["results"], figures["results"]):
            self.assertEqual(b["decode"]["kv_bytes_per_step"] * 64, a["decode"]["kv_bytes_per_step"] * 36)  # heads of 32

    def test_the_configuration_it_ships(self):
        config = REPOSITORY / "launch" / "bench" / "configs" / "qwen3moe-703m.json"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(config.read_text())
            text = subprocess.run([EXPERTMESH, "info", folder], capture_output=True, text=True, timeout=RUN_SECONDS, check=False).stdout
        self.assertIn("0.70 B in all, 0.17 B active", text)

    def test_bad_usage_is_one_line(self):
        for arguments in (("engine",), ("engine", "/nowhere"), ("engine", DEMO_MODEL, "--batch-sizes", "0"),
                          ("engine", DEMO_MODEL, "--batch-sizes", "1,x"), ("engine", DEMO_MODEL, "--input-len", 100000),
                          ("engine", DEMO_MODEL, "--dtype", "int8"), ("serve", "--base-url", "https://localhost"),
                          ("quality", DEMO_MODEL), ("quality", DEMO_MODEL, "--text", QualityBenchTest.TEXT, "--formats", "int3"),
                          ("quality", DEMO_MODEL, "--text", QualityBenchTest.TEXT, "--window", 513), ("quality", "/nowhere", "--text", QualityBenchTest.TEXT),
                          ("serve", "--input-len", "9:3"), ("serve", "--request-rate", "0"), ("serve", "--endpoint", "other")):
            with self.subTest(arguments):
                figures, out, error = self.bench(*arguments, code=2)
                self.assertIsNone(figures)
                self.assertEqual((out, error.count("\n")), ("", 1), error)


class QualityBenchTest(BenchTest):
    TEXT = DEMO_MODEL / "eval.txt"

    def test_each_format_is_as_near_as_it_should_be(self):
        figures, table, _ = self.bench("quality", DEMO_MODEL, "--text", self.TEXT, "--max-tokens", 2600)
        self.assertEqual((figures["tokens"], figures["windows"], figures["reference"]), (2560, 10, "float32"))
        formats = {of["format"]: of for of in figures["formats"]}
        # Of 2,550 tokens a format's perplexity is farther from the reference's than of all 14,790.
        for name, change in (("bfloat16", 0.002), ("int8", 0.005), ("int4", 0.04), ("int8_kv", 0.004)):
            with self.subTest(name):
                of = formats.pop(name)
                self.assertLess(abs(of["perplexity"] / figures["reference_perplexity"] - 1), change)
                self.assertTrue(0 < of["kl_divergence"] < change, of)
                self.assertTrue(0 < of["logit_error_rms"] < of["logit_error_largest"], of)
                self.assertIn(f"{of['perplexity']:.4f}", table)
        self.assertEqual(formats, {})
        errors = [of["logit_error_rms"] for of in figures["formats"][:3]]
        self.assertEqual(errors, sorted(set(errors)))
        choices = [of["same_choice"] for of in figures["formats"][:3]]
        self.assertEqual(choices, sorted(choices, reverse=True))

    def test_a_format_is_as_it_is(self):
        options = ("--max-tokens", 100, "--window", 60, "--reference", "int8", "--formats", "int8")
        figures, _, _ = self.bench("quality", DEMO_MODEL, "--text", self.TEXT, *options)
        self.assertEqual(figures["tokens"], 60)
        of = figures["formats"][0]
        self.assertEqual((of["logit_error_rms"], of["kl_divergence"], of["same_choice"]), (0, 0, 1))
        self.assertEqual(of["perplexity"], figures["reference_perplexity"])


class ServeBenchTest(BenchTest):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(DEMO_MODEL)
        cls.addClassCleanup(cls.server.close)
        cls.url = f"http://127.0.0.1:{cls.server.port}"

    def load(self, *arguments, code=0):
        figures, table, error = self.bench("serve", "--base-url", self.url, *arguments, code=code)
        self.assertEqual(figures["completed"] + figures["failed"] + figures["disconnected"], figures["num_prompts"], error)
        self.assertLessEqual(LATENCIES, set(figures))
        self.assertEqual(sum(figures["errors"].values()), figures["failed"])
        self.assertIn("TTFT", table)
        for name, count in (("request_throughput", figures["completed"]), ("output_throughput", figures["total_output_tokens"]),
                            ("total_token_throughput", figures["total_input_tokens"] + figures["total_output_tokens"])):
            self.assertAlmostEqual(figures[name] * figures["duration"], count, places=4)
        return figures

    def test_completions(self):
        before = self.server.metrics()
        figures = self.load("--num-prompts", 20, "--input-len", 12, "--output-len", 9, "--ignore-eos", "--max-concurrency", 4)
        self.assertEqual((figures["completed"], figures["model_id"], figures["request_rate"]), (20, "demo-model", "inf"))
        self.assertEqual((figures["total_input_tokens"], figures["total_output_tokens"]), (20 * 12, 20 * 9))
        self.assertLessEqual(figures["max_concurrent_requests"], 4)
        self.assertLessEqual(figures["mean_ttft_ms"], figures["mean_e2el_ms"])
        for name in ("ttft", "tpot", "itl", "e2el"):
            p50, p95, p99 = (figures[f"{p}_{name}_ms"] for p in ("p50", "p95", "p99"))
            self.assertTrue(0 < p50 <= p95 <= p99, name)
        after = self.server.metrics()
        for name, count in (("prompt_tokens_total", 240), ("generation_tokens_total", 180), ("requests_finished_total", 20)):
            self.assertEqual(after["expertmesh:" + name] - before["expertmesh:" + name], count)

    def test_poisson_arrivals_and_ranges(self):
        figures = self.load("--num-prompts", 15, "--request-rate", 40, "--input-len", "4:16", "--output-len", "2:8", "--seed", 5, "--ignore-eos")
        again = self.load("--num-prompts", 15, "--request-rate", 400, "--input-len", "4:16", "--output-len", "2:8", "--seed", 5, "--ignore-eos")
        self.assertEqual((figures["completed"], figures["request_rate"]), (15, 40))
        for name in ("total_input_tokens", "total_output_tokens"):
            self.assertEqual(figures[name], again[name])  # the same seed, the same requests

    def test_chat(self):
        figures = self.load("--num-prompts", 6, "--endpoint", "chat", "--input-len", 10, "--output-len", 7, "--ignore-eos", "--model", "demo-model")
        self.assertEqual((figures["completed"], figures["endpoint_type"], figures["total_output_tokens"]), (6, "openai-chat", 42))

    def test_disconnects_are_counted_apart_and_seen_by_the_server(self):
        before = self.server.metric("requests_cancelled_total")
        figures = self.load("--num-prompts", 8, "--disconnect-share", 1, "--input-len", 8, "--output-len", 400, "--ignore-eos", code=1)
        self.assertEqual((figures["disconnected"], figures["completed"]), (8, 0))
        self.assertGreaterEqual(self.server.metric("requests_cancelled_total"), before)

    def test_failures_have_reasons(self):
        figures = self.load("--num-prompts", 3, "--vocab", 1000000, code=1)
        self.assertEqual(figures["failed"], 3)
        self.assertTrue(all(reason.startswith("400: ") for reason in figures["errors"]), figures["errors"])
        figures = self.load("--num-prompts", 2, "--model", "other", code=1)
        self.assertTrue(all(reason.startswith("404: ") for reason in figures["errors"]), figures["errors"])

    def test_no_server(self):
        figures, _, error = self.bench("serve", "--base-url", "http://127.0.0.1:1", code=1)
        self.assertIsNone(figures)
        self.assertIn("127.0.0.1:1", error)


if __name__ == "__main__":
    unittest.main()
