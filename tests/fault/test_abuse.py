"""Strangers at the control port and the HTTP port of a live cluster under load: nothing is lost.

EM_FAULT_MESSAGES: broken messages to each port (default 300; the documented long form sends 10,000), and idle connections.
"""
import contextlib
import json
import os
import random
import resource
import socket
import struct
import threading
import time
import unittest

from crowd import (DEMO_MODEL, Crowd, Server, books_are_closed, quiet_answers, resident_bytes, wait_until,
                   workers_of)

MESSAGES = int(os.environ.get("EM_FAULT_MESSAGES", "300"))
CLIENTS = 8
HELLO = {"type": "hello", "protocol": 3, "build": "0.1.0", "nonce": "00" * 32, "proof": "11" * 32, "worker": 1,
         "incarnation": 1, "pid": 1, "host": "x", "device": "cpu", "isas": ["scalar"], "dtypes": ["float32"], "memory_bytes": 1,
         "checkpoint": {"config": "", "tensors": "", "sizes": "", "times": ""}, "nccl": 0}
BODY = {"prompt": "Once", "max_tokens": 4, "temperature": 0, "stream": True}


def control_port(server):
    """The port the workers were told, from the command line of one."""
    with open(f"/proc/{workers_of(server)[0]['pid']}/cmdline", "rb") as file:
        arguments = file.read().split(b"\0")
    return int(arguments[arguments.index(b"--control") + 1].rpartition(b":")[2])


def exchange(port, data):
    """Sends, and reads until the other end closes or says nothing for a while. -> what came"""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except (ConnectionError, TimeoutError):
            pass
    return received


def broken(rng, data):
    """A few bytes changed, cut, doubled or made up."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        way = rng.randrange(4)
        if way == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif way == 1:
            del data[at:at + rng.randrange(1, 40)]
        elif way == 2:
            data[at:at] = data[at:at + rng.randrange(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(data)


def framed(message):
    text = json.dumps(message).encode()
    return struct.pack("<I", len(text)) + text


class AbuseTest(unittest.TestCase):
    def test_broken_messages_at_both_ports(self):
        rng = random.Random(11)
        with Server(DEMO_MODEL, "--workers", 2) as server:
            port = control_port(server)
            expected = quiet_answers(server)
            before = workers_of(server)
            text = json.dumps(BODY).encode()
            request = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                       + str(len(text)).encode() + b"\r\nConnection: close\r\n\r\n" + text)
            with Crowd(server, expected, CLIENTS) as crowd:
                for _ in range(MESSAGES):
                    exchange(port, broken(rng, framed(HELLO)))
                    answer = exchange(server.port, broken(rng, request))
                    self.assertTrue(not answer or answer.startswith(b"HTTP/1.1 "), answer[:40])
            self.assertEqual(crowd.failures, [])
            self.assertEqual([(w["pid"], w["state"]) for w in workers_of(server)], [(w["pid"], "serving") for w in before])
            wait_until(lambda: server.metric("num_requests_running") == 0, 20, "what the broken requests started ends")
            self.assertTrue(books_are_closed(server.metrics()))
            print(f"{MESSAGES} broken messages at each port, {crowd.answers} answers, 0 wrong", flush=True)

    def test_clients_that_say_nothing_or_little_or_do_not_read(self):
        idle = max(1000, min(MESSAGES, 10000))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard < idle + 500:
            print(f"SKIPPED: {idle} idle connections (at most {hard} open files here): {hard - 500}", flush=True)
            idle = hard - 500
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with Server(DEMO_MODEL, "--workers", 2, "--max-connections", idle + 400) as server:
            expected = quiet_answers(server)
            before = resident_bytes(server.pid)
            with contextlib.ExitStack() as opened, Crowd(server, expected, CLIENTS) as crowd:
                connect = lambda: opened.enter_context(  # noqa: E731
                    socket.create_connection(("127.0.0.1", server.port), timeout=30))
                for _ in range(idle):
                    connect()
                slow = [connect() for _ in range(100)]  # a header that takes for ever
                deaf = [connect() for _ in range(20)]  # a stream that nobody reads
                body = json.dumps({**BODY, "max_tokens": 400, "ignore_eos": True}).encode()
                for connection in deaf:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                text = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 40
                for byte in text:
                    done = crowd.answers
                    for connection in slow:
                        with contextlib.suppress(OSError):  # it may have been cut off
                            connection.send(bytes([byte]))
                    if byte == text[0]:
                        wait_until(lambda done=done: crowd.answers > done + 2 * CLIENTS, 120, "the others are served")
                self.assertEqual(server.get("/ready")[0], 200)
                print(f"{idle} idle connections, 100 slow headers, 20 unread streams: {crowd.answers} answers, "
                      f"{len(crowd.failures)} wrong, resident +{(resident_bytes(server.pid) - before) / 1e6:.0f} MB", flush=True)
            self.assertEqual(crowd.failures, [])
            wait_until(lambda: server.metric("num_requests_running") == 0, 60, "the unread streams have ended")
            self.assertTrue(books_are_closed(server.metrics()))

    def test_a_peer_with_the_wrong_secret_in_a_tight_loop(self):
        with Server(DEMO_MODEL, "--workers", 2) as server:
            port = control_port(server)
            expected = quiet_answers(server)
            before = workers_of(server)
            stop, tries, heard = threading.Event(), [], set()

            def loop():
                while not stop.is_set():
                    answer = exchange(port, framed(HELLO))
                    if answer:
                        size, = struct.unpack("<I", answer[:4])
                        heard.add((json.loads(answer[4:4 + size])["type"], len(answer) - 4 - size))
                    tries.append(time.monotonic())

            rates = {}
            with Crowd(server, expected, CLIENTS) as crowd:
                wait_until(lambda: crowd.answers >= CLIENTS, 60, "the crowd is at work")
                for name in ("alone", "beside"):
                    thread = threading.Thread(target=loop)
                    if name == "beside":
                        thread.start()
                    tokens, start = crowd.tokens, time.monotonic()
                    wait_until(lambda goal=tokens + 3000: crowd.tokens >= goal, 120, "tokens flow")
                    rates[name] = (crowd.tokens - tokens) / (time.monotonic() - start)
                stop.set()
                thread.join()
            self.assertEqual(crowd.failures, [])
            self.assertTrue(heard <= {("challenge", 0)}, f"a stranger hears a nonce at most, not {heard}")
            self.assertGreater(len(tries), 10)
            self.assertEqual([w["pid"] for w in workers_of(server)], [w["pid"] for w in before])
            # Shown, not asserted: the strangers' own processor time comes from the same cores.
            print(f"{len(tries)} attempts; {rates['beside'] / rates['alone']:.0%} of the tokens a second without them", flush=True)


if __name__ == "__main__":
    unittest.main()
