"""The HTTP API on the demo model: what each endpoint answers, what it refuses, and that its books balance."""
import json
import socket
import subprocess
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, MODEL_GOLDENS, Server, wait_until

PROMPT = "Once upon a time there was"
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MAX_BODY = 64 << 10

# (path, body, param named by the error)
BAD_REQUESTS = [
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": 5}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [4096]}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, "two"]}, "prompt"),
    (COMPLETIONS, {"prompt": [5] * 600}, "prompt"),
    (COMPLETIONS, {"prompt": PROMPT, "max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "max_tokens": "many"}, "max_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"prompt": PROMPT, "temperature": "hot"}, "temperature"),
    (COMPLETIONS, {"prompt": PROMPT, "top_p": 0}, "top_p"),
    (COMPLETIONS, {"prompt": PROMPT, "top_p": 1.5}, "top_p"),
    (COMPLETIONS, {"prompt": PROMPT, "seed": "x"}, "seed"),
    (COMPLETIONS, {"prompt": PROMPT, "stop": 5}, "stop"),
    (COMPLETIONS, {"prompt": PROMPT, "stop": ["a", 1]}, "stop"),
    (COMPLETIONS, {"prompt": PROMPT, "logprobs": -1}, "logprobs"),
    (COMPLETIONS, {"prompt": PROMPT, "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": PROMPT, "echo": "yes"}, "echo"),
    (COMPLETIONS, {"prompt": PROMPT, "n": 0}, "n"),
    (COMPLETIONS, {"prompt": PROMPT, "n": 1000}, "n"),
    (COMPLETIONS, {"prompt": [PROMPT, ""]}, "prompt"),
    (COMPLETIONS, {"prompt": [PROMPT, [1]], "n": 200}, "n"),
    (COMPLETIONS, {"prompt": [[1], [4096]]}, "prompt"),
    (COMPLETIONS, {"prompt": PROMPT, "n": 2, "best_of": 1}, "best_of"),
    (COMPLETIONS, {"prompt": PROMPT, "best_of": 2, "stream": True}, "best_of"),
    (COMPLETIONS, {"prompt": PROMPT, "top_k": -2}, "top_k"),
    (COMPLETIONS, {"prompt": PROMPT, "top_k": "all"}, "top_k"),
    (COMPLETIONS, {"prompt": PROMPT, "min_p": 2}, "min_p"),
    (COMPLETIONS, {"prompt": PROMPT, "presence_penalty": 3}, "presence_penalty"),
    (COMPLETIONS, {"prompt": PROMPT, "frequency_penalty": -3}, "frequency_penalty"),
    (COMPLETIONS, {"prompt": PROMPT, "repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"prompt": PROMPT, "logit_bias": {"4096": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": PROMPT, "logit_bias": {"7": 101}}, "logit_bias"),
    (COMPLETIONS, {"prompt": PROMPT, "logit_bias": [7]}, "logit_bias"),
    (COMPLETIONS, {"prompt": PROMPT, "min_tokens": -1}, "min_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "min_tokens": 17}, "min_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "stop_token_ids": [4096]}, "stop_token_ids"),
    (COMPLETIONS, {"prompt": PROMPT, "stop_token_ids": "7"}, "stop_token_ids"),
    (COMPLETIONS, {"prompt": PROMPT, "stop": [""]}, "stop"),
    (COMPLETIONS, {"prompt": PROMPT, "suffix": "end"}, "suffix"),
    (COMPLETIONS, {"prompt": PROMPT, "response_format": {"type": "json_object"}}, "response_format"),
    (COMPLETIONS, {"prompt": PROMPT, "stream_options": {"include_usage": True}}, "stream_options"),
    (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 508}, "max_tokens"),
    (COMPLETIONS, {"prompt": PROMPT, "stream": "x"}, "stream"),
    (COMPLETIONS, {"prompt": PROMPT, "ignore_eos": 3}, "ignore_eos"),
    (COMPLETIONS, {"prompt": PROMPT, "return_routed_experts": True}, "return_routed_experts"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"messages": MESSAGES, "max_tokens": -1}, "max_tokens"),
    (CHAT, {"messages": MESSAGES, "max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"messages": MESSAGES, "top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"messages": MESSAGES, "n": 0}, "n"),
    (CHAT, {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, {"messages": MESSAGES, "temperature": 2.5}, "temperature"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    (CHAT, {"messages": MESSAGES, "chat_template_kwargs": 1}, "chat_template_kwargs"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": 1}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [4096]}, "tokens"),
]


class ApiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(DEMO_MODEL, "--max-body-size", MAX_BODY)
        cls.addClassCleanup(cls.server.close)

    def assert_error(self, status, answer, expected_status, param=None):
        self.assertEqual(status, expected_status, answer)
        error = answer["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertTrue(error["message"])
        if param:
            self.assertEqual(error["param"], param, error["message"])

    # ---- what it answers

    def test_models(self):
        status, answer = self.server.get("/v1/models")
        self.assertEqual(status, 200)
        self.assertEqual(answer["object"], "list")
        self.assertEqual([model["id"] for model in answer["data"]], ["demo-model"])

    def test_completion(self):
        answer = self.server.complete(model="demo-model", prompt=PROMPT, max_tokens=8, temperature=0)
        self.assertEqual(answer["object"], "text_completion")
        self.assertEqual(answer["model"], "demo-model")
        self.assertTrue(answer["id"].startswith("cmpl-"))
        choice = answer["choices"][0]
        self.assertEqual((choice["index"], choice["finish_reason"], choice["logprobs"]), (0, "length", None))
        self.assertTrue(" a king who had a daughter".startswith(choice["text"][:10]))
        self.assertEqual(answer["usage"], {**answer["usage"], "prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14})

    def test_chat(self):
        answer = self.server.chat(model="demo-model", messages=MESSAGES, max_tokens=8, temperature=0)
        self.assertEqual(answer["object"], "chat.completion")
        choice = answer["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertTrue(choice["message"]["content"])
        self.assertEqual(answer["usage"]["completion_tokens"], 8)

    def test_seed_reproduces_and_another_seed_differs(self):
        body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 1, "top_p": 0.95}
        texts = [self.server.complete(seed=seed, **body)["choices"][0]["text"] for seed in (1, 1, 2)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])
        unseeded = {self.server.complete(**body)["choices"][0]["text"] for _ in range(3)}
        self.assertGreater(len(unseeded), 1)

    def test_stop_string_ends_the_text_before_it(self):
        body = {"prompt": PROMPT, "max_tokens": 64, "temperature": 0}
        whole = self.server.complete(**body)["choices"][0]["text"]
        stop = whole[20:26]
        for stops in (stop, ["no such text", stop]):
            choice = self.server.complete(stop=stops, **body)["choices"][0]
            self.assertEqual(choice["text"], whole[:whole.index(stop)])
            self.assertEqual(choice["finish_reason"], "stop")
        with self.server.stream(COMPLETIONS, {"stop": stop, **body}) as events:
            pieces = [choice for event in events for choice in event["choices"]]
        self.assertEqual("".join(piece["text"] for piece in pieces), whole[:whole.index(stop)])
        self.assertEqual(pieces[-1]["finish_reason"], "stop")

    def test_logprobs(self):
        logprobs = self.server.complete(prompt=PROMPT, max_tokens=5, temperature=0, logprobs=3)["choices"][0]["logprobs"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            self.assertEqual(len(logprobs[name]), 5, name)
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertEqual(len(top), 3)
            self.assertEqual(top[token], logprob)
            self.assertEqual(max(top.values()), logprob)

    def test_chat_logprobs(self):
        answer = self.server.chat(messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
        content = answer["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 5)
        for entry in content:
            self.assertEqual(bytes(entry["bytes"]).decode(errors="replace"), entry["token"])
            self.assertEqual(len(entry["top_logprobs"]), 3)
            self.assertEqual(entry["top_logprobs"][0]["logprob"], entry["logprob"])

    def test_echo(self):
        body = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0}
        new = self.server.complete(**body)["choices"][0]["text"]
        choice = self.server.complete(echo=True, logprobs=1, **body)["choices"][0]
        self.assertEqual(choice["text"], PROMPT + new)
        self.assertEqual(len(choice["logprobs"]["tokens"]), 6 + 5)
        self.assertEqual("".join(choice["logprobs"]["tokens"]), PROMPT + new)
        self.assertIsNone(choice["logprobs"]["token_logprobs"][0])
        self.assertEqual(self.server.complete(prompt=PROMPT, max_tokens=0, echo=True)["choices"][0]["text"], PROMPT)

    def test_stream_events(self):
        body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "stream_options": {"include_usage": True}}
        with self.server.stream(COMPLETIONS, body) as events:
            events = list(events)
        self.assertEqual(len({event["id"] for event in events}), 1)
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual(events[-1]["usage"]["completion_tokens"], 6)
        reasons = [choice["finish_reason"] for event in events[:-1] for choice in event["choices"]]
        self.assertEqual([reason for reason in reasons if reason], ["length"])
        self.assertEqual(reasons[-1], "length")

        with self.server.stream(CHAT, {"messages": MESSAGES, "max_tokens": 6, "temperature": 0}) as events:
            events = list(events)
        self.assertEqual({event["object"] for event in events}, {"chat.completion.chunk"})
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")

    def test_health_ready_cluster(self):
        for path in ("/health", "/ready"):
            self.assertEqual(self.server.request("GET", path)[0], 200, path)
        status, cluster = self.server.get("/v1/cluster")
        self.assertEqual(status, 200)
        self.assertEqual((cluster["model"], cluster["family"], cluster["ready"], cluster["workers"]), ("demo-model", "mixtral", True, []))
        self.assertEqual(cluster["coordinator"]["pid"], self.server.pid)
        for name in ("id", "host", "state", "incarnation", "device", "isa", "dtype", "transport", "experts", "resident_bytes"):
            self.assertIn(name, cluster["coordinator"])
        for name in ("dtype", "quantization", "wire_dtype", "kv_dtype", "isa", "k_order"):
            self.assertTrue(cluster["profile"][name], name)
        self.assertEqual(cluster["limits"]["max_body_bytes"], MAX_BODY)
        self.assertEqual(cluster["limits"]["max_model_len"], 512)

    def test_unicode_prompt_survives(self):
        for prompt in ("Žluťoučký kůň 🐴 漢字", "\u0000\u0001\t", "a" * 300, " "):
            choice = self.server.complete(prompt=prompt, max_tokens=1, echo=True)["choices"][0]
            self.assertTrue(choice["text"].startswith(prompt), prompt)

    def test_choices_and_batches_are_what_each_alone_is(self):
        body = {"max_tokens": 12, "temperature": 0.9, "seed": 5}
        alone = [self.server.complete(prompt=prompt, n=2, **body)["choices"] for prompt in (PROMPT, "The wolf")]
        self.assertNotEqual(alone[0][0]["text"], alone[0][1]["text"])
        self.assertEqual(self.server.complete(prompt=PROMPT, **body)["choices"][0]["text"], alone[0][0]["text"])
        together = self.server.complete(prompt=[PROMPT, "The wolf"], n=2, **body)
        self.assertEqual([choice["text"] for choice in together["choices"]], [c["text"] for choices in alone for c in choices])
        self.assertEqual([choice["index"] for choice in together["choices"]], [0, 1, 2, 3])
        self.assertEqual(together["usage"]["completion_tokens"], 48)
        with self.server.stream(COMPLETIONS, {"prompt": [PROMPT, "The wolf"], "n": 2, **body}) as events:
            texts = [""] * 4
            for event in events:
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"]
        self.assertEqual(texts, [choice["text"] for choice in together["choices"]])

    def test_sampling_parameters_bite(self):
        greedy = self.server.complete(prompt=PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"]
        tokens = self.server.post("/tokenize", {"prompt": greedy})[1]["tokens"]
        body = {"prompt": PROMPT, "max_tokens": 24}
        banned = self.server.complete(temperature=0, logit_bias={str(tokens[0]): -100}, **body)["choices"][0]["text"]
        self.assertNotEqual(banned, greedy)
        self.assertEqual(self.server.complete(temperature=1, top_k=1, **body)["choices"][0]["text"], greedy)
        self.assertEqual(self.server.complete(temperature=1, min_p=1, **body)["choices"][0]["text"], greedy)
        penalised = self.server.complete(temperature=0, frequency_penalty=2, presence_penalty=2, **body)
        counts = self.server.post("/tokenize", {"prompt": penalised["choices"][0]["text"]})[1]["tokens"]
        self.assertGreater(len(set(counts)) / len(counts), len(set(tokens)) / len(tokens))
        stopped = self.server.complete(temperature=0, stop_token_ids=[tokens[4]], return_token_ids=True, **body)["choices"][0]
        self.assertEqual((stopped["finish_reason"], stopped["stop_reason"]), ("stop", tokens[4]))
        self.assertEqual(stopped["token_ids"], tokens[:tokens.index(tokens[4])])

    def test_tokenize_and_back(self):
        for text in (PROMPT, "Žluťoučký kůň 🐴 漢字"):
            status, answer = self.server.post("/tokenize", {"prompt": text, "return_token_strs": True})
            self.assertEqual(status, 200)
            self.assertEqual((answer["count"], answer["max_model_len"]), (len(answer["tokens"]), 512))
            self.assertEqual(len(answer["token_strs"]), answer["count"])
            self.assertEqual(self.server.post("/detokenize", {"tokens": answer["tokens"]})[1]["prompt"], text)
        chat = self.server.post("/tokenize", {"messages": MESSAGES})[1]
        usage = self.server.chat(messages=MESSAGES, max_tokens=1)["usage"]
        self.assertEqual(chat["count"], usage["prompt_tokens"])

    def test_version(self):
        self.assertRegex(self.server.get("/version")[1]["version"], r"^\d+\.\d+\.\d+$")

    # ---- what it refuses

    def test_bad_requests(self):
        for path, body, param in BAD_REQUESTS:
            with self.subTest(path=path, body=str(body)[:80]):
                status, answer = self.server.post(path, body)
                self.assert_error(status, answer, 400, param)
                self.assertIn(param, answer["error"]["message"])
        for body in (b"", b"{", b"[1]", b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 50000, b'{"prompt": "a", "max_tokens": 1e999}'):
            with self.subTest(body=body[:40]):
                status, _, answer = self.server.request("POST", COMPLETIONS, body)
                self.assert_error(status, json.loads(answer), 400)
        self.test_completion()

    def test_unknown_model_and_path(self):
        self.assert_error(*self.server.post(COMPLETIONS, {"model": "other", "prompt": PROMPT}), 404, "model")
        self.assert_error(*self.server.post(CHAT, {"model": "other", "messages": MESSAGES}), 404, "model")
        self.assert_error(*self.server.get("/v1/nothing"), 404)

    def test_wrong_method(self):
        self.assert_error(*self.server.get(COMPLETIONS), 405)
        self.assert_error(*self.server.post("/v1/models", {}), 405)

    def test_body_too_large(self):
        body = {"prompt": "a" * (MAX_BODY + 1)}
        self.assert_error(*self.server.post(COMPLETIONS, body), 413)

    def test_bytes_that_are_no_http(self):
        for raw in (b"\x00" * 100, b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):  # an answer or nothing, but an end
                    pass
        self.test_completion()

    # ---- its books

    def ledger(self):
        metrics = self.server.metrics()
        names = ("num_requests_waiting", "num_requests_running", "requests_finished_total", "requests_failed_total",
                 "requests_cancelled_total")
        parts = {name: metrics["expertmesh:" + name] for name in names}
        return metrics["expertmesh:requests_accepted_total"], parts

    def test_ledger_balances_at_every_scrape(self):
        accepted_before, _ = self.ledger()
        done = threading.Event()
        scrapes = []

        def scrape():
            while not done.is_set():
                scrapes.append(self.ledger())

        scraper = threading.Thread(target=scrape)
        scraper.start()
        try:
            with ThreadPoolExecutor(16) as pool:
                bodies = [{"prompt": PROMPT, "max_tokens": 4 + i % 20, "seed": i} for i in range(64)]
                list(pool.map(lambda body: self.server.complete(**body), bodies))
        finally:
            done.set()
            scraper.join()
        for accepted, parts in scrapes:
            self.assertEqual(accepted, sum(parts.values()), parts)
        self.assertTrue(any(parts["num_requests_running"] for _, parts in scrapes))
        accepted, parts = self.ledger()
        self.assertEqual(accepted - accepted_before, 64)
        self.assertEqual((parts["num_requests_waiting"], parts["num_requests_running"]), (0, 0))


class DisconnectTest(unittest.TestCase):
    def test_disconnect_stops_generation(self):
        # Answers so long that none ends before its client is gone, however busy the machine is.
        with tempfile.TemporaryDirectory() as folder:
            for file in DEMO_MODEL.iterdir():
                if file.name != "config.json":
                    Path(folder, file.name).symlink_to(file)
            config = json.loads((DEMO_MODEL / "config.json").read_text())
            Path(folder, "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))
            with Server(folder, "--kv-cache-memory", 80_000_000) as server:
                for path, request in ((COMPLETIONS, {"prompt": PROMPT}), (CHAT, {"messages": MESSAGES})):
                    for _ in range(4):
                        with server.stream(path, {"max_tokens": 16000, "ignore_eos": True, **request}) as events:
                            next(events)
                wait_until(lambda: server.metric("num_requests_running") == 0, 30, "no request runs")
                self.assertEqual(server.metric("requests_cancelled_total"), 8)


class NoTokenizerTest(unittest.TestCase):
    def test_token_ids_only(self):
        with Server(MODEL_GOLDENS / "mixtral") as server:
            choice = server.complete(prompt=[1, 2, 3], max_tokens=2, temperature=0, return_token_ids=True)["choices"][0]
            self.assertEqual(choice["text"], " ".join(f"token_id:{token}" for token in choice["token_ids"]))
            for path, body in ((COMPLETIONS, {"prompt": "text"}), (CHAT, {"messages": MESSAGES})):
                status, answer = server.post(path, body)
                self.assertEqual(status, 400, answer)


class ConfigFileTest(unittest.TestCase):
    def serve(self, text, *options):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        config, keys = Path(folder.name, "serve.conf"), Path(folder.name, "keys")
        keys.write_text("# ours\nkey-one\n\nkey-two\n")
        config.write_text(text.replace("KEYS", str(keys)))
        return [str(DEMO_MODEL), "--config", str(config), *options]

    def test_options_come_from_the_file_and_the_command_line_wins(self):
        text = "# how we serve\nmax-num-seqs = 3\nserved-model-name = tales\nworkers = 1\napi-key-file = KEYS\nenable-return-routed-experts = true\nallowed-origin =\n"
        with Server(*self.serve(text, "--served-model-name", "stories")) as server:
            status, answered, _ = server.request("GET", "/v1/models")
            self.assertEqual((status, answered["Access-Control-Allow-Origin"]), (401, None))
            headers = {"Authorization": "Bearer key-two"}
            cluster = json.loads(server.request("GET", "/v1/cluster", headers=headers)[2])
            self.assertEqual((cluster["model"], cluster["limits"]["max_num_seqs"], len(cluster["workers"])), ("stories", 3, 1))
            body = {"prompt": PROMPT, "max_tokens": 2, "return_routed_experts": True}
            self.assertEqual(server.request("POST", COMPLETIONS, body, headers)[0], 200)

    def test_what_is_wrong_in_it_is_named(self):
        for text, named in (("no-such-option = 1\n", "serve.conf:1: no such option: 'no-such-option'"),
                            ("max-num-seqs\n", "serve.conf:1: expected 'name = value'"),
                            ("\nmax-num-seqs = many\n", "--max-num-seqs"),
                            ("enable-return-routed-experts = maybe\n", "true or false"),
                            ("config = other\n", "no such option"), ("api-key-file = /no/such/file\n", "/no/such/file")):
            with self.subTest(text=text):
                ended = subprocess.run([EXPERTMESH, "serve", *self.serve(text)], capture_output=True, text=True, timeout=60)
                self.assertEqual(ended.returncode, 2, ended.stderr)
                self.assertIn(named, ended.stderr)


class FullQueueTest(unittest.TestCase):
    def test_full_queue_is_429_with_retry_after(self):
        with Server(DEMO_MODEL, "--max-num-seqs", 1, "--max-queued-requests", 1) as server:
            body = {"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True}
            with ThreadPoolExecutor(6) as pool:  # one runs, one waits
                answers = list(pool.map(lambda _: server.request("POST", COMPLETIONS, body), range(6)))
            refused = [headers for status, headers, _ in answers if status == 429]
            self.assertTrue(refused)
            self.assertTrue(all(int(headers["Retry-After"]) > 0 for headers in refused))
            self.assertEqual({status for status, _, _ in answers}, {200, 429})



if __name__ == "__main__":
    unittest.main()
