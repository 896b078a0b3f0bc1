"""Encoder-decoder reference checkpoints through the HTTP API in float32: greedy paths of the reference, the same bits for any
number of workers, any batch, any step size, across the death of a worker; and what the API makes of prompts that go to an
encoder."""
import json
import os
import shutil
import signal
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import MODEL_GOLDENS, Server, read_safetensors, wait_until

CASES = ["nllb-moe", "switch_transformers"]
# (workers, most tokens of a step): inputs of 20 tokens go through the encoder at once, or in parts of 16 or 5.
SETTINGS = [(0, 512), (1, 16), (2, 512), (3, 5)]
BATCH = 5
SERVER_OPTIONS = ("--dtype", "float32", "--max-logprobs", 256, "--enable-return-routed-experts", "--control-port", 0)


class Golden:
    def __init__(self, case):
        self.dir = MODEL_GOLDENS / case
        golden = json.loads((self.dir / "golden.json").read_text())
        tensors = read_safetensors(self.dir / "golden.safetensors")
        self.greedy = [prompt["greedy"] for prompt in golden["prompts"]]
        self.inputs = [tensors[f"prompt{i}.input_ids"] for i in range(len(self.greedy))]
        self.config = json.loads((self.dir / "config.json").read_text())


def body_of(prompt, new_tokens, **more):
    return {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "logprobs": 5, "return_token_ids": True,
            "return_tokens_as_token_ids": True, **more}


def choice_of(answer):
    return answer["choices"][0]


class ReferenceTest(unittest.TestCase):
    def check_case(self, case):
        golden = Golden(case)
        bodies = [body_of(prompt, len(greedy), return_routed_experts=True) for prompt, greedy in zip(golden.inputs, golden.greedy)]
        # Sampled, with penalties: what they see of a sequence must not change either.
        bodies.append(body_of(golden.inputs[-1], 24, temperature=0.9, seed=11, repetition_penalty=1.3, frequency_penalty=0.5))
        expected = None
        for workers, tokens in SETTINGS:
            with self.subTest(workers=workers, tokens=tokens), \
                    Server(golden.dir, *SERVER_OPTIONS, "--workers", workers, "--max-num-batched-tokens", tokens, "--max-num-seqs", 4) as server:
                alone = [choice_of(server.complete(**body)) for body in bodies]
                if expected is None:
                    expected = alone
                    for choice, greedy in zip(alone, golden.greedy):
                        self.assertEqual(choice["token_ids"], greedy)
                self.assertEqual(alone, expected)
                together = server.complete_together([bodies[i % len(bodies)] for i in range(BATCH)])
                self.assertEqual([choice_of(answer) for answer in together], [expected[i % len(bodies)] for i in range(BATCH)])

    def test_nllb_moe(self):
        self.check_case("nllb-moe")

    def test_switch_transformers(self):
        self.check_case("switch_transformers")

    def test_experts_of_the_decoder(self):
        for case, most in (("nllb-moe", 2), ("switch_transformers", 1)):
            golden = Golden(case)
            with self.subTest(case=case), Server(golden.dir, *SERVER_OPTIONS) as server:
                routed = choice_of(server.complete(**body_of(golden.inputs[1], 16, return_routed_experts=True)))["routed_experts"]
                self.assertEqual(len(routed), 16)  # the start, and all new tokens but the last
                for token in routed:
                    self.assertEqual(len(token), 2)  # MoE layers of the decoder
                    self.assertTrue(all(len(layer) <= most for layer in token))
                if case == "switch_transformers":  # an expert takes 4 tokens of a sequence
                    for layer in range(2):
                        taken = [expert for token in routed for expert in token[layer]]
                        self.assertTrue(all(taken.count(expert) <= golden.config["expert_capacity"] for expert in range(4)))
                        self.assertLess(len(taken), 16, "this path has none that is left out")

    def test_under_preemption(self):
        golden = Golden("switch_transformers")
        bodies = [body_of(prompt, 100) for prompt in golden.inputs * 3]
        with Server(golden.dir, *SERVER_OPTIONS) as server:
            expected = [choice_of(server.complete(**body)) for body in bodies[:2]] * 3
            limits = server.get("/v1/cluster")[1]["limits"]
            self.assertEqual([group["kind"] for group in limits["kv_groups"]], ["full", "cross"])
        a_block = sum(group["bytes"] // group["blocks"] for group in limits["kv_groups"])
        with Server(golden.dir, *SERVER_OPTIONS, "--max-model-len", 128, "--kv-cache-memory", 20 * a_block) as server:
            self.assertEqual([choice_of(answer) for answer in server.complete_together(bodies)], expected)
            self.assertGreater(server.metric("num_preemptions_total"), 0)

    # The workers die under many requests at once: one alone may be answered before its client has read three tokens.
    def test_workers_die_mid_stream(self):
        for case in CASES:
            golden = Golden(case)
            body = body_of(golden.inputs[1], 100)
            with self.subTest(case=case), Server(golden.dir, *SERVER_OPTIONS, "--workers", 2) as server, ThreadPoolExecutor(1) as pool:
                expected = choice_of(server.complete(**body))["token_ids"]
                workers = server.get("/v1/cluster")[1]["workers"]
                answers = pool.submit(server.complete_together, [body] * 48)
                wait_until(lambda: server.metric("num_requests_running") > 0 or answers.done(), 30, "a request that runs")
                for worker in workers:
                    os.kill(worker["pid"], signal.SIGKILL)
                self.assertEqual([choice_of(answer)["token_ids"] for answer in answers.result()], [expected] * 48)
                wait_until(lambda: server.metric("worker_deaths_total") >= 1, 30, "a worker's death in the metrics")


class ApiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.golden = Golden("nllb-moe")
        cls.server = Server(cls.golden.dir, *SERVER_OPTIONS)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def refused(self, param, server=None, **body):
        status, answer = (server or self.server).post("/v1/completions", body)
        self.assertEqual(status, 400, answer)
        self.assertEqual(answer["error"]["param"], param, answer)
        return answer["error"]["message"]

    def test_usage_counts_the_encoders_tokens(self):
        answer = self.server.complete(**body_of(self.golden.inputs[1], 7))
        self.assertEqual(answer["usage"], {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27})
        self.assertEqual(choice_of(answer)["prompt_token_ids"], self.golden.inputs[1])

    def test_a_stream_has_the_tokens_of_the_answer(self):
        body = body_of(self.golden.inputs[1], 20, stream_options={"include_usage": True})
        whole = choice_of(self.server.complete(**{k: v for k, v in body.items() if k != "stream_options"}))
        with self.server.stream("/v1/completions", body) as events:
            chunks = list(events)
        self.assertEqual("".join(c["choices"][0]["text"] for c in chunks if c["choices"]), whole["text"])
        self.assertEqual(chunks[-1]["usage"]["prompt_tokens"], 20)

    def test_choices_of_one_prompt(self):
        body = body_of(self.golden.inputs[1], 12, temperature=1.0, seed=3, n=3)
        answer = self.server.complete(**body)
        self.assertEqual(self.server.complete(**body)["choices"], answer["choices"])
        self.assertEqual(len(answer["choices"]), 3)
        self.assertGreater(len({tuple(choice["token_ids"]) for choice in answer["choices"]}), 1)
        several = self.server.complete(**body_of(self.golden.inputs, 16))
        self.assertEqual([choice["token_ids"] for choice in several["choices"]], self.golden.greedy)

    def test_stops(self):
        body = body_of(self.golden.inputs[0], 16)
        token = self.golden.greedy[0][0]
        stopped = choice_of(self.server.complete(**body, stop_token_ids=[token]))
        self.assertEqual((stopped["token_ids"], stopped["finish_reason"], stopped["stop_reason"]), ([], "stop", token))
        end = choice_of(self.server.complete(**{**body, "ignore_eos": False, "logit_bias": {"2": 100}}))
        self.assertEqual((end["token_ids"], end["finish_reason"]), ([], "stop"))

    def test_the_forced_first_token(self):
        prompt = self.golden.inputs[1]
        free = choice_of(self.server.complete(**body_of(prompt, 6)))
        forced = choice_of(self.server.complete(**body_of(prompt, 6, forced_bos_token_id=77)))
        self.assertEqual(forced["token_ids"][0], 77)
        self.assertEqual(len(forced["token_ids"]), 6)
        self.assertNotEqual(forced["token_ids"][1:], free["token_ids"][1:])
        # Its log-probability is the model's.
        self.assertLess(forced["logprobs"]["token_logprobs"][0], free["logprobs"]["token_logprobs"][0])
        self.refused("forced_bos_token_id", prompt=prompt, forced_bos_token_id=256)

    def test_the_forced_first_token_of_the_checkpoint(self):
        expected = choice_of(self.server.complete(**body_of(self.golden.inputs[1], 6, forced_bos_token_id=77)))
        for name in ("config.json", "generation_config.json"):
            with self.subTest(file=name), tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "model"
                shutil.copytree(self.golden.dir, copy)
                fields = json.loads((copy / name).read_text()) if (copy / name).exists() else {}
                (copy / name).write_text(json.dumps({**fields, "forced_bos_token_id": 77}))
                with Server(copy, *SERVER_OPTIONS) as server:
                    self.assertEqual(choice_of(server.complete(**body_of(self.golden.inputs[1], 6))), expected)
                    other = choice_of(server.complete(**body_of(self.golden.inputs[1], 6, forced_bos_token_id=78)))
                    self.assertEqual(other["token_ids"][0], 78)

    def test_what_an_encoder_cannot_do(self):
        self.assertIn("encoder", self.refused("echo", prompt=[5, 6], echo=True))
        self.assertIn("encoder", self.refused("echo", prompt=[5, 6], echo=True, logprobs=1, max_tokens=0))

    def test_prompt_and_answer_have_a_length_each(self):
        limit = self.golden.config["max_position_embeddings"]
        long = [5 + i % 200 for i in range(limit)]
        answer = self.server.complete(**body_of(long, limit - 1))
        self.assertEqual(answer["usage"], {"prompt_tokens": limit, "completion_tokens": limit - 1, "total_tokens": 2 * limit - 1})
        self.refused("prompt", prompt=[*long, 5], max_tokens=1)
        self.refused("max_tokens", prompt=[5], max_tokens=limit)

    def test_relative_positions_have_no_end(self):
        golden = Golden("switch_transformers")
        long = [5 + i * 7 % 200 for i in range(900)]
        with Server(golden.dir, *SERVER_OPTIONS, "--max-model-len", 1000) as server:
            alone = choice_of(server.complete(**body_of(long, 40)))
            together = server.complete_together([body_of(long, 40), body_of(golden.inputs[1], 16), body_of(long, 40)])
            self.assertEqual([choice_of(answer)["token_ids"] for answer in together], [alone["token_ids"], golden.greedy[1], alone["token_ids"]])
        with Server(golden.dir, *SERVER_OPTIONS, "--max-model-len", 1000, "--max-num-batched-tokens", 64) as server:
            self.assertEqual(choice_of(server.complete(**body_of(long, 40))), alone)
        with Server(golden.dir, *SERVER_OPTIONS) as server:
            self.refused("prompt", server, prompt=long, max_tokens=1)

    def test_clients_that_leave_while_their_prompt_is_encoded(self):
        golden = Golden("switch_transformers")
        long = [5 + i * 7 % 200 for i in range(900)]
        with Server(golden.dir, *SERVER_OPTIONS, "--max-model-len", 1000, "--max-num-batched-tokens", 8) as server:
            expected = choice_of(server.complete(**body_of(golden.inputs[1], 16)))
            for _ in range(10):
                connection = server.connect()
                connection.request("POST", "/v1/completions", json.dumps(body_of(long, 5)), {"Content-Type": "application/json"})
                connection.close()
            self.assertEqual(choice_of(server.complete(**body_of(golden.inputs[1], 16))), expected)
            self.assertEqual(server.metric("requests_failed_total"), 0)


if __name__ == "__main__":
    unittest.main()
