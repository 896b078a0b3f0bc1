"""launch/observe without a Prometheus: every expression of dashboard and alerts is one, and asks for what a real server
exports. Where there is a promtool, it has its say as well."""
import collections
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import debian_python  # noqa: E402
from harness import DEMO_MODEL, REPOSITORY, Server  # noqa: E402
from promql import Malformed, Parser  # noqa: E402

debian_python.needs("yaml")
import yaml  # noqa: E402

FOLDER = REPOSITORY / "launch" / "observe"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())
SCRAPE = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
OF_PROMETHEUS = {"up": set()}     # metrics that it makes itself
OF_EVERY_SERIES = {"instance", "job"}  # labels that it adds
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? \S+')
LABEL = re.compile(r'([a-zA-Z_]\w*)="')


def dashboard_expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"]


def alerts():
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions():
    yield from dashboard_expressions()
    for rule in alerts():
        yield f"alert {rule['alert']}", rule["expr"]


def parsed(expression):
    parser = Parser(expression)
    kind = parser.parse()
    if kind != "vector":
        raise Malformed(f"a {kind}: {expression!r}")
    return parser


def exported():
    """-> {metric: its labels} of a server that has answered requests, and refused some"""
    with Server(DEMO_MODEL, "--workers", 2) as server:
        server.complete(prompt="Once", max_tokens=3, unheard_of=1)
        server.request("POST", "/v1/completions", {"prompt": 1.5})
        text = server.request("GET", "/metrics")[2].decode()
    labels = collections.defaultdict(set)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, inside = SAMPLE.fullmatch(line).groups()
            labels[name] |= set(LABEL.findall(inside or ""))
    return dict(labels)


class ObserveTest(unittest.TestCase):
    def test_every_expression_asks_for_what_a_server_exports(self):
        known = {**exported(), **OF_PROMETHEUS}
        asked = set()
        for where, expression in expressions():
            with self.subTest(where=where):
                parser = parsed(expression)
                labels = set(OF_EVERY_SERIES)
                for metric, matchers in parser.selectors:
                    self.assertIn(metric, known)
                    self.assertLessEqual(set(matchers), known[metric] | OF_EVERY_SERIES)
                    labels |= known[metric]
                    asked.add(metric)
                self.assertLessEqual(parser.labels, labels)
        shown = {re.sub(r"_(bucket|count|sum)$", "", metric) for metric in asked}
        have = {re.sub(r"_(bucket|count|sum)$", "", metric) for metric in known}
        self.assertEqual(have - shown, set(), "exported, but neither on the dashboard nor in an alert")

    def test_legends_name_labels_that_are_there(self):
        known = exported()
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", []):
                labels = set().union(*(known[metric] for metric, _ in parsed(target["expr"]).selectors))
                for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]):
                    self.assertIn(label, labels | OF_EVERY_SERIES, panel["title"])

    def test_the_dashboard_is_whole(self):
        panels = DASHBOARD["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
            self.assertFalse(taken & cells, panel["title"])
            self.assertLessEqual(place["x"] + place["w"], 24)
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["targets"], panel["title"])
        variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
        text = json.dumps(DASHBOARD)
        used = set(re.findall(r"\$\{?(\w+)\}?", text)) - {"__rate_interval"}
        self.assertEqual(used, variables)

    def test_the_alerts_are_whole(self):
        names = [rule["alert"] for rule in alerts()]
        self.assertEqual(len(set(names)), len(names))
        for rule in alerts():
            self.assertLessEqual(set(rule), {"alert", "expr", "for", "labels", "annotations"}, rule["alert"])
            self.assertIn(rule["labels"]["severity"], ("warning", "critical"))
            self.assertEqual(set(rule["annotations"]), {"summary", "description"})
            self.assertRegex(rule.get("for", "0s"), r"^\d+[smh]$")
            self.assertNotIn("$instance", rule["expr"], "a dashboard's variable")
        jobs = {matchers["job"][1] for rule in alerts() for _, matchers in parsed(rule["expr"]).selectors if "job" in matchers}
        self.assertEqual(jobs, {job["job_name"] for job in SCRAPE["scrape_configs"]})
        self.assertEqual([(FOLDER / file).exists() for file in SCRAPE["rule_files"]], [True])

    def test_promtool_takes_them(self):
        promtool = shutil.which("promtool")
        if not promtool:
            self.skipTest("there is no promtool (Debian: prometheus)")
        for what, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
            done = subprocess.run([promtool, "check", what, str(FOLDER / file)], capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        # It knows no dashboards: their expressions as rules.
        rules = [{"record": f"dashboard:{i}", "expr": expression.replace("$__rate_interval", "1m").replace("$instance", ".*")}
                 for i, (_, expression) in enumerate(dashboard_expressions())]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
            file.flush()
            done = subprocess.run([promtool, "check", "rules", file.name], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class PromqlTest(unittest.TestCase):
    def test_what_is_no_expression_is_refused(self):
        for bad in ("rate(a)", "rate(a[5m]", "a b", "a +", "sum by (x (a)", 'a{x="1"', "a{x=1}", "a[5]", "a[5m]", "1 + 2",
                    "histogram_quantile(a, 0.5)", "rates(a[5m])", "a and 1", "rate(a[5m] + 1)", "topk(a)", "a $ b", ""):
            with self.subTest(bad=bad), self.assertRaises(Malformed):
                parsed(bad)

    def test_what_is_one_is_taken_apart(self):
        parser = parsed('sum by (le) (rate(a:b_bucket{x=~"1|2", y!="3"}[5m])) / on (z) group_left () c > 2 * 3 or -d')
        self.assertEqual(parser.selectors, [("a:b_bucket", {"x": ("=~", "1|2"), "y": ("!=", "3")}), ("c", {}), ("d", {})])
        self.assertEqual(parser.labels, {"le", "z"})


if __name__ == "__main__":
    unittest.main()
