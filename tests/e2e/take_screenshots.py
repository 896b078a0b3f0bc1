#!/usr/bin/env python3
"""take_screenshots.py FOLDER: the live page's pictures for README.md, with three workers at work and one just killed."""
import os
import signal
import sys
import threading
import time
from pathlib import Path

from browser import Browser
from harness import DEMO_MODEL, Server
from test_workers import successor_of, workers_of

PICTURES = {"light": (1280, 900, False), "dark": (1280, 900, True), "narrow": (400, 800, True)}
WORK_SECONDS = 25  # for the lines to have some length
PROMPTS = ("Once upon a time there was", "The fox said to the crow", "There lived a king who")


def keep_busy(server, done):
    def client(number):
        while not done.is_set():
            server.complete(prompt=PROMPTS[number % len(PROMPTS)], max_tokens=60 + 50 * number, temperature=0.8)
            done.wait(0.4 * number)
    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    return threads


def take(server, browser, folder):
    browser.value("document.getElementById('seed').value = 4")
    browser.click("#send")
    time.sleep(WORK_SECONDS)
    victim = workers_of(server)[1]
    os.kill(victim["pid"], signal.SIGKILL)
    successor_of(server, victim)
    browser.wait_for(f"document.querySelector('#deaths li[data-pid=\"{victim['pid']}\"]') !== null")
    browser.value("document.getElementById('map').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        browser.press(key)
    for name, look in PICTURES.items():
        browser.look(*look)
        browser.screenshot(Path(folder, f"{name}.png"))


def main(folder):
    with Server(DEMO_MODEL, "--workers", 3, "--redundant-experts", 2) as server, Browser() as browser:
        browser.look(*PICTURES["light"])
        browser.open(f"http://127.0.0.1:{server.port}/")
        done = threading.Event()
        clients = keep_busy(server, done)
        try:
            take(server, browser, folder)
        finally:
            done.set()
            for client in clients:
                client.join()
        print(*browser.errors, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
