"""The one rule for names that become parts of paths: runs, datasets, versions, releases and recipes."""

import re
from typing import Annotated

from pydantic import AfterValidator

from warren.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ENGINE_MARK = "-engine-"  # between an endpoint's name and a release's version
_ALLOWED = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 100 of them"


def check_name(name: str, what: str = "name") -> str:
    """Return a name that may become one part of a path.

    Args:
        what: What the name is of, for the message.

    Raises:
        ConfigError: It is not such a name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {_shown(name)} is not a name: allowed are {_ALLOWED}")
    return name


def check_endpoint(name: str) -> str:
    """Return a name that an endpoint's application may have.

    Raises:
        ConfigError: It is not a name, or it is one that engines have: an endpoint takes what begins with its own name
            and `-engine-` for engines of its own, and deletes those that it does not know.
    """
    if ENGINE_MARK in check_name(name, "endpoint"):
        raise ConfigError(
            f"endpoint {_shown(name)}: {ENGINE_MARK!r} is for applications of engines; choose another name"
        )
    return name


def split_dataset(reference: str) -> tuple[str, str]:
    """Return name and version of a dataset reference `name@version`.

    Raises:
        ConfigError: The reference is not of that form, or one of the two is not a name.
    """
    name, at, version = reference.partition("@")
    if not (name and at and version):
        raise ConfigError(f"dataset {_shown(reference)}: expected name@version, for example easy-vqa-train@v1")
    what = f"dataset {_shown(reference)}:"
    return check_name(name, f"{what} the name"), check_name(version, f"{what} the version")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}…")


def _name(value: str) -> str:
    try:
        return check_name(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _endpoint(value: str) -> str:
    try:
        return check_endpoint(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _dataset(value: str) -> str:
    try:
        split_dataset(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return value


Name = Annotated[str, AfterValidator(_name)]
EndpointName = Annotated[str, AfterValidator(_endpoint)]
DatasetReference = Annotated[str, AfterValidator(_dataset)]
