"""JSON Schema by the package jsonschema. Runs in a worker process, which alone imports the package."""

from __future__ import annotations

import json
from functools import lru_cache

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry


def accepts(text: str, definition: str) -> float:
    """1.0 where `text` is strict JSON that the schema accepts, else 0.0. Raises ValueError where it is no schema."""
    validator = _validator(definition)
    try:
        return float(validator.is_valid(json.loads(text, parse_constant=_refused)))
    except (ValueError, RecursionError):
        return 0.0


@lru_cache(maxsize=1)
def _validator(definition: str) -> Validator:
    schema = json.loads(definition)
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    # An empty registry: a schema may not make this process fetch another one from the network.
    return kind(schema, registry=Registry())


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
