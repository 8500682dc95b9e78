"""Requests and completions in the words of OpenAI's API, as chat messages or as token ids.

    POST /v1/chat/completions    {"model": ..., "messages": [...], "max_tokens": 256, "temperature": 0.7, "seed": ...}
    POST /v1/completions         {"model": ..., "prompt": [12, 7, ...], "logprobs": 0, "return_token_ids": true, ...}

Pictures travel in messages, as `data:` URLs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.data.picture_files import sent
from whet.errors import whole
from whet.schema.records import Message
from whet.schema.rollouts import Completion, FinishReason, Request

ENDINGS: Mapping[str, FinishReason] = {"length": "length", "content_filter": "error", "abort": "error"}
"""What a server calls the end of an answer; everything else is a stop."""


MISREAD = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What reading a reply of another form raises."""


class NotReadable(Exception):
    """A reply of another form than the API's: it may have been cut short, or come from something in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a server counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


def seed_of(request: Request) -> int:
    """A whole number of 31 bits for servers, a function of (seed, key)."""
    digest = hashlib.sha256(f"{request.seed}/{request.key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def chat_body(request: Request) -> dict[str, Any]:
    """Raises DataError where a picture cannot be used."""
    tools = {"tools": [_tool(tool) for tool in request.tools]} if request.tools else {}
    return {"messages": messages_of(request.messages)} | _sampling(request) | tools


def completions_body(request: Request) -> dict[str, Any]:
    asked = {"prompt": list(request.prompt_ids), "return_token_ids": True} | _sampling(request)
    return asked | ({"logprobs": 0} if request.logprobs else {})


def measuring_bodies(request: Request) -> list[dict[str, Any]]:
    """For each continuation the prompt with it behind, whose log-probs are asked for: in vLLM's words."""
    asked = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    return [{"prompt": [*request.prompt_ids, *ids]} | asked for ids in request.continuations]


def _sampling(request: Request) -> dict[str, Any]:
    """What is as usual is not said: not every server knows the words."""
    how = request.sampling
    rarer = {"top_k": how.top_k, "min_p": how.min_p, "min_tokens": how.min_new_tokens, "stop": list(how.stop)}
    said = {"max_tokens": how.max_new_tokens, "temperature": how.temperature, "top_p": how.top_p}
    return said | {"seed": seed_of(request)} | {name: value for name, value in rarer.items() if value}


def messages_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Calls get numbers, and the turns of tools answer them in their order."""
    said: list[dict[str, Any]] = []
    open_calls: list[str] = []
    num_calls = 0
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": _content(message)}
        if message.tool_calls:
            turn["tool_calls"] = []
            for call in message.tool_calls:
                name, num_calls = f"call_{num_calls}", num_calls + 1
                arguments = call.get("arguments", {})
                text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                function = {"name": call["name"], "arguments": text}
                turn["tool_calls"].append({"id": name, "type": "function", "function": function})
                open_calls.append(name)
        if message.role == "tool" and open_calls:
            turn["tool_call_id"] = open_calls.pop(0)
        said.append(turn)
    return said


def _content(message: Message) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    return [
        {"type": "text", "text": part.value} if part.type == "text"
        else {"type": "image_url", "image_url": {"url": sent(part.value)}}
        for part in message.content
    ]  # fmt: skip


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": dict(tool)}


def read_reply(request: Request, body: bytes, *, same_prompt: bool = False) -> tuple[Completion, Usage]:
    """The first choice of a reply. With `same_prompt` an answer to other ids than the request's is an error, where the
    server says which ids it read. Raises NotReadable."""
    try:
        reply = json.loads(body)
        choice, counted = reply["choices"][0], _usage(reply)
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        ids = tuple(int(token) for token in choice.get("token_ids") or ())
        known = choice.get("logprobs") or {}
        values = known.get("token_logprobs") or [token["logprob"] for token in known.get("content") or ()]
        logprobs = tuple(map(float, values)) if ids else ()
        read = reply.get("prompt_token_ids") or choice.get("prompt_token_ids") if same_prompt else None
        ending = str(choice.get("finish_reason") or "stop")
    except MISREAD as error:
        raise NotReadable(f"the reply cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(text, str | None) or (ids and len(logprobs) not in (0, len(ids))):
        raise NotReadable("the reply cannot be read: no text, or ids and log-probs of different lengths")
    if ending == "abort":
        raise NotReadable("the server broke the answer off")
    if read is not None and (at := _differs(request.prompt_ids, read)) is not None:
        return failed(request, f"the server read another prompt: {at}"), counted
    finish = ENDINGS.get(ending, "stop")
    return Completion(
        key=request.key,
        ids=ids,
        text=whole(text or ""),  # a server that cuts a character in two escapes a half
        logprobs=logprobs,
        finish_reason=finish,
        counted_tokens=None if ids else counted.completion_tokens,
        error=f"the server ended the answer: {ending}" if finish == "error" else None,
    ), counted


def read_last_logprobs(num_tokens: int, body: bytes) -> tuple[float, Usage]:
    """The log-probs of the prompt's last tokens, summed. Raises NotReadable."""
    try:
        reply = json.loads(body)
        known = reply["choices"][0]["prompt_logprobs"][-num_tokens:]
        # Of each token the likeliest stand beside it; at 0 of these, it stands alone.
        values = [float(value["logprob"]) for token in known for value in token.values()]
        counted = _usage(reply)
    except MISREAD as error:
        raise NotReadable(f"the reply cannot be read ({type(error).__name__}: {error})") from None
    if len(values) != num_tokens:
        raise NotReadable(f"the reply cannot be read: {len(values)} log-probs for {num_tokens} tokens")
    return sum(values), counted


def _usage(reply: Mapping[str, Any]) -> Usage:
    said = reply.get("usage") or {}
    return Usage(**{name: int(said.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")})


def _differs(ours: Sequence[int], theirs: Sequence[int]) -> str | None:
    """Where two prompts part."""
    if list(ours) == list(theirs):
        return None
    shorter = min(len(ours), len(theirs))
    at = next((place for place in range(shorter) if ours[place] != theirs[place]), shorter)
    return f"{len(theirs)} tokens for our {len(ours)}, other ones from token {at} on"


def failed(request: Request, reason: str) -> Completion:
    """A request that was not answered, as data."""
    return Completion(key=request.key, ids=(), text="", logprobs=(), finish_reason="error", error=reason)


def complaint(body: bytes) -> str:
    """What a server says is wrong: its message, or the beginning of what it sent, on one line."""
    try:
        said = json.loads(body)
        error = said.get("error", said) if isinstance(said, dict) else said
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, RecursionError, AttributeError):
        text = body.decode("utf-8", "replace")
    return " ".join(whole(str(text or "")).split())[:300]
