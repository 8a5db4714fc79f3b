"""Requests made up from the OpenAPI document never make the server fail."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from luma_server import Settings, create_app

schemathesis = pytest.importorskip("schemathesis")


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::Warning")
def test_no_request_fails_the_server(root, serving) -> None:
    app = create_app(Settings(root=root, allow_anonymous=True, part_bytes=1024))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    with serving(app) as url:
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) > 25
        for operation in operations:

            @settings(
                max_examples=40,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            )
            @given(case=operation.as_strategy())
            def check(case) -> None:
                response = case.call(base_url=url)
                assert response.status_code < 500, (case.as_curl_command(), response.text)
                if response.status_code >= 400:
                    (kind,) = response.headers["content-type"]
                    assert kind == "application/problem+json", response.text

            check()
