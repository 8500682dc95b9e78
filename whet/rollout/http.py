"""Any server that speaks OpenAI's API, as an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whet.config.engine import Http
from whet.rollout.bearer import bearer
from whet.rollout.server import Manner, ServerEngine
from whet.rollout.wire import chat_body, completions_body
from whet.schema.rollouts import Request

PATHS = {"chat": "/chat/completions", "completions": "/completions"}


def http_engine(config: Http) -> ServerEngine:
    """Raises ConfigError where the token's variable is not set."""
    written = chat_body if config.api == "chat" else completions_body

    def body(request: Request) -> Mapping[str, Any]:
        """A field that is null in the plan is not sent."""
        whole = {"model": config.model} | written(request) | config.fields
        return {name: value for name, value in whole.items() if value is not None}

    return ServerEngine(
        config.urls,
        Manner(
            path=PATHS[config.api],
            body=body,
            headers=bearer(config.token_env, "rollout.engine.token_env"),
            prices=(config.price_per_million_prompt_tokens, config.price_per_million_completion_tokens),
        ),
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
    )
