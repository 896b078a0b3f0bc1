"""EleutherAI's evaluation harness, unmodified: its local-completions client gets the log-likelihoods the engine computes."""
import os
import sys
import unittest
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from harness import DEMO_MODEL, Server

PAIRS = [("Once upon a time there was", " a king"), ("The fox said", " to the crow"), ("Once upon a time there was", " xyzzy"),
         ("The old woman went into the dark", " forest, and there she saw a little house.")]


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=index) for index, pair in enumerate(arguments)]


class LmEvalTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(DEMO_MODEL, "--workers", 2, "--dtype", "float32")
        cls.addClassCleanup(cls.server.close)
        cls.model = LocalCompletionsAPI(model="demo-model", base_url=f"http://127.0.0.1:{cls.server.port}/v1/completions",
                                        tokenizer=str(DEMO_MODEL), tokenizer_backend="huggingface", tokenized_requests=True,
                                        batch_size=2, max_length=512, num_concurrent=1)

    def tokens(self, text):
        return self.server.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"]

    def own_loglikelihood(self, context, continuation):
        """From the engine's log-probabilities of generated positions, one token at a time: another way through the model."""
        ids, total, greedy = self.tokens(context), 0.0, True
        for token in self.tokens(context + continuation)[len(ids):]:
            answer = self.server.complete(prompt=ids, max_tokens=1, temperature=0, logprobs=20, logit_bias={str(token): 100},
                                          return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
            total += answer["top_logprobs"][0][f"token_id:{token}"]
            best = self.server.complete(prompt=ids, max_tokens=1, temperature=0, return_token_ids=True)["choices"][0]["token_ids"][0]
            greedy = greedy and best == token
            ids = ids + [token]
        return total, greedy

    def test_loglikelihood(self):
        results = self.model.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
        for pair, (value, greedy) in zip(PAIRS, results):
            expected, expected_greedy = self.own_loglikelihood(*pair)
            self.assertAlmostEqual(value, expected, places=4, msg=pair)
            self.assertEqual(greedy, expected_greedy, pair)

    def test_generate_until(self):
        arguments = {"until": ["."], "max_gen_toks": 40, "temperature": 0, "do_sample": False}
        results = self.model.generate_until(instances("generate_until", [(context, arguments) for context, _ in PAIRS[:2]]),
                                            disable_tqdm=True)
        for (context, _), text in zip(PAIRS, results):
            expected = self.server.complete(prompt=self.tokens(context), max_tokens=40, temperature=0, stop=["."])["choices"][0]["text"]
            self.assertEqual(text, expected)


if __name__ == "__main__":
    unittest.main()
