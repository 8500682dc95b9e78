"""The package bitsandbytes: optional, and imported here only."""

from __future__ import annotations

from types import ModuleType

from whet.errors import RunError


def bitsandbytes(field: str, found: str) -> ModuleType:
    """The package. Raises RunError where it is missing: `field` of the plan asks for it by its value `found`."""
    try:
        import bitsandbytes as package  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise RunError(
            "needs a package that is not installed", field=field, found=found, fix="pip install bitsandbytes"
        ) from None
    loaded: ModuleType = package
    return loaded
