#!/usr/bin/env python3
"""Checks the dashboards against Grafana's schema: the types that Grafana generates from it and publishes for Python.

A dashboard is read into those types and written again. What they do not know is lost on the way, so each key and value of
ours must come back; a value of an enumeration that there is not cannot be read at all. Needs requirements.txt.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

HERE = pathlib.Path(__file__).parent

# Of annotations the schema knows what all data sources have; these are the keys of Prometheus' own.
OF_THE_PLUGIN = {"annotations.list.expr", "annotations.list.step", "annotations.list.titleFormat"}


def lost(path, before, after):
    """What is in one and not in the other; defaults may be added."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            inner = f"{path}.{key}" if path else key
            if key in after:
                yield from lost(inner, value, after[key])
            # A null is no value, and an empty list none either.
            elif inner not in OF_THE_PLUGIN and value not in (None, [], {}, ""):
                yield f"{inner} is not in the schema: {value!r}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after):
            yield from lost(path, one, other)
    elif before != after:
        yield f"{path} is {before!r}, and {after!r} in the schema"


def main():
    plugins.register_default_plugins()
    wrong = []
    files = sorted(HERE.glob("*.json"))
    for file in files:
        before = json.loads(file.read_text())
        after = json.loads(JSONEncoder().encode(Dashboard.from_json(before)))
        wrong += [f"{file.name}: {problem}" for problem in lost("", before, after)]
    if wrong:
        sys.exit("\n".join(sorted(set(wrong))))
    print(f"{len(files)} dashboards are as Grafana's schema says")


if __name__ == "__main__":
    main()
