"""Strict validation of `serveConfigV2`, which the CRD and the operator take as an opaque string."""

import typing
import warnings
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

with warnings.catch_warnings():  # Ray Serve's own models use deprecated pydantic
    warnings.simplefilter("ignore")
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

# Serve types this one as a plain mapping and checks it when the deployment starts, which is too late.
_UNTYPED: dict[str, type[BaseModel]] = {"autoscaling_config": AutoscalingConfig}


def serve_config_errors(text: str) -> list[str]:
    """Return what Serve would refuse in `text`, and what it would silently ignore; empty if nothing."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"serveConfigV2 is not YAML: {error}"]
    if not isinstance(config, dict):
        return [f"serveConfigV2 must be a mapping, got {type(config).__name__}"]
    return [
        *_schema_errors(ServeDeploySchema, config, "serveConfigV2"),
        *_errors_below(ServeDeploySchema, config, ""),
        *_route_errors(config),
    ]


def _schema_errors(model: type[BaseModel], value: dict[str, Any], path: str) -> Iterator[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        yield f"{path}: {error}"


def _route_errors(config: dict[str, Any]) -> Iterator[str]:
    """Yield routes that the schema accepts and the deployment refuses."""
    for application in config.get("applications", []):
        route = application.get("route_prefix", "/")
        if route is not None and not route.startswith("/"):
            yield f"route_prefix '{route}' must start with '/'"


def _errors_below(model: type[BaseModel], value: Any, path: str) -> Iterator[str]:
    """Yield fields that no schema names: Serve ignores them, to accept what newer versions write."""
    if not isinstance(value, dict):
        return
    for name, child in value.items():
        child_path = f"{path}.{name}".lstrip(".")
        field = model.model_fields.get(name)
        if field is None:
            yield f"{child_path}: unknown field, known are {sorted(model.model_fields)}"
            continue
        if name in _UNTYPED and isinstance(child, dict):
            yield from _schema_errors(_UNTYPED[name], child, child_path)
        child_model = _UNTYPED.get(name) or _model_in(field.annotation)
        if child_model is not None:
            for index, item in enumerate(child if isinstance(child, list) else [child]):
                item_path = f"{child_path}[{index}]" if isinstance(child, list) else child_path
                yield from _errors_below(child_model, item, item_path)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model inside `Optional[Model]`, `list[Model]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in models if model is not None), None)
