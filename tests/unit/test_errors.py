"""Errors: they survive pickling, and nobody else's advice gets into their message."""

import pickle

import pytest

from warren import errors
from warren.errors import NotFoundError, WarrenError


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_a_message_stays_what_it_is(kind: type[WarrenError]) -> None:
    error = kind("a.tar is damaged")
    error.args = (f"{error.args[0]}\nFailed to apply UDF transform after 1/1 attempts",)  # as Ray Data does
    assert str(error) == "a.tar is damaged"
    assert str(pickle.loads(pickle.dumps(error))) == "a.tar is damaged"
    assert type(pickle.loads(pickle.dumps(error))) is kind


def test_a_missing_bucket_is_not_a_missing_object() -> None:
    assert not issubclass(errors.BucketNotFoundError, NotFoundError)
