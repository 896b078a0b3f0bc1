"""What has been measured, a line a point in a file that only grows: a run that was broken off goes on from there."""
import json


class Store:
    def __init__(self, path):
        self._path = path
        self._records = {}  # key -> record
        text = path.read_text(errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                self._records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                continue  # the run was broken off while it wrote this one
        if text and not text.endswith("\n"):
            with path.open("a") as file:
                file.write("\n")

    def __contains__(self, key):
        return key in self._records

    def __len__(self):
        return len(self._records)

    def get(self, key):
        return self._records.get(key)

    def add(self, key, settings, measured):
        record = {"key": key, "settings": settings, "measured": measured}
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._records[key] = record
