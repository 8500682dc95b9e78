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
IDS_ALONE = "api=completions sends token ids alone, and the prompt has pictures: take api=chat"


def http_engine(config: Http) -> ServerEngine:
    """Raises ConfigError where the token's variable is not set."""
    body = chat_body if config.api == "chat" else completions_body

    def written(request: Request) -> tuple[str, Mapping[str, Any]]:
        """A field that is null in the plan is not sent."""
        whole = {"model": config.model} | body(request) | config.fields
        return PATHS[config.api], {name: value for name, value in whole.items() if value is not None}

    def problem(request: Request) -> str | None:
        return IDS_ALONE if request.pictures and config.api == "completions" else None

    return ServerEngine(
        config.urls,
        Manner(
            written=written,
            problem=problem,
            headers=bearer(config.token_env, "rollout.engine.token_env"),
            prices=(config.price_per_million_prompt_tokens, config.price_per_million_completion_tokens),
        ),
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
    )
