"""Model directories that must be refused with exit code 2 and one line naming what is wrong: by `serve` on stderr, by `info`
in its description."""
import json
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import EXPERTMESH, MODEL_GOLDENS, Server, read_raw_safetensors, write_safetensors

SINGLE, SHARDED = MODEL_GOLDENS / "mixtral", MODEL_GOLDENS / "mixtral-window"
WEIGHTS = "model.safetensors"
SECONDS = 30


def copy_of(source, folder):
    for path in source.iterdir():
        if not path.name.startswith("golden"):
            shutil.copyfile(path, folder / path.name)
    return folder


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder, edit):
    tensors = read_raw_safetensors(folder / WEIGHTS)
    edit(tensors)
    write_safetensors(folder / WEIGHTS, tensors)


def edit_header(folder, edit):
    """edit(header) -> the header's new bytes; the tensors' bytes stay."""
    data = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    text = edit(json.loads(data[8:start]))
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


class BadModelTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)

    def run_command(self, *arguments):
        return subprocess.run([EXPERTMESH, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=SECONDS, check=False)

    def assert_refused(self, *words, folder=None):
        folder = folder or self.dir
        for command in (("serve", folder, "--port", 0), ("serve", folder, "--port", 0, "--workers", 2), ("info", folder)):
            with self.subTest(command=command[0], workers=command[-1]):
                done = self.run_command(*command)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertNotIn("ready", done.stdout)
                if command[0] == "info":
                    errors = [line for line in done.stdout.splitlines() if line.startswith("would be refused")]
                else:
                    errors = [line for line in done.stderr.splitlines() if not line.startswith("expertmesh: running as root")]
                self.assertEqual(len(errors), 1, done.stderr)
                for word in words:
                    self.assertIn(word, errors[0])

    def test_missing_folder(self):
        self.assert_refused("nowhere", folder=self.dir / "nowhere")

    def test_no_config(self):
        (copy_of(SINGLE, self.dir) / "config.json").unlink()
        self.assert_refused("config.json")

    def test_config_is_no_json(self):
        (copy_of(SINGLE, self.dir) / "config.json").write_text('{"model_type": ')
        self.assert_refused("config.json")

    def test_config_field_of_the_wrong_type(self):
        edit_config(copy_of(SINGLE, self.dir), hidden_size="large")
        self.assert_refused("hidden_size")

    def test_unknown_family(self):
        edit_config(copy_of(SINGLE, self.dir), model_type="perceptron")
        self.assert_refused("model_type", "perceptron")

    def test_unknown_scoring_function(self):
        edit_config(copy_of(SINGLE, self.dir), scoring_func="dice")
        self.assert_refused("scoring_func")

    def test_no_weights(self):
        (copy_of(SINGLE, self.dir) / WEIGHTS).unlink()
        self.assert_refused(WEIGHTS)

    def test_missing_shard(self):
        (copy_of(SHARDED, self.dir) / "model-00002-of-00003.safetensors").unlink()
        self.assert_refused("model-00002-of-00003.safetensors")

    def test_truncated_file(self):
        path = copy_of(SINGLE, self.dir) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1000])
        self.assert_refused(WEIGHTS)

    def test_truncated_header(self):
        path = copy_of(SINGLE, self.dir) / WEIGHTS
        path.write_bytes(path.read_bytes()[:100])
        self.assert_refused(WEIGHTS)

    def test_oversized_header(self):
        path = copy_of(SINGLE, self.dir) / WEIGHTS
        path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
        self.assert_refused(WEIGHTS)

    def test_wrong_shape(self):
        name = "model.norm.weight"

        def halve(tensors):
            dtype, shape, raw = tensors[name]
            tensors[name] = (dtype, [shape[0] // 2], raw[:len(raw) // 2])

        edit_tensors(copy_of(SINGLE, self.dir), halve)
        self.assert_refused(WEIGHTS, name)

    def test_wrong_expert_shape(self):
        name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"

        def transpose(tensors):
            dtype, shape, raw = tensors[name]
            self.assertNotEqual(shape, shape[::-1])
            tensors[name] = (dtype, shape[::-1], raw)

        edit_tensors(copy_of(SINGLE, self.dir), transpose)
        self.assert_refused(WEIGHTS, name)

    def test_missing_tensor(self):
        name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
        edit_tensors(copy_of(SINGLE, self.dir), lambda tensors: tensors.pop(name))
        self.assert_refused(name)

    def test_unexpected_tensor(self):
        name = "model.layers.0.mystery.weight"
        edit_tensors(copy_of(SINGLE, self.dir), lambda tensors: tensors.update({name: ("F32", [2], bytes(8))}))
        self.assert_refused(WEIGHTS, name)

    def test_wrong_dtype(self):
        name = "model.norm.weight"

        def to_integers(tensors):
            _, shape, _ = tensors[name]
            tensors[name] = ("I32", shape, bytes(4 * shape[0]))

        edit_tensors(copy_of(SINGLE, self.dir), to_integers)
        self.assert_refused(WEIGHTS, name)

    def test_overlapping_tensors(self):
        name = "model.norm.weight"

        def overlap(header):
            begin, end = header[name]["data_offsets"]
            shift = 4 if begin == 0 else -4
            header[name]["data_offsets"] = [begin + shift, end + shift]
            return json.dumps(header).encode()

        edit_header(copy_of(SINGLE, self.dir), overlap)
        self.assert_refused(WEIGHTS)

    def test_header_is_no_json(self):
        edit_header(copy_of(SINGLE, self.dir), lambda _: b'{"model.norm.weight": ')
        self.assert_refused(WEIGHTS)

    def test_weights_that_are_no_numbers_give_no_answer(self):
        name = "model.layers.0.self_attn.v_proj.weight"

        def spoil(tensors):
            dtype, shape, raw = tensors[name]
            tensors[name] = (dtype, shape, b"\xc0\x7f" * (len(raw) // 2))  # bfloat16 NaN

        edit_tensors(copy_of(SINGLE, self.dir), spoil)
        with Server(self.dir) as server:
            for temperature in (0, 1):
                status, answer = server.post("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": temperature})
                self.assertEqual((status, answer["error"]["code"]), (500, "not_a_number"))
            self.assertEqual(server.metric("requests_failed_total"), 2)

    def test_bad_arguments(self):
        for arguments in ((), ("serve",), ("serve", SINGLE, "--workers", "many"), ("serve", SINGLE, "--no-such-option"), ("dance",),
                          ("info", SINGLE, "--dtype", "int3"), ("serve", SINGLE, "--port", 70000)):
            with self.subTest(arguments=arguments):
                done = self.run_command(*arguments)
                self.assertEqual(done.returncode, 2)
                self.assertTrue(done.stderr.strip())

    def test_kv_cache_too_small_for_one_sequence(self):
        window = MODEL_GOLDENS / "mixtral-window"  # 3 layers of 2 heads of 16, keys and values: 12 KiB a block
        done = self.run_command("serve", window, "--port", 0, "--dtype", "float32", "--max-num-batched-tokens", 16,
                                "--kv-cache-memory", 3 * 12288 - 1)
        self.assertEqual(done.returncode, 2, done.stderr)
        for words in ("--kv-cache-memory", "--max-model-len", "512 tokens"):
            self.assertIn(words, done.stderr)

    def test_good_model_is_described(self):
        done = self.run_command("info", copy_of(SINGLE, self.dir))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("mixtral", done.stdout)
        for arguments in (("--help",), ("serve", "--help"), ("info", "--help"), ("--version",)):
            done = self.run_command(*arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertTrue(done.stdout.strip())


if __name__ == "__main__":
    unittest.main()
