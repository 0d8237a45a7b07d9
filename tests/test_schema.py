"""Schemathesis: requests made up from the server's own OpenAPI schema; every answer must be one that the schema knows, and no 5xx."""
from collections import Counter

import pytest
from live_server import load_chat, make_service, serve
from tiny_pack import make_tiny_pack

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    with serve(make_service(load_chat(make_tiny_pack(folder)), voices_dir=folder / "voices", new_tokens=8)) as address:
        yield schemathesis.openapi.from_url(f"http://{address}/openapi.json")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_made_up_requests_get_typed_answers(schema):
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"POST /v1/chat/completions", "POST /v1/voices", "DELETE /v1/voices/{name}"} <= {operation.label for operation in operations}
    statuses = Counter()

    def answer(case):
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=[not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
                                                 checks.response_schema_conformance])
        if response.status_code >= 400:
            error = response.json()["error"]
            assert error["message"] and error["type"] and error["code"], error

    for operation in operations:
        for mode in GenerationMode:  # requests as the schema has them, and such as break it
            try:
                settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))(
                    given(operation.as_strategy(generation_mode=mode))(answer))()
            except Unsatisfiable:  # nothing can be wrong with a request without a body
                assert mode is GenerationMode.NEGATIVE and operation.method != "post"
    assert statuses[200] and statuses[400] > 15, statuses
