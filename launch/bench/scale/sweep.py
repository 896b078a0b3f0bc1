"""Measures the points that are missing, in order, and says how it goes."""
import itertools
import sys
import time

import programs


def say(text):
    print(f"expertmesh bench scale: {text}", file=sys.stderr, flush=True)


def _jobs(points):
    """Points that one program measures: an engine all batch sizes of a setup and prompt length, a server all of a setup"""
    def program_of(point):
        return point.kind, point.setup, point.input_len if point.kind == "engine" else None

    return [list(job) for _, job in itertools.groupby(points, program_of)]


class Sweep:
    """failed: {key: why}, of points that there are no figures of. load_before: what other processes took when it began, which
    is kept with every point: figures of a busy machine are worth less."""

    def __init__(self, program, model, vocabulary, fingerprint, store, point_seconds, load_before):
        self._program = program
        self._model = model
        self._vocabulary = vocabulary
        self._fingerprint = fingerprint
        self._store = store
        self._point_seconds = point_seconds
        self._load_before = load_before
        self.failed = {}

    def run(self, points):
        missing = [point for point in points if point.key(self._fingerprint) not in self._store]
        if len(missing) < len(points):
            say(f"{len(points) - len(missing)} of {len(points)} points are there already")
        self._total, self._done, self._begin = len(missing), 0, time.monotonic()
        for job in _jobs(missing):
            (self._engine if job[0].kind == "engine" else self._server)(job)

    def _engine(self, job):
        seconds = self._point_seconds * len(job)
        try:
            measured = programs.run_engine(self._program, self._model, job, seconds)
        except programs.PointFailed as error:
            return self._fail(job, error)
        for point, figures in zip(job, measured):
            self._keep(point, figures)

    def _server(self, job):
        left = list(job)
        try:
            with programs.server(self._program, self._model, job, self._point_seconds) as url:
                while left:
                    self._client(url, left.pop(0))
        except (programs.PointFailed, OSError) as error:
            self._fail(left, error)

    def _client(self, url, point):
        try:
            self._keep(point, programs.run_clients(self._program, url, point, self._vocabulary, self._point_seconds))
        except (programs.PointFailed, OSError) as error:
            self._fail([point], error)

    def _keep(self, point, figures):
        self._store.add(point.key(self._fingerprint), point.settings, {**figures, "load_before": self._load_before})
        self._progress(point, f"{figures['tokens_per_second']:.1f} tok/s")

    def _fail(self, points, error):
        for point in points:
            self.failed[point.key(self._fingerprint)] = str(error)
            self._progress(point, f"failed: {error}")

    def _progress(self, point, what):
        self._done += 1
        spent = time.monotonic() - self._begin
        left = spent / self._done * (self._total - self._done)
        say(f"[{self._done}/{self._total}, {spent:.0f} s, about {left:.0f} s to go] {point}: {what}")
