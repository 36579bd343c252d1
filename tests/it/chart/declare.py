"""Declares what objects of RabbitMQ's topology operator describe, as the operator would.

    declare.py URI      a JSON list of objects from standard input; a refusal ends it with status 1
"""

import json
import sys

import pika

channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
objects = json.load(sys.stdin)
for kind in ["Exchange", "Queue", "Binding"]:
    for spec in (thing["spec"] for thing in objects if thing["kind"] == kind):
        arguments = dict(spec.get("arguments") or {})
        if kind == "Exchange":
            channel.exchange_declare(
                spec["name"], spec["type"], durable=spec["durable"], auto_delete=spec.get("autoDelete", False),
                arguments=arguments,
            )
        elif kind == "Queue":
            # The operator makes the type an argument; one that stands in both places is a mistake.
            if "type" in spec:
                assert "x-queue-type" not in arguments, spec
                arguments["x-queue-type"] = spec["type"]
            channel.queue_declare(
                spec["name"], durable=spec["durable"], auto_delete=spec.get("autoDelete", False), arguments=arguments
            )
        else:
            bind = {"queue": channel.queue_bind, "exchange": channel.exchange_bind}[spec["destinationType"]]
            bind(spec["destination"], spec["source"], spec.get("routingKey", ""), arguments)
