"""The key of a server: it stands in the environment, and nowhere else."""

from __future__ import annotations

import os

from whet.errors import ConfigError


def bearer(token_env: str | None, field: str) -> dict[str, str]:
    """The header with the token of this variable; none without one. Raises ConfigError, naming the field, where the
    variable is not set."""
    if token_env is None:
        return {}
    token = os.environ.get(token_env)
    if not token:
        raise ConfigError("is not set in the environment", field=field, found=token_env)
    return {"Authorization": f"Bearer {token}"}
