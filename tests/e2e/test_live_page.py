"""The live page in a real browser: it loads, streams, shows the group and a death in it, by mouse and by keyboard, and makes
no markup of what a model says."""
import json
import os
import signal
import sys
import tempfile
import unittest
from pathlib import Path

from browser import CHROMIUM, CONTROL, Browser
from harness import DEMO_MODEL, Server, wait_until
from scripted_model import write_scripted_model
from test_workers import successor_of, workers_of

STORY = json.loads((DEMO_MODEL / "golden.json").read_text())["cases"][0]
KEY = "a-key-of-the-tests"

UNITS = {"s": 1, "ms": 1e-3, "µs": 1e-6}

MARKUP = ["<img src=x onerror=", "\"document.title='broken'\">", "<b>bold</b>", "</p><script>throw 1</script>"]
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<|go|>"


class PageTest(unittest.TestCase):
    def open(self, server, ready=True):
        browser = self.enterContext(Browser())
        browser.open(f"http://127.0.0.1:{server.port}/")
        if ready:
            browser.wait_for("document.querySelector('#server-state').textContent === 'ready'")
        return browser

    def serve(self, *options, model=DEMO_MODEL):
        # A browser beside it may keep a worker from its processor: only the deaths of the tests count.
        return self.enterContext(Server(model, *options, "--heartbeat-timeout-ms", 5000))

    def ask(self, browser, text, **fields):
        """Writes it into the prompt, sets the other fields, and sends it by the button."""
        for name, value in {"prompt": text, **fields}.items():
            browser.value(f"document.getElementById({json.dumps(name)}).focus()")
            browser.write(str(value))
        browser.click("#send")

    def answer(self, browser):
        """Waits for its end. -> what the model has said"""
        browser.wait_for("/ended|cut/.test(document.querySelector('#answer-note').textContent)")
        return browser.value("[...document.querySelectorAll('.said')].at(-1).textContent")

    def test_streams_a_story_and_shows_the_group(self):
        server = self.serve("--workers", 2)
        browser = self.open(server)
        workers = workers_of(server)
        self.assertIn("demo-model", browser.text("#model"))
        self.assertEqual(browser.value("[...document.querySelectorAll('#workers .state')].map(e => e.textContent)"), ["serving"] * 2)
        for i, worker in enumerate(workers):
            card = browser.value(f"document.querySelectorAll('#workers li')[{i}].innerText")
            for fact in (f"Worker {worker['id']}", worker["device"], str(worker["experts"]), f"{worker['host']} {worker['pid']}"):
                self.assertIn(fact, card)
        self.assertIn(str(server.pid), browser.text("#coordinator"))

        count = len(STORY["greedy_ids"])
        self.ask(browser, STORY["prompt"], **{"max-tokens": count, "temperature": 0})
        expected = server.complete(prompt=STORY["prompt"], max_tokens=count, temperature=0)["choices"][0]["text"]
        self.assertEqual(self.answer(browser), expected)
        self.assertRegex(browser.text("#answer-note"), r"^\d+ tokens · first after .* · .*tokens/s · ")

        # What the steps were spent on, and on which experts.
        browser.wait_for("document.querySelector('#stages tbody').innerText.includes('attention')")
        stages = browser.text("#stages tbody")
        for stage in ("embedding", "router", "dispatch", "experts", "combine", "lm head", "sampling"):
            self.assertIn(stage, stages)
        browser.wait_for("document.querySelector('#finished').textContent === '2'")
        self.check_floors(server, browser)
        browser.wait_for("document.querySelectorAll('#map-rows tr').length === 5")
        browser.wait_for("[...document.querySelectorAll('#map-rows .figure')].some(e => Number(e.textContent) > 0)")
        wait_until(lambda: browser.value("document.querySelector('#map-rows').rows[2].cells[2].textContent") ==
                   f"{server.get('/v1/experts')[1]['layers'][2]['importance_cv2']:.3f}", 30, "the page shows the server's CV²")
        self.assertEqual(browser.errors, [])

    def check_floors(self, server, browser):
        """Beside each stage that has one, for the eye and in words; the others show none."""
        browser.wait_for("!document.querySelector('#floors-note').hidden")
        floors = server.get("/v1/activity")[1]["stage_floor_seconds"]
        rows = browser.value("""[...document.querySelectorAll('#stages tbody tr')].map(row => ({
            stage: row.dataset.key, texts: [...row.cells].map(cell => cell.textContent), title: row.title,
            mark: row.querySelector('.floor').offsetWidth,
            colours: [...row.cells[1].children].map(e => getComputedStyle(e).backgroundColor)}))""")
        self.assertGreater(len(rows), 7)
        for row in rows:
            _, _, seconds, _, floor, times = row["texts"]
            if floors[row["stage"]] == 0:
                self.assertEqual((floor, times, row["mark"]), ("–", "", 0), row)
                self.assertIn("No floor", row["title"])
                continue
            took, least = (float(number) * UNITS[unit] for number, unit in map(str.split, (seconds, floor)))
            self.assertGreater(least, 0, row)
            self.assertGreater(row["mark"], 0, row)
            self.assertIn("read", row["title"])
            self.assertNotEqual(*row["colours"], "the mark is not told from the bar")
            self.assertLess(abs(float(times.removeprefix("×")) / (took / least) - 1), 0.2, row)  # of two rounded numbers
        with_floor = {row["stage"] for row in rows if floors[row["stage"]] > 0}
        self.assertEqual(with_floor, {stage for stage, seconds in floors.items() if seconds > 0})
        heads = browser.value("[...document.querySelectorAll('#stages th')].slice(0, 6).map(e => e.textContent)")
        self.assertEqual(heads[-2:], ["In theory", "Times the theory"])

    def test_killed_worker_is_shown_as_dead(self):
        server = self.serve("--workers", 2)
        browser = self.open(server)
        victim = workers_of(server)[1]
        self.ask(browser, "Once upon a time there was", **{"max-tokens": 400})
        browser.wait_for("document.querySelector('.said')?.textContent.length > 0")
        os.kill(victim["pid"], signal.SIGKILL)
        death = browser.wait_for(f"document.querySelector('#deaths li[data-pid=\"{victim['pid']}\"]')?.innerText")
        self.assertIn("dead", death)
        self.assertIn("worker 2", death)
        card = browser.value("[...document.querySelectorAll('#workers li')].map(e => e.innerText)")
        self.assertIn(f"process {victim['pid']} is dead", card[1])
        self.assertNotIn("is dead", card[0])
        browser.wait_for("document.querySelector('#deaths-count').textContent === '1'")
        # Its successor is shown in its place, and the answer went on.
        successor = successor_of(server, victim)
        browser.wait_for(f"document.querySelectorAll('#workers li')[1].innerText.includes('{successor['pid']}')")
        browser.wait_for("document.querySelectorAll('#workers li')[1].querySelector('.state').textContent === 'serving'")
        self.answer(browser)
        self.assertEqual(server.metrics()["expertmesh:requests_failed_total"], 0)
        self.assertEqual(browser.errors, [])

    def test_keyboard_alone(self):
        server = self.serve("--workers", 1)
        browser = self.open(server)
        browser.tab_to("prompt")
        browser.write("The fox said to the crow")
        browser.press("Enter", CONTROL)
        browser.wait_for("document.querySelector('.said')?.textContent.length > 0")
        browser.press("Escape")
        browser.wait_for("/stopped|ended|cut/.test(document.querySelector('#answer-note').textContent)")
        browser.wait_for("!document.querySelector('#send').disabled")
        browser.wait_for("document.querySelectorAll('#map-rows tr').length === 5")
        browser.tab_to("map")
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):  # onto the map, and from there
            browser.press(key)
        self.assertRegex(browser.text("#map-cell"), r"^Layer 1, expert 1: \d.* tokens.*, held by worker 1$")
        self.assertEqual(browser.errors, [])

    def test_what_the_model_says_stays_text(self):
        with tempfile.TemporaryDirectory() as folder:
            write_scripted_model(folder, {"<|go|>": MARKUP}, CHAT_TEMPLATE)
            server = self.serve(model=Path(folder))
            browser = self.open(server)
            title = browser.value("document.title")
            browser.click("input[value=chat]")
            self.ask(browser, "<i>Hello</i>", **{"temperature": 0})
            self.assertEqual(self.answer(browser), "".join(MARKUP))
            self.assertEqual(browser.text(".asked"), "<i>Hello</i>")
            self.assertEqual(browser.value("document.querySelectorAll('#answer :is(img, b, i, script)').length"), 0)
            self.assertEqual(browser.value("document.title"), title)
            # The second turn has the first one before it.
            self.ask(browser, "Again")
            browser.wait_for("document.querySelectorAll('.asked').length === 2")
            self.assertEqual(self.answer(browser), "".join(MARKUP))
            # A dense model in one process: no map of experts, no workers.
            self.assertTrue(browser.value("document.querySelector('#experts').hidden"))
            self.assertIn("no workers", browser.text("#cluster-note"))
            self.assertEqual(browser.errors, [])

    def test_asks_for_the_key_that_the_server_wants(self):
        with tempfile.TemporaryDirectory() as folder:
            keys = Path(folder, "keys")
            keys.write_text(KEY + "\n")
            server = self.serve("--api-key-file", keys)
            browser = self.open(server, ready=False)
            for given in ("another", KEY):
                browser.wait_for("document.activeElement.id === 'key'")
                browser.write(given)
                browser.press("Enter")
                browser.wait_for("document.querySelector('#key').value === ''")
                if given != KEY:
                    browser.wait_for("document.querySelector('#key-note').textContent.includes('does not take')")
            browser.wait_for("document.querySelector('#server-state').textContent === 'ready'")
            self.assertTrue(browser.value("document.querySelector('#key-form').hidden"))
            self.ask(browser, "Once upon a time there was", **{"max-tokens": 5})
            self.assertTrue(self.answer(browser))
            # Chromium itself notes that two looks were refused; nothing else went wrong.
            self.assertTrue(browser.errors and all("401" in error for error in browser.errors), browser.errors)

    def test_loads_nothing_from_elsewhere(self):
        browser = self.open(self.serve())
        origin = browser.value("location.origin")
        loaded = browser.value("performance.getEntriesByType('resource').map(e => e.name)")
        self.assertGreater(len(loaded), 5)
        self.assertEqual([name for name in loaded if not name.startswith(origin + "/")], [])
        # The policy holds: neither scripts from strings, nor other origins.
        self.assertEqual(browser.value("new Promise(done => { addEventListener('securitypolicyviolation', e => done(e.effectiveDirective)); fetch('http://127.0.0.1:9/').catch(() => {}) })"), "connect-src")


if __name__ == "__main__":
    if CHROMIUM is None:
        print("SKIPPED: there is no chromium here", flush=True)
        sys.exit(0)
    unittest.main()
