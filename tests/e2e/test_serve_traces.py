"""Traces as a collector receives them: spans of a real service over OTLP, below the caller's own trace."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.services import ROOT, Running, picture
from tests.unit.bundles import known_bundle

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps the spans that are posted to it, with the resource's attributes."""

    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    outer.resource = plain(group.resource.attributes)
                    for scope in group.scope_spans:
                        outer.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.spans, self.resource = [], {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, request_id: str) -> dict:
        """The spans of one request by name, once its own has come."""
        deadline = time.monotonic() + 20
        while True:
            roots = [s for s in self.spans if plain(s.attributes).get("trifocal.request_id") == request_id]
            if roots:
                return {span.name: span for span in self.spans if span.trace_id == roots[0].trace_id}
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.05)


def plain(attributes):
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@pytest.fixture(scope="module")
def collector():
    found = Collector()
    yield found
    found.server.shutdown()


@pytest.fixture(scope="module")
def service(tmp_path_factory, collector):
    bundle = known_bundle(tmp_path_factory.mktemp("bundle") / "known")
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with Running(bundle, "--traces", "--log-format", "json", **told) as running:
        yield running


def test_a_request_is_one_trace_below_its_callers(service, collector):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "first"}
    answer = service.client.post("/predict", content=picture(480, 640), headers=headers)
    assert answer.status_code == 200
    spans = collector.of("first")
    assert set(spans) == {"POST /predict", "read", "decode", "queue", "engine", "answer"}
    assert collector.resource["service.name"] == "trifocal"
    root = spans.pop("POST /predict")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.kind == root.SPAN_KIND_SERVER
    told = plain(root.attributes)
    assert told["http.route"] == "/predict"
    assert told["http.response.status_code"] == 200
    assert told["trifocal.model_version"] == "1"
    times = [root.start_time_unix_nano]
    for span in spans.values():
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    times = [spans[name].start_time_unix_nano for name in ("read", "decode", "queue", "engine", "answer")]
    assert times == sorted(times)
    # The log names the trace, for whoever comes from there.
    service.wait_for(f'"trace": "{TRACE}"')


def test_a_refused_picture_is_an_error_of_its_span_and_a_bad_parent_begins_anew(service, collector):
    headers = {"traceparent": "00-not-a-trace", "X-Request-ID": "second"}
    assert service.client.post("/predict", content=b"no picture", headers=headers).status_code == 415
    spans = collector.of("second")
    assert set(spans) == {"POST /predict", "read", "decode"}
    assert spans["POST /predict"].parent_span_id == b""
    assert plain(spans["POST /predict"].attributes)["error.type"] == "unsupported-format"
    assert plain(spans["decode"].attributes)["error.type"] == "unsupported-format"
    assert not spans["decode"].events  # no stack trace leaves the service


def test_probes_are_not_traced_and_what_is_left_is_sent_at_the_end(tmp_path, collector):
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "eyes"}
    with Running(known_bundle(tmp_path / "known"), "--traces", "--drain", "0", **told) as service:
        service.client.get("/model")
        service.client.post("/predict", content=picture(), headers={"X-Request-ID": "third"})
        assert service.stop() == 0
    assert collector.of("third")
    assert collector.resource["service.name"] == "eyes"
    assert not [span for span in collector.spans if span.name.startswith("GET") or span.name == "POST"]


def test_a_collector_that_is_down_costs_no_answer_and_no_noise(tmp_path):
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with Running(known_bundle(tmp_path / "known"), "--traces", "--drain", "0", **told) as service:
        for _ in range(3):
            assert service.client.post("/predict", content=picture()).status_code == 200
        begun = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begun < 8
        assert "Traceback" not in service.text
        assert "opentelemetry" not in service.text.lower()


def test_without_the_extra_the_option_says_what_to_install():
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from pipeline.cli import main; sys.exit(main(['serve', 'nowhere', '--port', '0', '--traces']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --traces needs OpenTelemetry")
    assert "trifocal[otel]" in done.stderr


def test_switched_off_nothing_of_it_is_imported():
    code = "import sys, serving.command, serving.server; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
