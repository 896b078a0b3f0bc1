"""As much of PromQL as dashboards and alerts use: whether an expression is one, of what type, and what it asks for.
Prometheus' own promtool says more, where it is installed."""
import re

TOKEN = re.compile(r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]))
  | (?P<duration>\d+(?:ms|[smhdwy])|\$__rate_interval|\$__interval)
  | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<operator>=~|!~|==|!=|<=|>=|[-+*/%^<>=(){}\[\],])
)""", re.VERBOSE)

RANGE_FUNCTIONS = {"rate", "increase", "max_over_time", "min_over_time", "avg_over_time", "changes"}
AGGREGATIONS = {"sum", "max", "min", "avg", "count"}
WITH_A_PARAMETER = {"topk", "bottomk"}
LEVELS = (("or",), ("and", "unless"), ("==", "!=", "<=", "<", ">=", ">"), ("+", "-"), ("*", "/", "%"))


class Malformed(Exception):
    """Not an expression; says where."""


class Parser:
    def __init__(self, text):
        self.text = text
        self.tokens = []  # (kind, text)
        place = 0
        while text[place:].strip():
            found = TOKEN.match(text, place)
            if not found:
                raise Malformed(f"{text[place:place + 20]!r} in {text!r}")
            self.tokens.append((found.lastgroup, found.group(found.lastgroup)))
            place = found.end()
        self.place = 0
        self.selectors = []  # (metric, {label: (operator, value)})
        self.labels = set()  # that aggregations and joins go by

    def parse(self):
        """-> the type: scalar, vector or matrix"""
        kind = self.binary(0)
        self.want(None)
        return kind

    def peek(self):
        return self.tokens[self.place] if self.place < len(self.tokens) else (None, None)

    def take(self, *texts):
        """-> the next token, if it is one of these"""
        if self.peek()[1] not in texts or self.peek()[1] is None:
            return None
        self.place += 1
        return self.tokens[self.place - 1][1]

    def want(self, text, kind=None):
        found = self.peek()
        if (kind and found[0] != kind) or (not kind and found[1] != text):
            raise Malformed(f"{found[1]!r} instead of {text or kind or 'the end'} in {self.text!r}")
        self.place += 1
        return found[1]

    def binary(self, level):
        if level == len(LEVELS):
            return self.unary()
        left = self.binary(level + 1)
        while operator := self.take(*LEVELS[level]):
            self.take("bool")
            if self.take("on", "ignoring"):
                self.label_list()
                if self.take("group_left", "group_right"):
                    self.label_list()
            right = self.binary(level + 1)
            if "matrix" in (left, right) or (operator in LEVELS[0] + LEVELS[1] and "scalar" in (left, right)):
                raise Malformed(f"{left} {operator} {right} in {self.text!r}")
            left = "vector" if "vector" in (left, right) else "scalar"
        return left

    def unary(self):
        if self.take("-", "+"):
            return self.unary()
        if self.take("("):
            kind = self.binary(0)
            self.want(")")
            return kind
        if self.peek()[0] == "number":
            self.place += 1
            return "scalar"
        return self.call_or_selector(self.want("a name", kind="name"))

    def call_or_selector(self, name):
        if name in AGGREGATIONS | WITH_A_PARAMETER:
            by = self.take("by", "without")
            if by:
                self.label_list()
            self.arguments(["scalar", "vector"] if name in WITH_A_PARAMETER else ["vector"])
            if not by and self.take("by", "without"):
                self.label_list()
            return "vector"
        if name == "histogram_quantile":
            return self.arguments(["scalar", "vector"])
        if name in RANGE_FUNCTIONS:
            return self.arguments(["matrix"])
        if self.peek()[1] == "(":
            raise Malformed(f"unknown function {name} in {self.text!r}")
        return self.selector(name)

    def arguments(self, kinds):
        self.want("(")
        for i, kind in enumerate(kinds):
            if i:
                self.want(",")
            found = self.binary(0)
            if found != kind:
                raise Malformed(f"{found} instead of {kind} in {self.text!r}")
        self.want(")")
        return "vector"

    def label_list(self):
        self.want("(")
        while not self.take(")"):
            self.labels.add(self.want("a label", kind="name"))
            if self.peek()[1] != ")":
                self.want(",")

    def selector(self, metric):
        matchers = {}
        if self.take("{"):
            while not self.take("}"):
                label = self.want("a label", kind="name")
                operator = self.take("=", "!=", "=~", "!~") or self.want("a matcher")
                matchers[label] = (operator, self.want("a value", kind="string")[1:-1])
                if self.peek()[1] != "}":
                    self.want(",")
        self.selectors.append((metric, matchers))
        if not self.take("["):
            return "vector"
        self.want("a duration", kind="duration")
        self.want("]")
        return "matrix"
