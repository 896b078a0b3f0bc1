"""launch/bench/draw_trace.py: the picture of a step of a real trace, held against what the trace says."""
import json
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from harness import DEMO_MODEL, EXPERTMESH, REPOSITORY

RUN_SECONDS = 300
TOOL = REPOSITORY / "launch" / "bench" / "draw_trace.py"
SVG = "{http://www.w3.org/2000/svg}"
WORKERS, BATCH, MOE_LAYERS = 2, 3, 5
LEFT, RIGHT = 96, 1066  # edges of the time that is shown
MOST_BYTES = 60_000


class DrawTraceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.trace = cls.folder / "trace.json"
        subprocess.run([EXPERTMESH, "bench", "engine", DEMO_MODEL, "--workers", str(WORKERS), "--batch-sizes", str(BATCH), "--input-len", "8",
                        "--output-len", "4", "--trace", cls.trace], check=True, stdout=subprocess.DEVNULL, timeout=RUN_SECONDS)
        cls.events = json.loads(cls.trace.read_text())

    def draw(self, *options, trace=None):
        return subprocess.run([sys.executable, "-B", TOOL, trace or self.trace, *map(str, options)], capture_output=True, text=True, check=False,
                              timeout=RUN_SECONDS)

    def picture(self, *options, trace=None):
        done = self.draw(*options, trace=trace)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertLess(len(done.stdout.encode()), MOST_BYTES)
        return ElementTree.fromstring(done.stdout)

    def of(self, kind):
        return [event for event in self.events if event.get("cat") == kind]

    def boxes(self, picture):
        """-> {title: [(left, right) for each panel it is in]} from the top down"""
        found = {}
        for box in picture.iter(f"{SVG}rect"):
            title = box.find(f"{SVG}title")
            if title is not None:
                left = float(box.get("x"))
                found.setdefault(title.text, []).append((left, left + float(box.get("width"))))
        return found

    def check_boxes(self, found, spans, begin, end, panel):
        """spans: {title: (begin, end)}, all of which the panel from `begin` to `end` shows"""
        for title, span in spans.items():
            self.assertIn(title, found)
            left, right = (LEFT + (when - begin) / (end - begin) * (RIGHT - LEFT) for when in span)
            drawn = found[title][panel]
            self.assertAlmostEqual(drawn[0], left, delta=0.02, msg=title)
            self.assertAlmostEqual(drawn[1], max(right, drawn[0] + 0.4), delta=0.02, msg=title)

    def spans_of(self, step):
        """-> {title: (begin, end)} of the step's stages, exchanges and computations, as the trace has them; titles of layer 3"""
        begin, end = step["ts"], step["ts"] + step["dur"]
        starts = {event["id"]: event for event in self.of("exchange") if event["ph"] == "b" and begin <= event["ts"] < end}
        ends = {event["id"]: event["ts"] for event in self.of("exchange") if event["ph"] == "e"}
        spans, of_layer = {}, []

        def add(title, layer, begin, end):
            spans[f"{title}: {end - begin:.3f} us"] = (begin, end)
            if layer == 3:
                of_layer.append(f"{title}: {end - begin:.3f} us")

        for event in self.of("stage"):
            if event["args"]["step"] == step["args"]["step"]:
                layer = event["args"].get("layer")
                add(event["name"] + ("" if layer is None else f", layer {layer}"), layer, event["ts"], event["ts"] + event["dur"])
        for name, event in starts.items():
            add(f"worker {event['pid'] - 1}, exchange of layer {event['args']['layer']}", event["args"]["layer"], event["ts"], ends[name])
        for event in self.of("compute"):
            if event["args"]["exchange"] in starts:
                layer = event["args"]["layer"]
                add(f"worker {event['pid'] - 1} computes, layer {layer}", layer, event["ts"], event["ts"] + event["dur"])
        return spans, of_layer

    def test_every_span_of_a_step_is_where_the_trace_has_it(self):
        steps = [event for event in self.of("step") if event["name"] == "decode step"]
        for step, options in ((steps[-1], ()), (steps[-3], ("--step", steps[-3]["args"]["step"], "--layer", 3))):
            with self.subTest(options=options):
                picture = self.picture(*options)
                self.assertIn(f"Decode step {step['args']['step']}: {BATCH} tokens", picture.get("aria-label"))
                found = self.boxes(picture)
                spans, of_layer = self.spans_of(step)
                self.assertGreaterEqual(len(spans), 6 * MOE_LAYERS + 3 + MOE_LAYERS)  # at least one worker has rows of each layer
                self.assertEqual(set(found), set(spans), "drawn, but of another step, or the other way round")
                self.check_boxes(found, spans, step["ts"], step["ts"] + step["dur"], panel=0)
                if not options:
                    continue
                # The enlarged layer from its attention to what is added up of it.
                stages = [spans[title] for title in of_layer if not title.startswith("worker")]
                begin, end = min(stages)[0], max(stages)[1]
                inside = {title: spans[title] for title in of_layer if begin <= spans[title][0] and spans[title][1] <= end}
                self.assertGreaterEqual(len(inside), 6 + 1)
                self.check_boxes(found, inside, begin, end, panel=1)

    def test_both_workers_are_named(self):
        texts = [text.text for text in self.picture().iter(f"{SVG}text")]
        for name in ("coordinator", "worker 1", "worker 2"):
            self.assertEqual(texts.count(name), 2, name)

    def test_a_trace_that_was_cut_off(self):
        cut = self.folder / "cut.json"
        text = self.trace.read_text()
        cut.write_text(text[:text.rindex('"cat":"step"') + 20])
        steps = [event["args"]["step"] for event in self.of("step")]
        self.assertIn(f"step {steps[-2]}:", self.picture(trace=cut).get("aria-label"))

    def test_says_what_is_not_there(self):
        for options, words in ((("--step", 999), "no step 999"), (("--layer", 77), "no layer 77")):
            done = self.draw(*options)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn(words, done.stderr)
        empty = self.folder / "empty.json"
        empty.write_text("[\n")
        self.assertIn("no decode step", self.draw(trace=empty).stderr)
        self.assertIn("No such file", self.draw(trace=self.folder / "none.json").stderr)


if __name__ == "__main__":
    unittest.main()
