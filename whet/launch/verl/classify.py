"""A reward model behind verl's reward router: rendered here, scored there.

    vllm    POST /classify        {"model", "input": text, "use_activation": false}   data[-1].probs[-1]
    sglang  POST /v1/embeddings   {"model", "input": text}                            data[-1].embedding[-1]

The text is the conversation in the reward model's own template; a beginning token that the server adds again is left
out, as verl itself does.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from whet.data.render import Renderer
from whet.errors import DataError
from whet.rewards.reward import finite
from whet.rollout.retry import AGAIN, pause
from whet.schema.records import Message, Prompt, Rating
from whet.schema.rollouts import Completion, Score

AT_ONCE = 32
"""Requests that wait at the same time."""
RETRIES = 5
SECONDS = 120.0
"""For one request."""


class ServedReward:
    """Scores by a sequence classifier that verl serves."""

    def __init__(self, *, url: str, model: str, engine: str, renderer: Renderer) -> None:
        self._url, self._model, self._engine, self._renderer = url, model, engine, renderer

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            return list(pool.map(self._one, prompts, completions))

    def text(self, prompt: Prompt, completion: Completion) -> str:
        """The conversation with its answer, as the server is to read it. Raises DataError."""
        answer = (Message("assistant", completion.text),)
        draft = self._renderer.draft(
            Rating(prompt=prompt.messages, response=answer, label=True, origin=prompt.origin)
        )
        (turn,) = draft.turns
        tokenizer = self._renderer.template.tokenizer
        begin, end = tokenizer.bos_token, tokenizer.decode([self._renderer.end_id])
        head, found, _ = turn.answered.rpartition(end)  # what a template writes behind a turn is no part of it
        text = head + found if len(head) >= len(turn.prompt) else turn.answered
        return text.removeprefix(begin) if begin else text

    def _one(self, prompt: Prompt, completion: Completion) -> Score:
        try:
            body: dict[str, Any] = {"model": self._model, "input": self.text(prompt, completion)}
            if self._engine == "vllm":
                return finite(float(self._post("classify", body | {"use_activation": False})["probs"][-1]), "the model")
            return finite(float(self._post("v1/embeddings", body)["embedding"][-1]), "the model")
        except DataError as error:
            return Score(value=None, error=str(error))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            return Score(value=None, error=f"the reward model's server: {type(error).__name__}: {error}")

    def _post(self, place: str, body: dict[str, Any]) -> dict[str, Any]:
        """The last entry of the reply's `data`."""
        request = urllib.request.Request(
            f"{self._url}/{place}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        for attempt in range(RETRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                    found: dict[str, Any] = json.load(reply)["data"][-1]
                    return found
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in AGAIN or attempt == RETRIES:
                        raise
            except OSError:
                if attempt == RETRIES:
                    raise
            time.sleep(pause(attempt, place))
        raise AssertionError("the last attempt has raised")
