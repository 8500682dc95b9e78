"""What verl cannot do, said with the key of the plan it is about."""

from __future__ import annotations

from whet.errors import ConfigError


def refused(field: str, why: str, *, found: object = None, fix: str | None = None) -> ConfigError:
    """`why` says what verl does instead, or lacks."""
    return ConfigError(why, field=field, found=None if found is None else str(found), fix=fix)
