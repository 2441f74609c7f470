"""The OpenAPI description is true: what it allows is answered as it says, what it forbids is refused."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install '.[dev]'")

from schemathesis.checks import load_all_checks  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

load_all_checks()
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def description(endpoint: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", endpoint.app)


def validate(operation: Any, mode: Any, endpoint: Any, max_examples: int = 25, **changes: Any) -> None:
    """Call an operation with what its description allows or forbids; `changes` go into the body."""
    excluded = [positive_data_acceptance] if changes else []

    @settings(max_examples=max_examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if changes and isinstance(case.body, dict):
            case.body |= changes
        case.call_and_validate(excluded_checks=excluded)
        assert endpoint.service.backend.engine.stats().num_running == 0

    run()


def test_every_other_operation_does_what_its_description_says(description: Any, endpoint: Any) -> None:
    operations = {result.ok().path: result.ok() for result in description.get_all_operations()}
    assert set(operations) >= {"/healthz", "/readyz", "/v1/models", "/v1/models/{model}", CHAT, TEXT}
    for path in set(operations) - {CHAT, TEXT}:
        validate(operations[path], POSITIVE, endpoint)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_the_description_forbids_is_refused(description: Any, endpoint: Any, path: str) -> None:
    validate(description[path]["POST"], NEGATIVE, endpoint, max_examples=40)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_requests_are_answered_or_refused_by_name(description: Any, endpoint: Any, path: str) -> None:
    """A schema cannot say that roles alternate, what fits the context or what needs what, so 400 is allowed here."""
    validate(description[path]["POST"], POSITIVE, endpoint, max_examples=40, model="tiny", max_tokens=2)
