"""Reads what Helm rendered, and judges it.

    objects.py read    FILE...    prints a JSON list for each file: its objects. A key that stands twice is refused.
    objects.py judge   FILE...    prints a line for each mistake, and ends with status 1 where there is one

Judges are Kubernetes' own schemas (the oldest that the chart takes and the newest known here), types made from the resource
definitions of KEDA and of the Prometheus operator, and below a table of the four kinds of RabbitMQ's topology operator. All
refuse a field that they do not know.
"""

import functools
import importlib
import json
import sys

import yaml

MODELS = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}

# Fields that came after these types, by where they stand, and what they may say: KEDA 2.17.
LATER = {
    "ScaledObject.spec.fallback.behavior": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"],
}

# Fields of `spec` that the oldest Kubernetes does not know; the chart leaves them out there (`scale.rs`).
NEWER = {"PodDisruptionBudget": ["unhealthyPodEvictionPolicy"]}

TEXT, FLAG, NUMBER, MAP = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}, {"type": "object"}


def closed(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def topology(required, **properties):
    """Of all four kinds: where the broker is, by one of two ways, and the virtual host."""
    cluster = closed([], name=TEXT, namespace=TEXT, connectionSecret=closed(["name"], name=TEXT))
    cluster["oneOf"] = [{"required": ["name"]}, {"required": ["connectionSecret"]}]
    return closed(required + ["rabbitmqClusterReference"], rabbitmqClusterReference=cluster, vhost=TEXT, **properties)


# The operator's resource definitions (github.com/rabbitmq/messaging-topology-operator, config/crd/bases, v1beta1): the fields and
# types of `spec`. `deletionPolicy` is the newest; an operator that does not know it leaves it out.
TOPOLOGY = {
    "Queue": topology(
        ["name"],
        name=TEXT, type=TEXT, durable=FLAG, autoDelete=FLAG, arguments=MAP, deletionPolicy={"enum": ["delete", "retain"]},
    ),
    "Exchange": topology(
        ["name"], name=TEXT, type=TEXT, durable=FLAG, autoDelete=FLAG, arguments=MAP
    ),
    "Binding": topology(
        [], source=TEXT, destination=TEXT, destinationType={"enum": ["exchange", "queue"]}, routingKey=TEXT, arguments=MAP
    ),
    "Policy": topology(
        ["name", "pattern", "definition"],
        name=TEXT, pattern=TEXT, priority=NUMBER, definition=MAP, applyTo={"enum": ["queues", "exchanges", "all"]},
    ),
}


class Loader(yaml.CSafeLoader):
    """As Kubernetes reads YAML: a key twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise yaml.constructor.ConstructorError(None, None, f"twice in one map: {twice}", node.start_mark)
        return mapping


def objects(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.load_all(file, Loader) if document is not None]


def unknown(ours, theirs, path):
    """What is in `ours` and did not come back through the types."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from unknown(value, theirs[key], f"{path}.{key}")
            elif value not in LATER.get(f"{path}.{key}", []):
                yield f"{path}.{key} is not known"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (mine, other) in enumerate(zip(ours, theirs)):
            yield from unknown(mine, other, f"{path}[{place}]")
    elif type(ours) is not type(theirs) or ours != theirs:
        yield f"{path} is {ours!r} and comes back as {theirs!r}"


def mistakes(thing):
    import jsonschema
    import kubernetes_validate

    version, kind = thing.get("apiVersion"), thing.get("kind")
    if version == "rabbitmq.com/v1beta1" and kind in TOPOLOGY:
        schema = closed(
            ["apiVersion", "kind", "metadata", "spec"], apiVersion=TEXT, kind=TEXT, metadata=MAP, spec=TOPOLOGY[kind]
        )
        for error in jsonschema.Draft7Validator(schema).iter_errors(thing):
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
    elif version in MODELS:
        model = getattr(importlib.import_module(MODELS[version]), kind, None)
        if model is None:
            yield f"there is no {kind} in {version}"
            return
        try:
            read = model.model_validate(thing, strict=True)
        except ValueError as error:
            yield " ".join(str(error).split())
            return
        yield from unknown(thing, read.model_dump(by_alias=True, exclude_unset=True, mode="json"), kind)
    else:
        # Chart.yaml's kubeVersion, and the newest that there is.
        older = dict(thing)
        if isinstance(thing.get("spec"), dict):
            older["spec"] = {key: value for key, value in thing["spec"].items() if key not in NEWER.get(kind, [])}
        for version, laid in [("1.25.0", older), (kubernetes_validate.latest_version(), thing)]:
            try:
                kubernetes_validate.validate(laid, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{'.'.join(map(str, error.path))}: {error.message} (Kubernetes {version})"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield error.message


@functools.cache
def judged(text):
    return list(mistakes(json.loads(text)))


def main(command, *paths):
    if command == "read":
        for path in paths:
            print(json.dumps(objects(path)))
        return 0
    found = [
        f"{path}: {thing.get('kind')}/{thing.get('metadata', {}).get('name')}: {mistake}"
        for path in paths
        for thing in objects(path)
        for mistake in judged(json.dumps(thing, sort_keys=True))
    ]
    print("\n".join(found))
    return int(bool(found))


sys.exit(main(*sys.argv[1:]))
