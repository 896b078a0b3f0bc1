"""The published configurations in launch/bench/configs: what `info` says of each, and two layers of real width of each with
dummy weights, end to end over HTTP. Where that takes more than EM_PUBLISHED_GB (default 0.25; the documented long form takes
8), the vocabulary is cut first, then experts are left out, down to what routing needs."""
import json
import os
import re
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import EXPERTMESH, REPOSITORY, Server

CONFIGS = REPOSITORY / "launch" / "bench" / "configs"
COUNTS = {row["config"]: row for row in json.loads((CONFIGS / "parameter_counts.json").read_text())}
MOST_BYTES = float(os.environ.get("EM_PUBLISHED_GB", "0.25")) * 1e9
SMALL_VOCABULARY = 8192
EXPERT_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
LAYERS = 2


def model_directory(folder, config):
    """A directory with nothing but this config.json."""
    (Path(folder) / "config.json").write_text(json.dumps(config))
    return folder


def info(folder, *options):
    done = subprocess.run([EXPERTMESH, "info", str(folder), *map(str, options)], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def bytes_in(text):
    """-> bytes of all weights: the coordinator's and its one worker's"""
    units = {"MB": 1e6, "GB": 1e9}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"^(?:coordinator|worker \d+) +([\d.]+) (MB|GB)", text, re.M))


def reduced(config):
    """Two layers of it, the second one with experts."""
    if config.get("is_encoder_decoder"):
        two = {field: LAYERS for field in ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers") if field in config}
        sparse = {field: 1 for field in ("num_sparse_encoder_layers", "num_sparse_decoder_layers") if field in config}
        return config | two | sparse | {field: LAYERS for field in ("encoder_sparse_step", "decoder_sparse_step") if field in config}
    config = dict(config, num_hidden_layers=LAYERS)
    for field in ("layer_types", "no_rope_layers", "mlp_only_layers"):
        if config.get(field):
            config[field] = config[field][:LAYERS]
    if "first_k_dense_replace" in config:
        config["first_k_dense_replace"] = 1
    if "moe_layer_end_index" in config:
        config["moe_layer_end_index"] = LAYERS - 1
    return config


def smaller(config):
    """The next smaller one, or None."""
    if config["vocab_size"] > SMALL_VOCABULARY:
        return dict(config, vocab_size=SMALL_VOCABULARY)
    field = next(field for field in EXPERT_FIELDS if field in config)
    chosen = config.get("num_experts_per_tok", config.get("moe_k", 2))
    groups, of_groups = config.get("n_group") or 1, config.get("topk_group") or 1
    # A group's score is that of its best two, and the chosen ones are in some of the groups.
    least = chosen + 1 if groups == 1 else groups * max(2, -(-chosen // of_groups))
    fewer = max(least, config[field] // 2)
    return dict(config, **{field: fewer}) if fewer < config[field] else None


def names():
    return sorted(COUNTS)


class InfoTest(unittest.TestCase):
    def test_parameters_are_as_counted(self):
        for name in names():
            with self.subTest(config=name), tempfile.TemporaryDirectory() as folder:
                text = info(model_directory(folder, json.loads((CONFIGS / f"{name}.json").read_text())), "--workers", 4)
                total, active = map(float, re.search(r"^parameters +([\d.]+) B in all, ([\d.]+) B active$", text, re.M).groups())
                row = COUNTS[name]
                # 0.1%, and the last digit shown
                self.assertAlmostEqual(total, row["parameters_b"], delta=max(0.001 * row["parameters_b"], 0.005))
                self.assertAlmostEqual(active, row["active_b"], delta=max(0.001 * row["active_b"], 0.005))
                self.assertEqual(len(re.findall(r"^worker \d+ +[\d.]+ [GM]B of experts$", text, re.M)), 4, text)


def answers(name):
    """-> what its two layers say, asked alone; asked twice at the same time"""
    config = reduced(json.loads((CONFIGS / f"{name}.json").read_text()))
    with tempfile.TemporaryDirectory() as folder:
        while bytes_in(info(model_directory(folder, config))) > MOST_BYTES and (cut := smaller(config)):
            config = cut
        model_directory(folder, config)
        options = ("--load-format", "dummy", "--max-model-len", 256, "--max-num-seqs", 2, "--max-num-batched-tokens", 16)
        body = {"prompt": list(range(100, 120)), "max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 1,
                "return_token_ids": True}
        with Server(folder, *options) as server:
            return server.complete(**body)["choices"][0], [answer["choices"][0] for answer in server.complete_together([body] * 2)]


class DummyTest(unittest.TestCase):
    def test_two_layers_of_each_answer(self):
        with ThreadPoolExecutor(2) as pool:  # weights are made on one thread
            starts = {name: pool.submit(answers, name) for name in names()}
            for name, start in starts.items():
                with self.subTest(config=name):
                    alone, together = start.result()
                    self.assertEqual(len(alone["token_ids"]), 6)
                    self.assertTrue(all(-50 < x <= 0 for x in alone["logprobs"]["token_logprobs"]), alone["logprobs"])
                    self.assertEqual(together, [alone] * 2)


if __name__ == "__main__":
    unittest.main()
