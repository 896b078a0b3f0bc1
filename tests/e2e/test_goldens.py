"""Every reference checkpoint through the HTTP API in float32: logits, routing and greedy paths of the reference, and the
same bits for any number of workers, any batch and any size of the prefill chunks. One of them with every instruction set."""
import json
import math
import re
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import quantised_checkpoint
from harness import EXPERTMESH, MODEL_GOLDENS, Server, read_safetensors

MOE_CASES = ["deepseek_v2", "deepseek_v3", "deepseek_v3-fp8", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "gpt_oss-mxfp4", "granitemoe",
             "granitemoeshared", "hunyuan_v1_moe", "llama4", "minimax_m2", "mixtral", "mixtral-window", "noisy_topk_moe", "olmoe", "phimoe",
             "phimoe-longrope", "qwen2_moe", "qwen3_moe"]
DENSE_CASES = ["llama", "llama-dynamic", "llama-linear", "llama-llama3", "mistral", "qwen2", "qwen3"]
# (workers, most tokens of a step). Prompts are cut at 16, in the middle of KV blocks, windows and chunks of attention.
MOE_SETTINGS = [(0, 512), (1, 16), (2, 512), (3, 16)]
DENSE_SETTINGS = [(0, 512), (0, 16)]
TOLERANCE = 2e-4  # of max |logit|: stored weights are exact in float32, so only the order of sums differs
BATCH = 4


class Golden:
    def __init__(self, case):
        self.dir = MODEL_GOLDENS / case
        golden = json.loads((self.dir / "golden.json").read_text())
        self.tensors = read_safetensors(self.dir / "golden.safetensors")
        self.greedy = [prompt["greedy"] for prompt in golden["prompts"]]
        self.prompts = [self.tensors[f"prompt{i}.input_ids"] for i in range(len(self.greedy))]

    def logits(self, i):
        return self.tensors[f"prompt{i}.logits"]

    def routing(self, i):
        """-> [tokens][moe layers][K]"""
        prefix, suffix = f"prompt{i}.router.", ".experts"
        layers = sorted(int(name[len(prefix):-len(suffix)]) for name in self.tensors
                        if name.startswith(prefix) and name.endswith(suffix))
        return [list(token) for token in zip(*(self.tensors[f"{prefix}{layer}{suffix}"] for layer in layers))]


def body_of(prompt, new_tokens):
    return {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "echo": True, "logprobs": 256,
            "return_token_ids": True, "return_tokens_as_token_ids": True, "return_routed_experts": True}


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


class ServedGoldens(unittest.TestCase):
    def serve(self, golden, workers, chunk, *options):
        return Server(golden.dir, "--dtype", "float32", "--max-logprobs", 256, "--enable-return-routed-experts", "--workers", workers,
                      "--max-num-batched-tokens", chunk, *options)

    def bodies(self, golden):
        return [body_of(prompt, len(greedy)) for prompt, greedy in zip(golden.prompts, golden.greedy)]

    def check_against_reference(self, golden, choices, is_moe):
        for i, choice in enumerate(choices):
            with self.subTest(prompt=i):
                self.assertEqual(choice["token_ids"], golden.greedy[i])
                self.check_logits(golden, i, choice["logprobs"]["top_logprobs"])
                if is_moe:
                    expected = golden.routing(i)
                    # The reference does not sort the choice of all families.
                    self.assertEqual([[sorted(layer) for layer in token] for token in choice["routed_experts"][:len(expected)]],
                                     [[sorted(layer) for layer in token] for token in expected])
                    self.assertEqual(len(choice["routed_experts"]), len(golden.prompts[i]) + len(golden.greedy[i]) - 1)

    def check_logits(self, golden, i, positions):
        logits = golden.logits(i)
        self.assertIsNone(positions[0])
        self.assertEqual(len(positions), len(logits) + len(golden.greedy[i]))
        tolerance = TOLERANCE * max(abs(x) for row in logits for x in row)
        worst = 0
        for row, position in zip(logits, positions[1:]):
            expected = log_softmax(row)
            self.assertEqual(len(position), min(256, len(row)))
            for key, logprob in position.items():
                worst = max(worst, abs(logprob - expected[int(key.removeprefix("token_id:"))]))
        self.assertLessEqual(worst, tolerance)

    def answers(self, server, bodies):
        """-> each body's answer, asked alone; those of a batch of BATCH"""
        alone = [server.complete(**body)["choices"][0] for body in bodies]
        together = server.complete_together([bodies[i % len(bodies)] for i in range(BATCH)])
        return alone, [answer["choices"][0] for answer in together]

    def check_same_bits(self, answers, expected):
        alone, together = answers
        self.assertEqual(alone, expected, "alone")
        for i, choice in enumerate(together):
            self.assertEqual(choice, expected[i % len(expected)], f"request {i} of a batch of {BATCH}")


class GoldensTest(ServedGoldens):
    def check_case(self, case, settings, is_moe):
        golden = Golden(case)
        bodies = self.bodies(golden)

        def of_setting(setting):
            with self.serve(golden, *setting) as server:
                return self.answers(server, bodies)

        with ThreadPoolExecutor(2) as pool:  # a server that starts waits more than it computes
            answers = list(pool.map(of_setting, settings))
        expected, _ = answers[0]
        self.check_against_reference(golden, expected, is_moe)
        for (workers, chunk), found in zip(settings, answers):
            with self.subTest(workers=workers, chunk=chunk):
                self.check_same_bits(found, expected)

    def check_quantised(self, method):
        with tempfile.TemporaryDirectory() as folder:
            quantised, numbers = Path(folder, "quantised"), Path(folder, "numbers")
            golden = Golden("qwen3_moe")
            quantised_checkpoint.make_quantised(golden.dir, method, quantised, numbers)

            def of_setting(setting):
                directory, workers = setting
                with Server(directory, "--max-logprobs", 256, "--enable-return-routed-experts", "--workers", workers) as server:
                    return [server.complete(**body)["choices"][0] for body in self.bodies(golden)]

            with ThreadPoolExecutor(2) as pool:
                expected, *others = pool.map(of_setting, [(numbers, 0), (quantised, 0), (quantised, 2)])
            for found in others:
                self.assertEqual(found, expected)
            with Server(golden.dir, "--max-logprobs", 256, "--enable-return-routed-experts") as server:  # not the same model
                self.assertNotEqual(server.complete(**self.bodies(golden)[0])["choices"][0], expected[0])

    def test_window_in_the_least_memory(self):
        golden = Golden("mixtral-window")
        bodies = self.bodies(golden)
        with self.serve(golden, 0, 16) as server:
            expected = [server.complete(**body)["choices"][0] for body in bodies]
            limits = server.get("/v1/cluster")[1]["limits"]
        block_bytes = limits["kv_cache_bytes"] // limits["kv_blocks"]
        with self.serve(golden, 0, 16, "--kv-cache-memory", 3 * block_bytes) as server:  # 15 positions and a step's 16
            self.assertEqual(server.get("/v1/cluster")[1]["limits"]["kv_groups"],
                             [{"kind": "window", "span_tokens": 16, "layers": 3, "blocks": 3, "bytes": 3 * block_bytes}])
            self.check_same_bits(self.answers(server, bodies), expected)
            self.assertEqual(server.metric("kv_cache_usage_perc"), 0)


class IsaTest(ServedGoldens):
    """The kernels of every instruction set that this processor has, here and in a worker; what it lacks is refused."""

    AVX512 = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
    NEEDED = {"scalar": set(), "neon": {"asimd"}, "neon_dot": {"asimddp"}, "avx2": {"avx2", "fma", "f16c"}, "avx_vnni": {"avx2", "fma", "f16c", "avx_vnni"},
              "avx512": AVX512, "avx512_vnni": AVX512 | {"avx512_vnni"}, "avx512_bf16": AVX512 | {"avx512_vnni", "avx512_bf16"},
              "amx": AVX512 | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}}

    def test_every_instruction_set(self):
        has = set(re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
        golden = Golden("mixtral")
        for isa, needed in self.NEEDED.items():
            with self.subTest(isa):
                if needed <= has:
                    self.check_runs(golden, isa)
                else:
                    self.check_refused(golden, isa)

    def check_runs(self, golden, isa):
        with self.serve(golden, 1, 16, "--isa", isa) as server:
            cluster = server.get("/v1/cluster")[1]
            self.assertEqual([process["isa"] for process in [cluster["profile"], cluster["coordinator"], *cluster["workers"]]], [isa] * 3)
            alone, together = self.answers(server, self.bodies(golden))
            self.check_against_reference(golden, alone, True)
            self.check_same_bits((alone, together), alone)

    def check_refused(self, golden, isa):
        ended = subprocess.run([EXPERTMESH, "serve", golden.dir, "--isa", isa], capture_output=True, text=True, timeout=60)
        self.assertEqual((ended.returncode, ended.stdout), (2, ""), ended.stderr)
        self.assertEqual(ended.stderr.splitlines()[-1], f"expertmesh: --isa {isa}: this processor does not run it")


def _add_tests():
    for method in quantised_checkpoint.CONFIGS:
        setattr(GoldensTest, "test_quantised_by_" + method.replace("-", "_"), lambda self, m=method: self.check_quantised(m))
    for case in MOE_CASES:
        setattr(GoldensTest, "test_" + case.replace("-", "_"), lambda self, c=case: self.check_case(c, MOE_SETTINGS, True))
    for case in DENSE_CASES:
        setattr(GoldensTest, "test_" + case.replace("-", "_"), lambda self, c=case: self.check_case(c, DENSE_SETTINGS, False))


_add_tests()

if __name__ == "__main__":
    unittest.main()
