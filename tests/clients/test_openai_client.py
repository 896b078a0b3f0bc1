"""OpenAI's own Python client, unmodified, against the demo model, and one that calls tools: every call it has for what this
server offers."""
import json
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from harness import DEMO_MODEL, Server
from scripted_model import TOOL_SCRIPTS, TOOL_TEMPLATE, TOOLS, write_scripted_model

PROMPT = "Once upon a time there was"
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
KEY = "sk-of-the-test"


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        keys = Path(folder.name, "keys")
        keys.write_text(KEY + "\n")
        cls.server = Server(DEMO_MODEL, "--api-key-file", keys, "--workers", 2)
        cls.addClassCleanup(cls.server.close)
        cls.client = cls.make_client()

    @classmethod
    def make_client(cls, key=KEY):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key=key, max_retries=0, timeout=60)

    def complete(self, **body):
        return self.client.completions.create(model="demo-model", **body)

    def chat(self, **body):
        return self.client.chat.completions.create(model="demo-model", messages=MESSAGES, **body)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["demo-model"])
        self.assertEqual(self.client.models.retrieve("demo-model").id, "demo-model")

    def test_completion_with_everything(self):
        answer = self.complete(prompt=[PROMPT, "The wolf"], n=2, best_of=3, max_tokens=10, temperature=0.8, top_p=0.9, seed=3,
                               presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"5": 1}, logprobs=2, stop=["qqq"], user="me",
                               extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 3})
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        for choice in answer.choices:
            self.assertEqual(len(choice.logprobs.tokens), len(choice.logprobs.token_logprobs))
            self.assertIn(choice.finish_reason, ("length", "stop"))

    def test_seed(self):
        texts = [self.complete(prompt=PROMPT, max_tokens=20, seed=seed).choices[0].text for seed in (7, 7, 8)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_echo_logprobs(self):
        logprobs = self.complete(prompt=PROMPT, max_tokens=4, temperature=0, echo=True, logprobs=1).choices[0].logprobs
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertEqual("".join(logprobs.tokens[:6]), PROMPT)
        self.assertEqual(len(logprobs.tokens), 10)

    def test_streams(self):
        whole = self.complete(prompt=PROMPT, max_tokens=20, temperature=0).choices[0].text
        chunks = list(self.complete(prompt=PROMPT, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(choice.text for chunk in chunks for choice in chunk.choices), whole)
        self.assertEqual(chunks[-1].usage.completion_tokens, 20)
        self.assertEqual({chunk.usage for chunk in chunks[:-1]}, {None})

        whole = self.chat(max_completion_tokens=20, temperature=0)
        chunks = list(self.chat(max_completion_tokens=20, temperature=0, stream=True, n=2))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        for index in (0, 1):
            pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index]
            self.assertEqual("".join(pieces), whole.choices[0].message.content)

    def test_chat_stream_helper(self):
        with self.client.chat.completions.stream(model="demo-model", messages=MESSAGES, max_tokens=200, temperature=0, logprobs=True,
                                                 top_logprobs=2, stop="o") as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        whole = self.chat(max_tokens=200, temperature=0, stop="o", logprobs=True)
        self.assertEqual(final.choices[0].message.content, whole.choices[0].message.content)
        self.assertEqual(len(final.choices[0].logprobs.content), len(whole.choices[0].logprobs.content))

    def test_errors_are_the_clients_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(prompt=PROMPT, temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.AuthenticationError):
            self.make_client("wrong").models.list()
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model="other", prompt=PROMPT)
        with self.assertRaises(openai.BadRequestError):
            self.chat(response_format={"type": "json_object"})

    def test_full_queue_is_a_rate_limit_error(self):
        with Server(DEMO_MODEL, "--max-num-seqs", 1, "--max-queued-requests", 1) as server:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any", max_retries=0, timeout=60)
            refused = []

            def ask(_):
                try:
                    client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=500, extra_body={"ignore_eos": True})
                except openai.RateLimitError as error:
                    refused.append(error)

            with ThreadPoolExecutor(12) as pool:  # one runs, one waits
                list(pool.map(ask, range(12)))
            self.assertTrue(refused)
            self.assertEqual(refused[0].code, "queue_full")


class OpenAiToolsTest(unittest.TestCase):
    QUESTION = {"role": "user", "content": "Is it sunny in Bonn?"}

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        write_scripted_model(folder.name, TOOL_SCRIPTS, TOOL_TEMPLATE)
        cls.server = Server(folder.name, "--served-model-name", "caller")
        cls.addClassCleanup(cls.server.close)
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key="any", max_retries=0, timeout=60)

    def arguments(self, **more):
        return {"model": "caller", "messages": [self.QUESTION], "temperature": 0, "max_tokens": 50, "tools": TOOLS, **more}

    def check(self, message):
        self.assertEqual(message.reasoning_content, "I need the weather.")
        call, = message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
        self.assertEqual(json.loads(call.function.arguments), {"city": "Bonn"})
        return call

    def test_whole(self):
        choice = self.client.chat.completions.create(**self.arguments()).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertIsNone(choice.message.content)
        call = self.check(choice.message)
        outcome = {"role": "tool", "tool_call_id": call.id, "content": "yes"}
        messages = [self.QUESTION, choice.message.model_dump(exclude_none=True), outcome]
        choice = self.client.chat.completions.create(**self.arguments(messages=messages)).choices[0]
        self.assertEqual((choice.finish_reason, choice.message.content), ("stop", "It is sunny."))

    def test_chunks(self):
        chunks = list(self.client.chat.completions.create(**self.arguments(stream=True)))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        self.assertEqual("".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas), "I need the weather.")
        self.assertEqual("".join(delta.content or "" for delta in deltas), "")
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        self.assertEqual({call.index for call in calls}, {0})
        self.assertEqual((calls[0].type, calls[0].function.name), ("function", "get_weather"))
        self.assertTrue(calls[0].id)
        self.assertEqual(json.loads("".join(call.function.arguments for call in calls)), {"city": "Bonn"})
        self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")

    def test_stream_helper(self):
        with self.client.chat.completions.stream(**self.arguments()) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            self.assertEqual([event.name for event in done], ["get_weather"])
            final = stream.get_final_completion().choices[0]
        self.assertEqual(final.finish_reason, "tool_calls")
        self.assertEqual(json.loads(final.message.tool_calls[0].function.arguments), {"city": "Bonn"})

    def test_what_cannot_be_is_refused(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.client.chat.completions.create(**self.arguments(tool_choice=choice))
            self.assertEqual(caught.exception.param, "tool_choice")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(**self.arguments(tools=[{"type": "function", "function": {}}]))
        self.assertEqual(caught.exception.param, "tools[0].function.name")


if __name__ == "__main__":
    unittest.main()
