"""GET /v1/experts: what each expert was given to do, and who holds it, before and after workers die and leave."""
import os
import signal
import unittest

from harness import DEMO_MODEL, Server, wait_until
from test_workers import LONG, PROMPT, successor_of, workers_of

NUM_LAYERS, NUM_EXPERTS, TOP_K = 5, 8, 2


def layers_of(server):
    status, answer = server.get("/v1/experts")
    if status != 200:
        raise AssertionError(status)
    return answer["layers"]


def squared_cv(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values) / mean**2


def experts_held(layers):
    """-> {worker: how many experts of all layers}"""
    held = {}
    for layer in layers:
        for holders in layer["holders"]:
            for worker in holders:
                held[worker] = held.get(worker, 0) + 1
    return held


class ExpertsTest(unittest.TestCase):
    def check_shape(self, layers):
        self.assertEqual([layer["layer"] for layer in layers], list(range(NUM_LAYERS)))
        for layer in layers:
            self.assertEqual(layer["experts"], NUM_EXPERTS)
            for name in ("importance", "load", "holders"):
                self.assertEqual(len(layer[name]), NUM_EXPERTS, name)

    def check_holders(self, server):
        """Whoever holds an expert is there and serves, and each worker as many as /v1/cluster says."""
        layers = layers_of(server)
        self.check_shape(layers)
        self.assertEqual(experts_held(layers), {worker["id"]: worker["experts"] for worker in workers_of(server) if worker["experts"]})
        for layer in layers:
            self.assertTrue(all(holders == sorted(set(holders)) for holders in layer["holders"]))
            self.assertEqual(layer["replicas"], sum(map(len, layer["holders"])) - NUM_EXPERTS)
        return layers

    def test_load_and_importance_are_those_of_the_metrics(self):
        with Server(DEMO_MODEL, "--workers", 2) as server:
            before = layers_of(server)
            self.check_shape(before)
            self.assertEqual({value for layer in before for name in ("importance", "load") for value in layer[name]}, {0})
            self.assertEqual({layer[name] for layer in before for name in ("importance_cv2", "load_cv2")}, {0})

            usage = server.complete(**LONG)["usage"]
            routed = usage["prompt_tokens"] + usage["completion_tokens"] - 1  # the last token is not computed with
            layers = wait_until(lambda: (seen := layers_of(server)) and sum(seen[0]["load"]) == TOP_K * routed and seen, 10,
                                "every token has been counted")
            metrics = server.metrics()
            for layer in layers:
                self.assertEqual(sum(layer["load"]), TOP_K * routed)
                self.assertAlmostEqual(sum(layer["importance"]), routed, delta=1e-3 * routed)  # a token's weights sum to 1
                for name in ("importance", "load"):
                    self.assertAlmostEqual(layer[f"{name}_cv2"], squared_cv(layer[name]), places=9)
                    self.assertAlmostEqual(layer[f"{name}_cv2"], metrics['expertmesh:%s_cv2{layer="%d"}' % (name, layer["layer"])], places=6)
                    for expert, value in enumerate(layer[name]):
                        labels = f'layer="{layer["layer"]}",expert="{expert}"', f'expert="{expert}",layer="{layer["layer"]}"'
                        shown, = (metrics[key] for key in (f"expertmesh:expert_{name}{{{label}}}" for label in labels) if key in metrics)
                        self.assertAlmostEqual(value, shown, delta=1e-5 * abs(shown) + 1e-9)

    def test_holders_follow_the_workers(self):
        with Server(DEMO_MODEL, "--workers", 2, "--redundant-experts", 2) as server:
            layers = self.check_holders(server)
            self.assertEqual({layer["replicas"] for layer in layers}, {2})
            victim = workers_of(server)[1]
            os.kill(victim["pid"], signal.SIGKILL)
            successor_of(server, victim)
            self.assertEqual(experts_held(self.check_holders(server)), experts_held(layers))
            death, = server.get("/v1/cluster")[1]["deaths"]
            self.assertEqual((death["worker"], death["incarnation"], death["pid"]), (victim["id"], victim["incarnation"], victim["pid"]))
            self.assertTrue(death["reason"])
            self.assertGreaterEqual(death["seconds_ago"], 0)

            self.assertEqual(server.post("/v1/cluster/drain", {"worker": 2})[0], 202)
            wait_until(lambda: workers_of(server)[1]["state"] == "left", 30, "the worker has left")
            for layer in layers_of(server):
                self.assertEqual(layer["holders"], [[1]] * NUM_EXPERTS)
            self.assertEqual(len(server.get("/v1/cluster")[1]["deaths"]), 1)  # to leave is not to die

    def test_without_workers_the_coordinator_holds_them_all(self):
        with Server(DEMO_MODEL, "--redundant-experts", 99) as server:
            self.assertIn("--redundant-experts 99: 0 workers have places for 0 replicas", server.log())
            layers = layers_of(server)
            self.check_shape(layers)
            for layer in layers:
                self.assertEqual(layer["holders"], [[0]] * NUM_EXPERTS)
            self.assertEqual(server.get("/v1/cluster")[1]["deaths"], [])

    def test_activity_is_that_of_the_metrics(self):
        with Server(DEMO_MODEL) as server:
            before = server.get("/v1/activity")[1]
            usage = server.complete(prompt=PROMPT, max_tokens=20, ignore_eos=True)["usage"]
            steps = usage["completion_tokens"]  # the prompt's gives the first token
            now = wait_until(lambda: (seen := server.get("/v1/activity")[1])["steps"]["count"] == steps and seen, 10, "the last step is over")
            metrics = server.metrics()
            self.assertGreater(now["seconds"], before["seconds"])
            self.assertEqual((now["prompt_tokens"], now["generation_tokens"]), (usage["prompt_tokens"], usage["completion_tokens"]))
            self.assertEqual(now["requests"], {"accepted": 1, "queued": 0, "running": 0, "finished": 1, "failed": 0, "cancelled": 0})
            self.assertEqual(now["time_to_first_token"]["count"], 1)
            self.assertEqual(now["inter_token"]["count"], usage["completion_tokens"] - 1)
            self.assertEqual(now["steps"]["count"], metrics["expertmesh:step_seconds_count"])
            for stage, seconds in now["stage_seconds"].items():
                self.assertAlmostEqual(seconds, metrics[f'expertmesh:stage_seconds_total{{stage="{stage}"}}'], places=6)
            self.assertGreater(now["stage_seconds"]["attention"], 0)
            for stage, seconds in now["stage_floor_seconds"].items():
                self.assertAlmostEqual(seconds, metrics[f'expertmesh:stage_floor_seconds_total{{stage="{stage}"}}'], places=6)
            floors = {stage for stage, seconds in now["stage_floor_seconds"].items() if seconds > 0}
            self.assertEqual(floors, {"embedding", "attention", "router", "dispatch", "experts", "combine", "lm_head", "sampling"})

    def test_page_is_there_unless_it_is_turned_off(self):
        with Server(DEMO_MODEL) as server:
            status, headers, body = server.request("GET", "/")
            self.assertEqual((status, headers["Content-Type"]), (200, "text/html; charset=utf-8"))
            self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
            self.assertIn(b"<title>ExpertMesh</title>", body)
        with Server(DEMO_MODEL, "--no-ui") as server:
            for path in ("/", "/ui/app.js"):
                self.assertEqual(server.request("GET", path)[0], 404, path)


if __name__ == "__main__":
    unittest.main()
