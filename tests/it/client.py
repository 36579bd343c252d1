"""A foreign client of the broker: pika, which shares nothing with the worker. One command a process, JSON lines in and out.

    client.py URI publish QUEUE                 messages from standard input, confirmed; prints {"confirmed": n}
    client.py URI stream QUEUE                  the same, each when its line comes, until standard input ends
    client.py URI read QUEUE COUNT LIMIT        takes COUNT messages within LIMIT seconds, prints each
    client.py URI await QUEUE COUNT LIMIT       waits until at least COUNT messages lie in QUEUE; prints {"ready": n}
    client.py URI call QUEUE LIMIT HOW          publishes messages from standard input and prints an answer to each, within LIMIT
                                                seconds; they come to a queue of its own, or by RabbitMQ's direct reply-to
                                                (HOW: "queue", "direct")
    client.py URI,URI tide                      publishes each message when its line comes, again until it is confirmed, at
                                                whichever broker there is; prints {"confirmed": its "id", "tries": n} for each

A message is {"body": base64, "exchange", "routing_key", "redelivered", "properties": {...}}. Nothing is skipped: what
cannot be done ends the process with a sentence on standard error and status 1.
"""

import base64
import functools
import json
import os
import sys
import threading
import time

import pika

PROPERTIES = [
    "content_type", "content_encoding", "headers", "delivery_mode", "correlation_id", "reply_to", "expiration",
    "message_id", "type", "app_id",
]
# Unconfirmed messages at one time.
WINDOW = 1000


def parameters(uri):
    if uri.startswith("amqps:"):
        sys.exit("client.py: speaks plain AMQP only")
    parsed = pika.URLParameters(uri)
    parsed.heartbeat = 30
    parsed.blocked_connection_timeout = 60
    return parsed


class Publisher:
    """Publishes with confirms, many at a time: pika's blocking channel would wait for each.

    Further messages come from `lines`, each when it is there.
    """

    def __init__(self, uri, queue, messages=(), lines=None):
        self.queue = queue
        self.messages = list(messages)
        self.lines = lines
        self.sent = 0
        self.confirmed = 0
        self.error = None
        self.connection = pika.SelectConnection(
            parameters(uri),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.opened),
            on_open_error_callback=lambda _, error: self.fail(f"no connection: {error}"),
            on_close_callback=lambda _, reason: self.closed(reason),
        )

    def run(self):
        self.connection.ioloop.start()
        if self.error:
            sys.exit(f"client.py: {self.error}")
        return self.confirmed

    def opened(self, channel):
        self.channel = channel
        channel.add_on_close_callback(lambda _, reason: self.done or self.fail(f"channel closed: {reason}"))
        channel.add_on_return_callback(lambda _, method, *rest: self.fail(f"not routed: {method.routing_key}"))
        channel.confirm_delivery(self.answered, callback=lambda _: self.start())

    def start(self):
        if self.lines:
            threading.Thread(target=self.follow, daemon=True).start()
        else:
            self.send()

    def follow(self):
        for line in self.lines:
            self.connection.ioloop.add_callback_threadsafe(functools.partial(self.add, line))
        self.connection.ioloop.add_callback_threadsafe(self.end)

    def add(self, line):
        self.messages.append(json.loads(line))
        self.send()

    def end(self):
        self.lines = None
        self.send()

    @property
    def done(self):
        return not self.lines and self.confirmed == len(self.messages)

    def send(self):
        while self.sent < len(self.messages) and self.sent - self.confirmed < WINDOW:
            message = self.messages[self.sent]
            self.sent += 1
            properties = {"delivery_mode": 2, **message.get("properties", {})}
            self.channel.basic_publish(
                exchange=message.get("exchange", ""),
                routing_key=message.get("routing_key", self.queue),
                body=base64.b64decode(message["body"]),
                properties=pika.BasicProperties(**properties),
                mandatory=True,
            )
        if self.done:
            self.connection.close()

    def answered(self, frame):
        method = frame.method
        if method.NAME != "Basic.Ack":
            return self.fail(f"the broker refused message {method.delivery_tag}")
        self.confirmed = method.delivery_tag if method.multiple else self.confirmed + 1
        self.send()

    def closed(self, reason):
        if not self.done:
            self.error = self.error or f"connection closed: {reason}"
        self.connection.ioloop.stop()

    def fail(self, why):
        self.error = self.error or why
        if self.connection.is_open:
            self.connection.close()
        else:
            self.connection.ioloop.stop()


def publish(uri, queue):
    messages = [json.loads(line) for line in sys.stdin if line.strip()]
    emit({"confirmed": Publisher(uri, queue, messages).run() if messages else 0})


def stream(uri, queue):
    emit({"confirmed": Publisher(uri, queue, lines=sys.stdin).run()})


def tide(uris):
    uris = uris.split(",")
    channel = None
    for line in sys.stdin:
        message = json.loads(line)
        body = base64.b64decode(message["body"])
        properties = pika.BasicProperties(delivery_mode=2, **message["properties"])
        tries = 0
        confirmed = False
        while not confirmed:
            try:
                if channel is None:
                    channel = pika.BlockingConnection(parameters(uris[0])).channel()
                    channel.confirm_delivery()
                tries += 1
                # Returns when it is confirmed.
                channel.basic_publish("", message["routing_key"], body, properties, mandatory=True)
                confirmed = True
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
                time.sleep(0.05)
            except (pika.exceptions.AMQPError, OSError):
                channel = None
                uris = uris[1:] + uris[:1]
                time.sleep(0.05)
        emit({"confirmed": message["id"], "tries": tries})
        sys.stdout.flush()


def read(uri, queue, count, limit):
    count, until = int(count), time.monotonic() + float(limit)
    taken = 0
    connection = pika.BlockingConnection(parameters(uri))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=min(max(count, 1), 500))
    while taken < count:
        left = until - time.monotonic()
        if left <= 0:
            sys.exit(f"client.py: {taken} of {count} messages came out of {queue} within {limit} s")
        # Ends after a silence, so that the limit is looked at.
        for method, properties, body in channel.consume(queue, inactivity_timeout=min(left, 1.0)):
            if method is None:
                break
            emit_message(method, properties, body)
            channel.basic_ack(method.delivery_tag)
            taken += 1
            if taken == count:
                break
    channel.cancel()
    connection.close()


def call(uri, queue, limit, how):
    messages = [json.loads(line) for line in sys.stdin if line.strip()]
    until = time.monotonic() + float(limit)
    connection = pika.BlockingConnection(parameters(uri))
    channel = connection.channel()
    answers = "amq.rabbitmq.reply-to"
    if how == "queue":
        answers = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
    taken = []
    channel.basic_consume(answers, lambda _, *answer: taken.append(answer), auto_ack=True)
    channel.confirm_delivery()
    for message in messages:
        properties = pika.BasicProperties(delivery_mode=2, reply_to=answers, **message["properties"])
        channel.basic_publish("", queue, base64.b64decode(message["body"]), properties, mandatory=True)
    while len(taken) < len(messages):
        left = until - time.monotonic()
        if left <= 0:
            sys.exit(f"client.py: {len(taken)} of {len(messages)} answers came within {limit} s")
        connection.process_data_events(time_limit=min(left, 1.0))
    for answer in taken:
        emit_message(*answer)
    connection.close()


def await_depth(uri, queue, count, limit):
    count, until = int(count), time.monotonic() + float(limit)
    connection = pika.BlockingConnection(parameters(uri))
    channel = connection.channel()
    while True:
        ready = channel.queue_declare(queue, passive=True).method.message_count
        if ready >= count:
            break
        if time.monotonic() >= until:
            sys.exit(f"client.py: {ready} of {count} messages lay in {queue} after {limit} s")
        connection.sleep(0.05)
    connection.close()
    emit({"ready": ready})


def emit_message(method, properties, body):
    emit({
        "body": base64.b64encode(body).decode(),
        "exchange": method.exchange,
        "routing_key": method.routing_key,
        "redelivered": method.redelivered,
        "properties": {
            name: getattr(properties, name) for name in PROPERTIES if getattr(properties, name) is not None
        },
    })


def emit(value):
    print(json.dumps(value, default=str), flush=False)


COMMANDS = {"publish": publish, "stream": stream, "read": read, "call": call, "await": await_depth, "tide": tide}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[2] not in COMMANDS:
        sys.exit(__doc__)
    try:
        COMMANDS[sys.argv[2]](sys.argv[1], *sys.argv[3:])
    except (TypeError, pika.exceptions.AMQPError, OSError) as error:
        sys.exit(f"client.py: {sys.argv[2]}: {error!r}")
    sys.stdout.flush()
    # Past whatever pika would still wait for.
    os._exit(0)
