"""`expertmesh render` as users run it: every golden template by its file, and a directory with several named templates."""
import json
import subprocess
import sys
import tempfile
import unittest
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY

TEMPLATES = REPOSITORY / "tests" / "goldens" / "text" / "templates"


class Renderer:
    """A running `expertmesh render`, asked row by row: each answer must come before the next row is sent."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([EXPERTMESH, "render", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait() == 0

    def ask(self, line):
        self.process.stdin.write((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class RenderTest(unittest.TestCase):
    def test_golden_cases(self):
        golden = json.loads((TEMPLATES / "golden.json").read_text())
        cases = defaultdict(list)
        for case in golden["cases"]:
            cases[case["template"]].append(case)
        for template, of_template in cases.items():
            with self.subTest(template), Renderer("--template", TEMPLATES / f"{template}.jinja") as renderer:
                for case in of_template:
                    row = {key: case[key] for key in ("messages", "tools", "documents", "add_generation_prompt")}
                    answer = renderer.ask({**golden["variables"], **row, **case["kwargs"], "now": golden["now"]})
                    if "rendered" in case:
                        self.assertEqual(answer, {"text": case["rendered"]}, case["conversation"])
                    else:
                        self.assertEqual(list(answer), ["error"], case["conversation"])

    def test_a_full_disk_is_no_answer(self):
        row = json.dumps({"messages": [], "text": ""})
        for command in (("render", "--template", TEMPLATES / "chatml.jinja"), ("tokenize", DEMO_MODEL), ("info", DEMO_MODEL)):
            with self.subTest(command[0]), open("/dev/full", "wb") as full:
                ended = subprocess.run([EXPERTMESH, *map(str, command)], input=row + "\n", stdout=full, stderr=subprocess.PIPE, text=True,
                                       timeout=60, check=False)
                self.assertEqual((ended.returncode, ended.stderr), (1, "expertmesh: standard output cannot be written\n"))

    def test_directory(self):
        with tempfile.TemporaryDirectory() as folder:
            config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": [
                {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
                {"name": "tool_use", "template": "{{ tools|length }}{{ eos_token }}"}]}
            Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
            with Renderer(folder) as renderer:
                row = {"messages": [{"role": "user", "content": "h\u00e9 \U0001F98A"}]}
                self.assertEqual(renderer.ask(row), {"text": "<s>h\u00e9 \U0001F98A"})
                self.assertEqual(renderer.ask({**row, "tools": [{}]}), {"text": "1</s>"})
                self.assertEqual(renderer.ask({**row, "bos_token": "mine "}), {"text": "mine h\u00e9 \U0001F98A"})
                for wrong in ("", "no", "[]", '{"messages": 1}', "[" * 100000):
                    self.assertEqual(list(renderer.ask(wrong)), ["error"], wrong[:20])
                self.assertEqual(renderer.ask(row), {"text": "<s>h\u00e9 \U0001F98A"})

    def test_refusals(self):
        for arguments in ([], ["/nonexistent"], ["--template", "/nonexistent"], [TEMPLATES, "--template", TEMPLATES / "qwen3.jinja"]):
            done = subprocess.run([EXPERTMESH, "render", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertTrue(done.stderr.strip(), arguments)


if __name__ == "__main__":
    unittest.main()
