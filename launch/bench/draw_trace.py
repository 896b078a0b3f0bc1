#!/usr/bin/env python3
"""draw_trace.py TRACE [--step N] [--layer L] > step.svg: one step of a file that `--trace` has written, as a picture: the
coordinator's stages, and what each worker did meanwhile, on the coordinator's clock. Below, one layer of it enlarged."""
import argparse
import collections
import sys
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

sys.path.insert(0, str(Path(__file__).resolve().parent / "scale"))

import trace_file  # noqa: E402

WIDTH, LEFT, RIGHT = 1080, 96, 14
LANE, GAP, TICKS = 26, 8, 20  # heights
LETTER = 6.6                  # width of one, about
COLOURS = {"embedding": "#b9c6f2", "attention": "#8fc1ee", "router": "#f2d06b", "dispatch": "#f0a35e", "shared_expert": "#cdb4e4",
           "experts": "#d4d7dc", "combine": "#94cf8c", "dense_ffn": "#c3dc84", "lm_head": "#86d0c8", "fetch": "#bdbdbd",
           "sampling": "#e5a9c4"}
WAY, COMPUTES = "#f0a35e", "#e0705a"
STYLE = """
  svg { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
  .page { fill: #ffffff } text { fill: #18212c } .quiet { fill: #566373 } .line { stroke: #d9dfe7 } .whisker { stroke: #18212c }
  .in { fill: #14181d; font-size: 11px } .head { font-weight: 600; font-size: 13px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #171d25 } text { fill: #e4e9f0 } .quiet { fill: #9aa8b8 } .line { stroke: #2c3643 } .whisker { stroke: #e4e9f0 }
    .in { fill: #14181d }
  }
"""

Span = collections.namedtuple("Span", "begin end name layer")            # microseconds; a stage
Exchange = collections.namedtuple("Exchange", "begin end layer compute")  # compute: (begin, end, uncertainty), or None


class NotThere(Exception):
    """What the trace does not have."""


class Step:
    """What a trace says of one of its steps; none is named: the last one that only decodes."""

    def __init__(self, path, number=None):
        steps, stages, exchanges, computed, names = {}, collections.defaultdict(list), {}, {}, {}
        for event in trace_file.events(path):
            kind, arguments = event.get("cat"), event.get("args", {})
            if kind == "step":
                steps[arguments["step"]] = event
            elif kind == "stage":
                stages[arguments["step"]].append(event)
            elif kind == "exchange":
                exchanges.setdefault(event["id"], {})[event["ph"]] = event
            elif kind == "compute":
                computed[arguments["exchange"]] = event
            elif event.get("name") == "process_name":
                names[event["pid"]] = arguments["name"]
        if number is None:
            number = max((n for n, event in steps.items() if event["name"] == "decode step"), default=None)
        if number not in steps:
            raise NotThere(f"{path}: it has {'no decode step' if number is None else f'no step {number}'} among its {len(steps)} whole ones")
        self.number, self.name, self.tokens = number, steps[number]["name"], steps[number]["args"]["tokens"]
        self.begin, self.end = _span(steps[number])
        self.stages = sorted(Span(*_span(event), event["name"], event["args"].get("layer")) for event in stages[number])
        self.workers = collections.defaultdict(list)  # name -> its exchanges in order
        for name, ends in sorted(exchanges.items()):
            if "b" in ends and self.begin <= ends["b"]["ts"] < self.end:
                self.workers[names.get(ends["b"]["pid"], "worker")].append(self._exchange(ends, computed.get(name)))
        self.workers = {worker: sorted(its) for worker, its in sorted(self.workers.items())}

    def _exchange(self, ends, compute):
        end = ends["e"]["ts"] if "e" in ends else self.end
        return Exchange(ends["b"]["ts"], end, ends["b"]["args"]["layer"],
                        compute and (*_span(compute), compute["args"]["uncertainty_us"]))

    def layer(self, number=None):
        """-> (begin, end, which): none is named: the middle one of those with exchanges, or of all"""
        layers = sorted({its.layer for exchanges in self.workers.values() for its in exchanges} or
                        {stage.layer for stage in self.stages if stage.layer is not None})
        if number is None and layers:
            number = layers[len(layers) // 2]
        spans = [stage for stage in self.stages if stage.layer == number and number is not None]
        if not spans:
            raise NotThere(f"step {self.number} has no layer {number}")
        return spans[0].begin, spans[-1].end, number


def _span(event):
    return event["ts"], event["ts"] + event["dur"]


def _time(microseconds):
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 1000 else f"{microseconds:.0f} µs"


class Panel:
    """A part of the step's time, from the left edge to the right one; lanes below each other."""

    def __init__(self, out, top, begin, end):
        self.out, self.y, self.begin, self.end = out, top, begin, end

    def x(self, when):
        share = (min(max(when, self.begin), self.end) - self.begin) / (self.end - self.begin)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self, lanes):
        step = 10 ** len(str(int((self.end - self.begin) / 10)))
        step = next(step * part for part in (0.1, 0.2, 0.5, 1) if (self.end - self.begin) / (step * part) <= 10)
        bottom = self.y + TICKS + lanes * (LANE + GAP)
        for i in range(int((self.end - self.begin) / step) + 1):
            x = self.x(self.begin + i * step)
            self.out.append(f'<path class="line" d="M{x:.1f} {self.y + TICKS - 4}V{bottom}"/>')
            self.out.append(f'<text class="quiet" x="{x:.1f}" y="{self.y + 10}" text-anchor="middle">{_time(i * step) if i else "0"}</text>')
        self.y += TICKS

    def lane(self, name):
        self.out.append(f'<text x="{LEFT - 8}" y="{self.y + LANE / 2 + 4}" text-anchor="end">{escape(name)}</text>')

    def next_lane(self):
        self.y += LANE + GAP

    def box(self, begin, end, colour, title, label=None, thin=False):
        x, width = self.x(begin), max(self.x(end) - self.x(begin), 0.4)
        y, height = (self.y + LANE / 2 - 4, 8) if thin else (self.y, LANE)
        self.out.append(f'<rect x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height}" fill="{colour}">'
                        f'<title>{escape(title)}</title></rect>')
        for text in ([f"{label} {_time(end - begin)}", label] if label else []):
            if len(text) * LETTER < width:
                self.out.append(f'<text class="in" x="{x + width / 2:.1f}" y="{self.y + LANE / 2 + 4}" text-anchor="middle">{escape(text)}</text>')
                break

    def whisker(self, when, unsure):
        y = self.y + LANE - 3  # below the words
        self.out.append(f'<path class="whisker" d="M{self.x(when - unsure):.1f} {y}H{self.x(when + unsure):.1f}"/>')


def _draw(step, panel, details):
    panel.ticks(1 + len(step.workers))
    panel.lane("coordinator")
    for stage in step.stages:
        if stage.end <= panel.begin or stage.begin >= panel.end:
            continue
        where = "" if stage.layer is None else f", layer {stage.layer}"
        panel.box(stage.begin, stage.end, COLOURS.get(stage.name, "#bdbdbd"), f"{stage.name}{where}: {stage.end - stage.begin:.3f} us",
                  "waits" if stage.name == "experts" and step.workers else stage.name.replace("_", " "))
    panel.next_lane()
    for worker, exchanges in step.workers.items():
        panel.lane(worker)
        for its in exchanges:
            if its.end <= panel.begin or its.begin >= panel.end:
                continue
            panel.box(its.begin, its.end, WAY, f"{worker}, exchange of layer {its.layer}: {its.end - its.begin:.3f} us", thin=True)
            if not its.compute:
                continue
            begin, end, unsure = its.compute
            panel.box(begin, end, COMPUTES, f"{worker} computes, layer {its.layer}: {end - begin:.3f} us", "computes")
            if details:
                panel.whisker(begin, unsure)
                panel.whisker(end, unsure)
        panel.next_lane()
    return panel.y


def picture(step, layer=None):
    """-> SVG"""
    begin, end, number = step.layer(layer)
    out = []
    head = f"{step.name.capitalize()} {step.number}: {step.tokens} token{'s' * (step.tokens != 1)}, {_time(step.end - step.begin)}"
    out.append(f'<text class="head" x="{LEFT}" y="20">{escape(head)}</text>')
    y = _draw(step, Panel(out, 32, step.begin, step.end), details=False)
    out.append(f'<text class="head" x="{LEFT}" y="{y + 20}">Layer {number} of it: {_time(end - begin)}</text>')
    y = _draw(step, Panel(out, y + 32, begin, end), details=True)
    x = LEFT
    names = [(COLOURS.get(name, "#bdbdbd"), "experts: waits for workers" if name == "experts" and step.workers else name.replace("_", " "))
             for name in dict.fromkeys(stage.name for stage in step.stages)]
    if step.workers:
        names += [(WAY, "rows on their way, or waiting for a core"), (COMPUTES, "a worker computes; the line: what its clock leaves unsure")]
    for colour, name in names:
        width = 18 + len(name) * LETTER + 14
        if x + width > WIDTH:
            x, y = LEFT, y + 18
        out.append(f'<rect x="{x:.0f}" y="{y + 6}" width="12" height="12" fill="{colour}"/><text class="quiet" x="{x + 18:.0f}" y="{y + 16}">{escape(name)}</text>')
        x += width
    height = y + 30
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img" '
            f'aria-label={quoteattr(head)}>\n<style>{STYLE}</style>\n<rect class="page" width="{WIDTH}" height="{height:g}" rx="8"/>\n'
            + "\n".join(out) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description="One step of a trace as a picture (SVG).")
    parser.add_argument("trace", type=Path, help="what `expertmesh serve --trace` or `expertmesh bench engine --trace` wrote")
    parser.add_argument("--step", type=int, help="its number in the trace [the last decode step]")
    parser.add_argument("--layer", type=int, help="to be enlarged [the middle one]")
    options = parser.parse_args()
    try:
        sys.stdout.write(picture(Step(options.trace, options.step), options.layer))
    except (NotThere, OSError) as error:
        sys.exit(f"draw_trace.py: {error}")
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
        sys.exit(f"draw_trace.py: {options.trace}: not a trace of expertmesh: {error!r}")


if __name__ == "__main__":
    main()
