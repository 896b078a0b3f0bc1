"""GPUs: the greedy tokens of reference checkpoints, whoever holds what; deaths; refusals. What the program says where
there is no GPU, or no CUDA in the build: one line that names the device, and an exit code; never a silent fallback. And
groups of workers with different kernels, where that is allowed. With EXPERTMESH=build/on_host/bin/expertmesh every GPU is
an emulated one, and the same tests run anywhere."""
import json
import os
import re
import secrets
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, MODEL_GOLDENS, Server, wait_until
from test_goldens import Golden

# Whatever the reason is, it names the device.
NO_DEVICE = "[cuda:"
CASES = ("qwen2_moe", "gpt_oss-mxfp4", "deepseek_v3")  # grouped attention with biases, sinks and windows, latent
CASE = CASES[0]
ENCODER_CASE = "switch_transformers"  # biases by distance; experts take 4 tokens of a sequence
MANY_TOKENS = 24  # that the reference has
FEW_TOKENS = 6  # an emulated step takes its time
TINY_MODEL = {"model_type": "mixtral", "torch_dtype": "bfloat16", "hidden_act": "silu", "vocab_size": 48, "hidden_size": 32,
              "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
              "rope_theta": 1e4, "sliding_window": None, "tie_word_embeddings": False}


def serve(*options, model=DEMO_MODEL):
    """-> exit code, last line of standard error"""
    done = subprocess.run([EXPERTMESH, "serve", str(model), "--port", "0", *options], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)
    return done.returncode, done.stderr.strip().splitlines()[-1]


def there_is_a_device():
    """Devices are opened before memory is shared out."""
    return NO_DEVICE not in serve("--device", "cuda", "--kv-cache-memory", "1")[1]


HAS_DEVICE = there_is_a_device()


def body_of(prompt, num_tokens=FEW_TOKENS):
    return {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


def devices_of(server):
    """-> the coordinator's and the serving workers' devices, each without its model: "cuda:0" """
    cluster = server.get("/v1/cluster")[1]
    return [process["device"].split()[0] for process in (cluster["coordinator"], *cluster["workers"])]


@unittest.skipUnless(HAS_DEVICE, "no GPU here")
class DeviceTest(unittest.TestCase):
    def serve(self, *options, case=CASE, dtype="float32"):
        return Server(MODEL_GOLDENS / case, "--dtype", dtype, *options)

    def check_tokens(self, server, case=CASE):
        """Alone and together, prompts of 1, 7 and 40 tokens, of 3 and 20 with an encoder. test_goldens.py holds processors to the same tokens."""
        golden = Golden(case)
        bodies = [body_of(prompt) for prompt in golden.prompts]
        expected = [greedy[:FEW_TOKENS] for greedy in golden.greedy]
        self.assertEqual(server.complete(**bodies[-1])["choices"][0]["token_ids"], expected[-1])
        self.assertEqual([answer["choices"][0]["token_ids"] for answer in server.complete_together(bodies)], expected)

    def test_everything_on_it(self):
        for case in CASES:
            with self.subTest(case), self.serve("--device", "cuda", case=case) as server:
                self.check_tokens(server, case)
                self.assertEqual(devices_of(server), ["cuda:0"])

    def test_whoever_holds_the_experts(self):
        for options, devices in (
                (("--device", "cuda", "--workers", 2, "--micro-batches", 2), ["cuda:0", "cpu", "cpu"]),
                (("--device", "cuda", "--workers", 1, "--worker-device", "cuda"), ["cuda:0", "cuda:0"]),
                (("--device", "cuda", "--workers", 2, "--worker-device", "cuda"), ["cuda:0", "cuda:0", "cuda:0"]),
                (("--workers", 2, "--worker-device", "cuda:0", "--allow-mixed-numerics"), ["cpu", "cuda:0", "cuda:0"])):
            with self.subTest(options), self.serve(*options) as server:
                self.check_tokens(server)
                self.assertEqual(devices_of(server), devices)
                cluster = server.get("/v1/cluster")[1]
                kernels = cluster["profile"]["expert_isa"]
                self.assertEqual(kernels == "cuda", devices[-1] == "cuda:0")
                self.assertEqual({worker["isa"] for worker in cluster["workers"]}, {kernels})
                self.assertEqual(sum(worker["experts"] for worker in cluster["workers"]), self.num_experts())
                self.assertEqual(server.metric("split_steps_total") > 0, "--micro-batches" in options)

    def test_an_encoder_and_what_looks_across_to_it(self):
        for options, devices in (((), ["cuda:0"]),
                                 (("--workers", 2), ["cuda:0", "cpu", "cpu"]),
                                 (("--workers", 1, "--worker-device", "cuda"), ["cuda:0", "cuda:0"])):
            # The input of 20 tokens goes through the encoder in parts.
            with self.subTest(options), self.serve("--device", "cuda", "--max-num-batched-tokens", 8, *options, case=ENCODER_CASE) as server:
                self.check_tokens(server, ENCODER_CASE)
                self.assertEqual(devices_of(server), devices)

    def num_experts(self):
        golden = Golden(CASE)
        layers = {name.split(".")[2] for name in golden.tensors if name.startswith("prompt0.router.")}
        return 8 * len(layers)

    def test_one_worker_on_it_and_one_on_the_processor(self):
        with tempfile.TemporaryDirectory() as folder:
            secret = Path(folder) / "secret"
            secret.write_text(secrets.token_hex(16))
            secret.chmod(0o600)
            with self.serve("--workers", 1, "--interface", "lo", "--control-port", 0, "--secret-file", secret,
                            "--allow-mixed-numerics", "--worker-capacity", 1) as server:
                address = re.search(r"worker --join (\S+)", server.log()).group(1)
                worker = subprocess.Popen([EXPERTMESH, "worker", "--join", address, "--secret-file", str(secret), "--device", "cuda",
                                           "--threads", "1", "--capacity", "1"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    def both_hold_some():
                        cluster = server.get("/v1/cluster")[1]
                        return not cluster["placement"]["moving"] and [w["experts"] for w in cluster["workers"] if w["state"] == "serving"] == [
                            self.num_experts() // 2, self.num_experts() // 2]
                    wait_until(both_hold_some, 60, "each holds half")
                    self.check_tokens(server)
                    self.assertEqual(devices_of(server), ["cpu", "cpu", "cuda:0"])
                    profile = server.get("/v1/cluster")[1]["profile"]
                    self.assertFalse(profile["bitwise_identity"])
                finally:
                    worker.terminate()
                    self.assertEqual(worker.wait(60), 0)

    def check_a_stream_without(self, server, victim):
        """The worker is killed when the first token has come."""
        golden = Golden(CASE)
        tokens = []
        with server.stream("/v1/completions", body_of(golden.prompts[1], MANY_TOKENS)) as events:
            for event in events:
                if not tokens:
                    os.kill(victim["pid"], signal.SIGKILL)
                tokens += event["choices"][0].get("token_ids") or []
        self.assertEqual(tokens, golden.greedy[1])

    def test_a_worker_is_killed_in_the_middle_of_a_stream(self):
        for options in (("--worker-device", "cuda"), ()):
            with self.subTest(options), self.serve("--device", "cuda", "--workers", 2, *options) as server:
                victim = server.get("/v1/cluster")[1]["workers"][0]
                self.check_a_stream_without(server, victim)

                def successor():
                    worker = server.get("/v1/cluster")[1]["workers"][0]
                    return worker if worker["state"] == "serving" and worker["pid"] != victim["pid"] else None
                worker = wait_until(successor, 60, "a new worker serves in its place")
                self.assertEqual((worker["device"], worker["experts"]), (victim["device"], victim["experts"]))
                self.check_tokens(server)
                self.assertEqual(server.metric("worker_deaths_total"), 1)
                self.assertEqual(server.metric("requests_failed_total"), 0)

    def test_weights_in_codes_have_the_same_bits_everywhere(self):
        """In bfloat16, where devices multiply FP8 and MXFP4 from their codes: with the experts at hand, in workers, after a
        worker's death, and in the worker that then loads them."""
        for case in ("deepseek_v3-fp8", "gpt_oss-mxfp4"):
            body = body_of(Golden(case).prompts[1]) | {"logprobs": 3}

            def answer(server, victim=None):
                events = []
                with server.stream("/v1/completions", body) as stream:
                    for event in stream:
                        if victim and not events:
                            os.kill(victim["pid"], signal.SIGKILL)
                        events.append([event["choices"][0].get(field) for field in ("token_ids", "logprobs")])
                return events
            with self.subTest(case):
                with self.serve("--device", "cuda", case=case, dtype="bfloat16") as server:
                    expected = answer(server)
                self.assertTrue(any(logprobs for _, logprobs in expected))
                with self.serve("--device", "cuda", "--workers", 2, "--worker-device", "cuda", case=case, dtype="bfloat16") as server:
                    victim = server.get("/v1/cluster")[1]["workers"][0]
                    self.assertEqual(answer(server), expected)
                    self.assertEqual(answer(server, victim), expected)
                    wait_until(lambda: server.get("/v1/cluster")[1]["workers"][0]["state"] == "serving"
                               and server.get("/v1/cluster")[1]["workers"][0]["pid"] != victim["pid"], 60, "a new worker serves in its place")
                    self.assertEqual(answer(server), expected)

    @unittest.skipUnless("EXPERTMESH_NCCL" in os.environ, "several processes on one GPU need a library that takes them")
    def test_rows_go_by_nccl(self):
        golden = Golden(CASE)
        with self.serve("--device", "cuda", "--workers", 2, "--worker-device", "cuda", "--row-transport", "nccl",
                        "--static-exchange-bytes", 1 << 20, "--micro-batches", 2) as server:
            def all_by_nccl():
                server.complete(**body_of(golden.prompts[0], 1))  # links come up while there are steps
                workers = server.get("/v1/cluster")[1]["workers"]
                return all(w["state"] == "serving" and w["row_transport"].startswith("nccl") for w in workers) and workers
            victim = wait_until(all_by_nccl, 60, "both are linked")[1]
            self.check_tokens(server)
            self.assertGreater(server.metric("static_steps_total"), 0)
            self.assertGreater(server.metric("graph_steps_total"), 0)
            self.assertLess(server.metric("graph_steps_total"), server.metric("static_steps_total"))
            self.assertGreater(server.metric("split_steps_total"), 0)
            self.assertEqual(server.metric("repeated_steps_total"), 0)
            self.check_a_stream_without(server, victim)

            def its_successor_too():
                workers = all_by_nccl()
                return workers and workers[1]["pid"] != victim["pid"]
            wait_until(its_successor_too, 60, "the new worker is linked")
            before = {name: server.metric(name) for name in ("static_steps_total", "graph_steps_total")}
            self.check_tokens(server)
            for name, steps in before.items():
                self.assertGreater(server.metric(name), steps, name)
            self.assertEqual(server.metric("requests_failed_total"), 0)
            self.assertLessEqual(server.metric("repeated_steps_total"), 1)

    @unittest.skipUnless("EXPERTMESH_NCCL" in os.environ, "several processes on one GPU need a library that takes them")
    def test_the_benchmark_measures_the_exchange(self):
        with tempfile.TemporaryDirectory() as folder:
            config, figures = Path(folder) / "config.json", Path(folder) / "figures.json"
            config.write_text(json.dumps(TINY_MODEL))
            few_bytes = 800  # of a layer: more than one row takes, with two workers, and less than three do
            done = subprocess.run([EXPERTMESH, "bench", "engine", str(config), "--device", "cuda", "--workers", "2",
                                   "--worker-device", "cuda", "--row-transport", "nccl", "--micro-batches", "1",
                                   "--static-exchange-bytes", str(few_bytes), "--batch-sizes", "1,3", "--input-len", "9",
                                   "--output-len", "2", "--prefill-tokens", "16", "--json", str(figures)],
                                  capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
            self.assertEqual(done.returncode, 0, done.stderr)
            said = json.loads(figures.read_text())
        self.assertEqual(said["row_transports"], ["nccl", "nccl"])
        decodes = [result["decode"] for result in said["results"]]
        self.assertEqual([decode["share_of_static"] for decode in decodes], [1, 0])
        for decode in decodes:
            self.assertGreater(decode["exchange_ms"], 0)
            self.assertLess(decode["exchange_ms"], decode["device_ms"])
            self.assertNotIn("host_gap_ms", decode)
        self.assertRegex(done.stdout, r"(?m)^rows by +nccl nccl$")

    def test_what_it_cannot_do_is_refused(self):
        code, line = serve("--device", "cuda:99")
        self.assertEqual(code, 2, line)
        self.assertRegex(line, r"no such device.*\[cuda:99")
        code, line = serve("--workers", "1", "--worker-device", "cuda:99", "--allow-mixed-numerics")
        self.assertEqual(code, 1, line)
        self.assertRegex(line, r"worker 1: .*no such device.*\[cuda:99")
        code, line = serve("--device", "cuda", "--max-num-batched-tokens", str(1 << 20), "--gpu-memory-utilization", "0.05")
        self.assertEqual(code, 2, line)
        self.assertIn("not enough memory on cuda:0", line)


@unittest.skipIf(HAS_DEVICE, "this machine has a GPU")
class NoDeviceTest(unittest.TestCase):
    def test_the_coordinator_refuses_with_the_reason(self):
        for device in ("cuda", "cuda:3"):
            code, line = serve("--device", device)
            self.assertEqual(code, 2, line)
            self.assertIn(NO_DEVICE, line)
            self.assertRegex(line, "no NVIDIA driver|finds no device|no CUDA")

    def test_a_worker_says_why_it_ended(self):
        code, line = serve("--workers", "1", "--worker-device", "cuda", "--allow-mixed-numerics")
        self.assertEqual(code, 1, line)
        self.assertIn("worker 1: ", line)
        self.assertIn(NO_DEVICE, line)


class OptionsTest(unittest.TestCase):
    def test_names_of_devices(self):
        for device in ("tpu", "cuda:", "cuda:x", "cuda:1234", "CUDA", ""):
            code, line = serve("--device", device)
            self.assertEqual(code, 2, (device, line))

    def test_bits_that_would_depend_on_deaths_have_to_be_allowed(self):
        code, line = serve("--workers", "1", "--worker-device", "cuda")
        self.assertEqual(code, 2, line)
        self.assertIn("--allow-mixed-numerics", line)

    def test_rows_go_by_nccl_between_gpus_only(self):
        code, line = serve("--row-transport", "nccl", "--workers", "1")
        self.assertEqual(code, 2, line)
        self.assertIn("--row-transport", line)
        code, line = serve("--row-transport", "infiniband")
        self.assertEqual(code, 2, line)

    def test_what_would_have_no_effect_is_refused(self):
        code, line = serve("--worker-device", "cuda")
        self.assertEqual(code, 2, line)
        self.assertIn("no workers", line)
        for option in (("--gpu-memory-utilization", "0.5"), ("--enforce-eager",)):
            code, line = serve(*option)
            self.assertEqual(code, 2, line)

    @unittest.skipUnless(HAS_DEVICE, "no GPU here")
    def test_a_form_of_the_exchange_that_could_never_be_taken_is_refused(self):
        for options in (("--row-transport", "host", "--workers", "1", "--worker-device", "cuda"), ("--workers", "0")):
            code, line = serve("--device", "cuda", "--static-exchange-bytes", "1000", *options)
            self.assertEqual(code, 2, line)
            self.assertIn("--static-exchange-bytes", line)

    def test_rows_go_by_nccl_to_workers_of_one_coordinator(self):
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
            config.write("static-exchange-bytes = 1000\n")
            config.flush()
            for what in (("--row-transport", "nccl"), ("--row-transport=nccl",), ("--static-exchange-bytes", "1000"), ("--config", config.name)):
                code, line = serve("--coordinators", "2", "--workers", "2", *what)
                self.assertEqual(code, 2, line)
                self.assertIn("one coordinator only", line)

    def test_the_profile_says_what_runs(self):
        with Server(DEMO_MODEL, "--workers", "1", "--allow-mixed-numerics") as server:
            profile = server.get("/v1/cluster")[1]["profile"]
            self.assertFalse(profile["bitwise_identity"])
            self.assertEqual(profile["isa"], profile["expert_isa"])
            self.assertTrue(server.complete(prompt="Once", max_tokens=4, temperature=0)["choices"][0]["text"])
        with Server(DEMO_MODEL) as server:
            self.assertTrue(server.get("/v1/cluster")[1]["profile"]["bitwise_identity"])
            self.assertEqual(server.get("/v1/cluster")[1]["coordinator"]["device"], "cpu")


if __name__ == "__main__":
    unittest.main()
