"""The OpenAPI document against the service: requests made up from it by schemathesis, right and wrong ones."""

from __future__ import annotations

import json
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.services import Running
from tests.unit.bundles import known_bundle

EXAMPLES = int(os.environ.get("TRIFOCAL_FUZZ_EXAMPLES", "12"))
"""Requests per operation and kind; more by hand."""

CONFORMS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Running(known_bundle(tmp_path_factory.mktemp("bundle") / "known")) as running:
        yield running


@pytest.fixture(scope="module")
def schema(service):
    load_all_checks()
    document = service.client.get("/openapi.json").json()
    found = schemathesis.openapi.from_dict(document)
    found.config.update(base_url=service.url)
    return found


def ask(case, service):
    answer = case.call(timeout=30)
    told = answer.content
    assert b"Traceback" not in told
    if answer.status_code == 504:  # a deadline of a few milliseconds was made up
        return
    case.validate_response(answer, checks=[not_a_server_error, *CONFORMS])


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_made_up_requests_get_documented_answers_and_never_a_500(service, schema, mode):
    before = service.metric("trifocal_lost_processes_total")
    seen = set()
    for operation in (found.ok() for found in schema.get_all_operations()):
        strategy = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def run(case):
            if "name" in (case.path_parameters or {}):
                # Otherwise hardly any request would get beyond the 404.
                case.path_parameters["name"] = "known"
                if len(str(case.path_parameters.get("version", ""))) % 2:
                    case.path_parameters["version"] = "1"
            seen.add(f"{case.method} {case.path}")
            ask(case, service)

        try:
            run()
        except Unsatisfiable:  # where nothing is asked for, nothing can be wrong
            assert mode == schemathesis.GenerationMode.NEGATIVE
            assert operation.method == "get"
    assert {"POST /predict", "POST /v2/models/{name}/infer", "POST /v2/models/{name}/versions/{version}/infer"} <= seen
    assert service.metric("trifocal_lost_processes_total") == before
    assert service.ready()
    assert "Traceback" not in service.text


def test_the_document_names_every_operation_once_and_shows_every_problem(service):
    document = service.client.get("/openapi.json").json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    for one in operations:
        for status, response in one["responses"].items():
            if status != "200":
                examples = response["content"]["application/problem+json"]["examples"]
                assert examples
                assert all(example["value"]["status"] == int(status) for example in examples.values())
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert infer["requestBody"]["content"]["application/json"]["example"]["inputs"]
    json.dumps(document)
    for path, answer in (("/healthz", {"status": "alive"}), ("/model", service.client.get("/model").json())):
        example = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        assert set(example) == set(answer)
