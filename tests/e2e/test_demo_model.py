"""The demo model: the greedy texts of the reference in float32, its perplexity in bfloat16, with int8 and int4 weights and with an
int8 KV cache, and streams that say the same as whole answers."""
import json
import math
import subprocess
import unittest

from byte_level_bpe import ByteLevelBpe
from harness import DEMO_MODEL, EXPERTMESH, Server

GOLDEN = json.loads((DEMO_MODEL / "golden.json").read_text())
WINDOW = 256
PERPLEXITY_TOLERANCE = 0.003
INT8_PERPLEXITY_TOLERANCE = 0.005
INT4_PERPLEXITY_TOLERANCE = 0.04
INT8_KV_PERPLEXITY_TOLERANCE = 0.004


class GreedyTest(unittest.TestCase):
    def test_greedy_texts_in_float32(self):
        with Server(DEMO_MODEL, "--dtype", "float32") as server:
            for case in GOLDEN["cases"]:
                with self.subTest(prompt=case["prompt"]):
                    options = {"temperature": 0, "max_tokens": len(case["greedy_ids"]), "ignore_eos": True}
                    choice = server.complete(prompt=case["prompt"], return_token_ids=True, **options)["choices"][0]
                    self.assertEqual(choice["prompt_token_ids"], case["prompt_ids"])
                    self.assertEqual(choice["token_ids"], case["greedy_ids"])
                    self.assertEqual(choice["text"], case["greedy_text"])
                    if "chat_user" in case:
                        messages = [{"role": "user", "content": case["chat_user"]}]
                        answer = server.chat(messages=messages, **options)
                        self.assertEqual(answer["choices"][0]["message"], {"role": "assistant", "content": case["greedy_text"]})
                        self.assertEqual(answer["usage"]["prompt_tokens"], len(case["prompt_ids"]))

    def test_streamed_pieces_join_to_the_whole_text(self):
        with Server(DEMO_MODEL) as server:
            body = {"prompt": "Once upon a time there was", "max_tokens": 100, "temperature": 0.8, "seed": 11}
            whole = server.complete(**body)["choices"][0]
            with server.stream("/v1/completions", body) as events:
                pieces = [choice["text"] for event in events for choice in event["choices"]]
            self.assertGreater(len(pieces), 10)
            self.assertEqual("".join(pieces), whole["text"])

            body = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}], "max_tokens": 100, "temperature": 0}
            whole = server.chat(**body)["choices"][0]["message"]["content"]
            with server.stream("/v1/chat/completions", body) as events:
                pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
            self.assertEqual("".join(pieces), whole)


class QuantisedTest(unittest.TestCase):
    """The same tokens wherever the experts are and whichever kernels compute them, in every wire type."""

    CASES = GOLDEN["cases"][:3]

    def texts(self, kind, *options):
        with Server(DEMO_MODEL, "--quantization", kind, *options) as server:
            _, cluster = server.get("/v1/cluster")
            self.assertEqual(cluster["profile"]["quantization"], kind)
            self.assertEqual({process["dtype"] for process in [cluster["coordinator"], *cluster["workers"]]}, {kind})
            return [server.complete(prompt=case["prompt"], return_token_ids=True, temperature=0, max_tokens=60,
                                    ignore_eos=True, logprobs=0)["choices"][0] for case in self.CASES]

    def test_greedy_texts_do_not_depend_on_who_computes_them(self):
        for kind, dtype in (("int8", "bfloat16"), ("int8", "float32"), ("int4", "bfloat16")):
            # Attention over bfloat16 multiplies in an order of the ISA's own; everything else here does not.
            numbers = ("--dtype", dtype, "--kv-cache-dtype", "float32")
            alone = self.texts(kind, *numbers)
            for options in (("--workers", 1), ("--workers", 2, "--threads", 1), ("--isa", "scalar")):
                with self.subTest(kind=kind, dtype=dtype, options=options):
                    self.assertEqual(self.texts(kind, *numbers, *options), alone)

    def test_a_gpu_is_refused_in_one_line(self):
        for options in (("--device", "cuda"), ("--workers", "1", "--worker-device", "cuda", "--allow-mixed-numerics")):
            with self.subTest(options):
                ended = subprocess.run([EXPERTMESH, "serve", DEMO_MODEL, "--quantization", "int8", *options],
                                       capture_output=True, text=True, timeout=60)
                self.assertEqual((ended.returncode, ended.stdout), (2, ""), ended.stderr)
                self.assertTrue(ended.stderr.splitlines()[-1].startswith("expertmesh: --quantization int8: "), ended.stderr)


class Int8KvCacheTest(unittest.TestCase):
    """The same tokens wherever the experts are, whichever kernels compute them and whoever else is served."""

    BODIES = [{"prompt": case["prompt"], "return_token_ids": True, "temperature": 0, "max_tokens": 60, "ignore_eos": True, "logprobs": 0}
              for case in GOLDEN["cases"][:3]]

    def test_greedy_texts_do_not_depend_on_who_computes_them(self):
        said = []
        for options in ((), ("--workers", 1), ("--workers", 2, "--threads", 1), ("--isa", "scalar")):
            with Server(DEMO_MODEL, "--dtype", "float32", "--kv-cache-dtype", "int8", *options) as server:
                _, cluster = server.get("/v1/cluster")
                self.assertEqual((cluster["profile"]["dtype"], cluster["profile"]["kv_dtype"]), ("float32", "int8"))
                said.append([answer["choices"][0] for answer in server.complete_together(self.BODIES)])
                if not options:
                    self.assertEqual([server.complete(**body)["choices"][0] for body in self.BODIES], said[0])
                    limits = cluster["limits"]
        for one in said[1:]:
            self.assertEqual(one, said[0])
        info = subprocess.run([EXPERTMESH, "info", DEMO_MODEL, "--json", "--kv-cache-dtype", "int8"], capture_output=True, text=True, check=True)
        of_block = limits["kv_block_tokens"] * json.loads(info.stdout)["kv_bytes_per_token"]
        self.assertEqual(limits["kv_cache_bytes"], limits["kv_blocks"] * of_block)

    def test_what_is_not_there_is_refused_in_one_line(self):
        for words, options in ((("--kv-cache-dtype int8: ", "--device"), ("int8", "--device", "cuda")), (("--kv-cache-dtype", "fp8", "int8"), ("fp8",))):
            with self.subTest(options):
                ended = subprocess.run([EXPERTMESH, "serve", DEMO_MODEL, "--kv-cache-dtype", *options], capture_output=True, text=True, timeout=60)
                self.assertEqual((ended.returncode, ended.stdout), (2, ""), ended.stderr)
                for word in words:
                    self.assertIn(word, ended.stderr)


class PerplexityTest(unittest.TestCase):
    def test_in_bfloat16(self):
        self.check("--dtype", "bfloat16", tolerance=PERPLEXITY_TOLERANCE)

    def test_with_int8_weights(self):
        self.check("--dtype", "bfloat16", "--quantization", "int8", tolerance=INT8_PERPLEXITY_TOLERANCE)

    def test_with_int4_weights(self):
        self.check("--dtype", "bfloat16", "--quantization", "int4", tolerance=INT4_PERPLEXITY_TOLERANCE)

    def test_with_an_int8_kv_cache(self):
        self.check("--dtype", "bfloat16", "--kv-cache-dtype", "int8", tolerance=INT8_KV_PERPLEXITY_TOLERANCE)

    def check(self, *options, tolerance):
        golden = GOLDEN["perplexity"]
        ids = ByteLevelBpe(DEMO_MODEL / "tokenizer.json").encode((DEMO_MODEL / golden["file"]).read_text())
        self.assertEqual(len(ids), golden["tokens"])
        windows = [ids[i:i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
        with Server(DEMO_MODEL, *options) as server:
            bodies = [{"prompt": window, "max_tokens": 0, "echo": True, "logprobs": 0} for window in windows]
            answers = [answer for i in range(0, len(bodies), 8) for answer in server.complete_together(bodies[i:i + 8])]
        scored = [x for answer in answers for x in answer["choices"][0]["logprobs"]["token_logprobs"][1:]]
        self.assertEqual(len(scored), golden["scored_tokens"])
        perplexity = math.exp(-sum(scored) / len(scored))
        print(f"perplexity {perplexity:.4f}, reference {golden['perplexity']}")
        self.assertLess(abs(perplexity / golden["perplexity"] - 1), tolerance)


if __name__ == "__main__":
    unittest.main()
