"""Files of settings, in which every field is used or refused by name."""
import json
import tomllib
from pathlib import Path


class PlanError(Exception):
    """What the user has to put right."""


class Fields:
    """One object of a file. where: how its fields are named in a refusal, such as `cluster.json.workers[2]`"""

    def __init__(self, content, where):
        if not isinstance(content, dict):
            raise PlanError(f"{where}: expected an object")
        self.where = where
        self._content = dict(content)

    def __contains__(self, name):
        return name in self._content

    def _take(self, name, default, required, is_right, expected):
        if name not in self._content:
            if required:
                raise PlanError(f"{self.where}: field '{name}' is missing")
            return default
        value = self._content.pop(name)
        if not is_right(value):
            raise PlanError(f"{self.where}: field '{name}': expected {expected}")
        return value

    def text(self, name, default=None, required=True):
        return self._take(name, default, required and default is None, lambda value: isinstance(value, str) and value, "a text")

    def number(self, name, default=None, low=0.0, high=1e30, required=True):
        """low is not allowed itself, unless it is 0 and so is the default"""
        def is_right(value):
            return isinstance(value, (int, float)) and not isinstance(value, bool) and (low < value or (low == value == default)) and value <= high
        return self._take(name, default, required and default is None, is_right, f"a number above {low:g}" + (f", at most {high:g}" if high < 1e30 else ""))

    def whole(self, name, default=None, low=0, high=10**18):
        def is_right(value):
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return self._take(name, default, default is None, is_right, f"a whole number from {low} to {high}")

    def list(self, name, default=None):
        return self._take(name, default, default is None, lambda value: isinstance(value, list), "a list")

    def object(self, name, required=True):
        content = self._take(name, None, required, lambda value: isinstance(value, dict), "an object")
        return None if content is None else Fields(content, f"{self.where}.{name}")

    def objects(self, name):
        return [Fields(content, f"{self.where}.{name}[{index}]") for index, content in enumerate(self.list(name))]

    def names(self):
        return list(self._content)

    def drop(self, *names):
        """Fields that are known and say nothing here"""
        for name in names:
            self._content.pop(name, None)

    def finish(self):
        for name in self._content:
            raise PlanError(f"{self.where}: unknown field '{name}'")


def _pairs(pairs):
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"field '{name}' is there twice")
    return dict(pairs)


def read_json(path):
    try:
        content = json.loads(Path(path).read_text(), object_pairs_hook=_pairs)
    except ValueError as error:
        raise PlanError(f"{path}: not JSON: {error}") from None
    return Fields(content, str(path))


def read_toml(path):
    try:
        content = tomllib.loads(Path(path).read_text())
    except ValueError as error:
        raise PlanError(f"{path}: not TOML: {error}") from None
    return Fields(content, str(path))
