"""Reads a dashboard by Grafana's own types and writes it again: what does not come back is no field of that type.

    grafana.py FILE      prints nothing where all comes back; else a line for each difference, and ends with status 1
"""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

# What an annotation has from Prometheus' plugin: the types know only what annotations of all data sources have.
OF_PROMETHEUS = {"titleFormat", "tagKeys", "useValueForTime"}


def differences(ours, theirs, path):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from differences(value, theirs[key], f"{path}.{key}")
            elif not (".annotations." in path and key in OF_PROMETHEUS):
                yield f"{path}.{key} is not known"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (mine, other) in enumerate(zip(ours, theirs)):
            yield from differences(mine, other, f"{path}[{place}]")
    elif type(ours) is not type(theirs) or ours != theirs:
        yield f"{path} is {ours!r} and comes back as {theirs!r}"


register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    ours = json.load(file)
theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
found = list(differences(ours, theirs, "dashboard"))
print("\n".join(found))
sys.exit(bool(found))
