"""Tool calls and reasoning through a whole server, with a model that always calls."""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import DEMO_MODEL, EXPERTMESH, Server
from scripted_model import TOOL_SCRIPTS, TOOL_TEMPLATE, TOOLS, write_scripted_model

QUESTION = {"role": "user", "content": "Is it sunny in Bonn?"}
CHAT = "/v1/chat/completions"


class ToolsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.model = folder.name
        write_scripted_model(folder.name, TOOL_SCRIPTS, TOOL_TEMPLATE)
        cls.server = Server(folder.name)
        cls.addClassCleanup(cls.server.close)

    def ask(self, server=None, **body):
        status, answer = (server or self.server).post(CHAT, {"messages": [QUESTION], "temperature": 0, "max_tokens": 50, **body})
        self.assertEqual(status, 200, answer)
        return answer["choices"][0]

    def test_conversation(self):
        choice = self.ask(tools=TOOLS)
        message = choice["message"]
        self.assertEqual((choice["finish_reason"], message["content"]), ("tool_calls", None))
        self.assertEqual(message["reasoning_content"], "I need the weather.")
        call, = message["tool_calls"]
        self.assertEqual(call["function"]["name"], "get_weather")
        self.assertEqual(json.loads(call["function"]["arguments"]), {"city": "Bonn"})
        outcome = {"role": "tool", "tool_call_id": call["id"], "content": "yes"}
        choice = self.ask(tools=TOOLS, messages=[QUESTION, message, outcome])
        self.assertEqual((choice["finish_reason"], choice["message"]["content"]), ("stop", "It is sunny."))

    def test_without_tools(self):
        for body in ({}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}):
            choice = self.ask(**body)
            self.assertEqual(choice["message"], {"role": "assistant", "content": "Hello there."})

    def test_parsers_may_be_named_and_are_shown(self):
        status, cluster = self.server.get("/v1/cluster")
        self.assertEqual((status, cluster["answers"]), (200, {"tool_call_parser": "hermes", "reasoning_parser": "deepseek_r1"}))
        with Server(self.model, "--tool-call-parser", "mistral", "--reasoning-parser", "none") as server:
            content = self.ask(server, tools=TOOLS)["message"]["content"]
            self.assertEqual(content, "".join(TOOL_SCRIPTS["<|call|>"]))
            self.assertIn("tool calls as mistral, reasoning as none", server.log())
        done = subprocess.run([EXPERTMESH, "serve", DEMO_MODEL, "--port", "0", "--enable-auto-tool-choice"], capture_output=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"--tool-call-parser", done.stderr)


if __name__ == "__main__":
    unittest.main()
