"""Requests made from the application's own schema. None gets a server error, except that the queue
is full."""

import itertools
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from dpo_train import sample
from serve import api, meters, models
from serve.instruments import LocalInstruments
from tests.helpers.app_server import Server


@pytest.mark.slow
def test_no_request_is_a_server_error() -> None:
    loaded = models.load([f"winner={sample.MODEL}"], slots=4, context=64, max_waiting=40)
    counts: Counter[tuple[str, int]] = Counter()
    app = api.create_app(loaded, None)
    meters.mount(app, loaded, LocalInstruments())
    with Server(app) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation, mode in itertools.product(operations, schemathesis.GenerationMode):
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method == "get":
                continue  # a path alone can't be wrong

            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                answer = case.call(timeout=60)
                counts[case.path, answer.status_code] += 1
                assert answer.status_code < 500 or "retry-after" in answer.headers, answer.text
                if answer.status_code >= 400:
                    assert answer.json()["error"]["message"]

            check()
    loaded["winner"].engine.close()
    assert counts.total() > 200
    for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
        assert counts[path, 200] > 5
        assert counts[path, 400] > 5
