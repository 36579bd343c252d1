"""A collector of spans that shares nothing with the worker: it reads OTLP by OpenTelemetry's own definitions.

    collector.py take SECRET    takes spans from who shows SECRET as `x-secret`, and prints each as a JSON line
    collector.py hang           takes connections and requests, and answers nothing

Says on standard error where it listens, and ends with its standard input.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

CONTENT = "application/x-protobuf"


def plain(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def spans(request):
    for process in request.resource_spans:
        for library in process.scope_spans:
            for span in library.spans:
                yield {
                    "resource": plain(process.resource.attributes),
                    "scope": library.scope.name,
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "trace_state": span.trace_state,
                    "flags": span.flags,
                    "name": span.name,
                    "kind": span.SpanKind.Name(span.kind),
                    "began": span.start_time_unix_nano,
                    "ended": span.end_time_unix_nano,
                    "status": span.status.StatusCode.Name(span.status.code),
                    "message": span.status.message,
                    "attributes": plain(span.attributes),
                }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if sys.argv[1] == "hang":
            threading.Event().wait()
        right = (self.path, self.headers["content-type"], self.headers["x-secret"])
        if right != ("/v1/traces", CONTENT, sys.argv[2]):
            sys.exit(f"collector.py: asked for {right}")
        for span in spans(ExportTraceServiceRequest.FromString(body)):
            print(json.dumps(span), flush=True)
        self.send_response(200)
        self.send_header("content-type", CONTENT)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening on {server.server_address[1]}", file=sys.stderr, flush=True)
    sys.stdin.read()
    os._exit(0)
