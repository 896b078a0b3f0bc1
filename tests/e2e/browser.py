"""A headless Chromium, driven by the DevTools protocol over two pipes: no port, no driver, no further packages."""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_SECONDS = 120  # bounds, like those of the harness
ANSWER_SECONDS = 60
PAGE_SECONDS = 60

KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Space": (32, " ")}
CONTROL = 2  # modifier


class Browser:
    """One page. A context manager; `errors` is what its console has said in anger, and every exception nobody caught."""

    def __init__(self):
        self.errors = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._log = tempfile.TemporaryFile("w+b")
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        # Numbers that are not in the way of 3 and 4, where Chromium looks for them.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, from_write)]
        command = [CHROMIUM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "--no-first-run",
                   "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
                   "--disable-sync", "--no-default-browser-check", "--hide-scrollbars", "about:blank"]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # Chromium's refuses root
        self.process = subprocess.Popen(["bash", "-c", 'exec "${@:3}" 3<&"$1" 4>&"$2"', "bash", *map(str, ends), *command],
                                        pass_fds=ends, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                                        env={**os.environ, "HOME": self._profile.name})
        for end in (to_read, from_write, *ends):
            os.close(end)
        self._unread = b""
        self._number = 0
        self._session = None
        try:
            target = self.call("Target.createTarget", START_SECONDS, url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is not None:
                print(f"--- the page: {self.errors}\n{self.text('body')[:3000]}\n---", file=sys.stderr, flush=True)
        finally:
            self.close()

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._to)
        os.close(self._from)
        self._log.close()
        self._profile.cleanup()

    # ---- the protocol: JSON objects that end with a zero byte

    def call(self, method, seconds=ANSWER_SECONDS, **params):
        """-> the result; what the page tells meanwhile is taken note of"""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data):]
        deadline = time.monotonic() + seconds
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, deadline, what):
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._from, 1 << 20) if readable else b""
            if not data:
                self._log.seek(0)
                raise AssertionError(f"{what}: no answer from Chromium\n{self._log.read().decode(errors='replace')[-3000:]}")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")

    # ---- the page

    def open(self, url):
        failure = self.call("Page.navigate", url=url).get("errorText")
        if failure:
            raise AssertionError(f"{url}: {failure}")
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression):
        """-> what the JavaScript expression is worth in the page"""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, expression, seconds=PAGE_SECONDS):
        """Until the expression is true. -> its value"""
        return wait_until(lambda: self.value(expression), seconds, expression)

    def text(self, selector):
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector):
        """Where the element is, with the mouse."""
        place = f"document.querySelector({json.dumps(selector)})"
        x, y = self.value(f"({place}.scrollIntoView({{block: 'center'}}), (r => [r.x + r.width / 2, r.y + r.height / 2])({place}.getBoundingClientRect()))")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, name, modifiers=0):
        code, text = KEYS[name]
        key = " " if name == "Space" else name
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=name, windowsVirtualKeyCode=code, modifiers=modifiers,
                      text=text if kind == "keyDown" and not modifiers else "")

    def tab_to(self, identity):
        """Moves the focus by the Tab key alone."""
        for _ in range(60):
            if self.value("document.activeElement.id") == identity:
                return
            self.press("Tab")
        raise AssertionError(f"the Tab key does not come to #{identity}")

    def write(self, text):
        """In place of what stands in the focused field."""
        self.value("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def look(self, width, height, dark=False):
        """From now on the window has this size, and the system this scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def screenshot(self, path):
        """The whole page, as PNG, in a window that is as high."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        self.look(size["width"], size["height"], self.value("matchMedia('(prefers-color-scheme: dark)').matches"))
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        picture = self.call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(picture["data"]))
