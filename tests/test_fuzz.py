"""Requests made from the application's own schema: none is answered with a server's error other
than that the queue is full."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from dpo_train import sample
from serve import api, models
from tests.test_api import Server


@pytest.mark.slow
def test_no_request_is_a_server_error() -> None:
    loaded = models.load([f"winner={sample.MODEL}"], slots=4, context=64, most_waiting=40)
    asked = 0
    with Server(api.create_app(loaded, api.Limits(), None)) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for operation in (found.ok() for found in schema.get_all_operations()):

            @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                nonlocal asked
                asked += 1
                answer = case.call(timeout=60)
                assert answer.status_code < 500 or "Retry-After" in answer.headers, answer.text
                if answer.status_code >= 400:
                    assert answer.json()["error"]["message"]

            check()
    loaded["winner"].engine.close()
    assert asked > 200
