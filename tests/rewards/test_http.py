"""Scores from a server: a real one on this machine, in every mood."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.rewards.made import completion, prompt
from whet.config.rewards import Http
from whet.errors import ConfigError
from whet.rewards.http import HttpReward
from whet.rollout import retry
from whet.schema.rollouts import Score

Answer = Callable[[dict[str, Any], int], tuple[int, bytes, dict[str, str]]]


class Server:
    """Answers by a function of the request and its number; keeps what it was sent."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body, number: good(body)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.stopped = threading.Event()
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    server.headers.append(dict(self.headers))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"scores": [9.0]}')

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    number = len(server.bodies)
                status, reply, headers = server.answer(body, number)
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                if reply == b"endless headers":
                    self.flush_headers()
                    while not server.stopped.wait(0.05):
                        try:
                            self.wfile.write(b"a")
                        except OSError:
                            return
                self.end_headers()
                if reply == b"trickle":
                    while not server.stopped.wait(0.05):
                        try:
                            self.wfile.write(b" ")
                        except OSError:
                            return
                self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/score"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def good(body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    """The length of each completion."""
    return 200, json.dumps({"scores": [len(text) for text in body["completions"]]}).encode(), {}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    running = Server()
    yield running
    running.close()


def scores(server: Server, texts: list[str], **config: object) -> list[Score]:
    reward = HttpReward(Http.model_validate({"url": server.url, "timeout": 5.0} | config))
    return reward.score([prompt("r", task="t")] * len(texts), [completion(text) for text in texts])


def test_what_is_sent_and_what_comes_back(server: Server) -> None:
    assert [scored.value for scored in scores(server, ["a", "bb", "ccc"], batch=2, concurrency=1)] == [1.0, 2.0, 3.0]
    first, second = server.bodies
    assert first == {
        "prompts": ["How much?"] * 2,
        "messages": [[{"role": "system", "content": "Be short."}, {"role": "user", "content": "How much?"}]] * 2,
        "completions": ["a", "bb"],
        "columns": [{"task": "t", "reference": "r"}] * 2,
    }
    assert second["completions"] == ["ccc"]
    assert server.headers[0]["Content-Type"] == "application/json" and "Authorization" not in server.headers[0]


def test_the_order_is_kept_however_many_wait(server: Server) -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        time.sleep(0.2 if number % 2 else 0.0)
        return good(body)

    server.answer = answer
    texts = ["x" * length for length in range(1, 17)]
    assert [scored.value for scored in scores(server, texts, batch=2, concurrency=8)] == list(range(1, 17))


def test_null_parts_and_nonsense(server: Server) -> None:
    server.answer = lambda body, number: (
        200, b'{"scores": [null, {"score": 0.5, "form": 1}, "good", NaN, {"a": 1, "b": 2}, true]}', {}
    )  # fmt: skip
    null, parts, word, nan, summed, true = scores(server, list("abcdef"))
    assert (null.value, null.error) == (None, "the server must return a number (found None)")
    assert (parts.value, dict(parts.parts)) == (0.5, {"form": 1.0})
    assert word.value is None and nan.value is None
    assert (summed.value, dict(summed.parts)) == (3.0, {"a": 1.0, "b": 2.0})
    assert true.value == 1.0


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_it_is_asked_again(server: Server, status: int) -> None:
    server.answer = lambda body, number: (status, b"later", {}) if number < 3 else good(body)
    assert scores(server, ["abc"])[0].value == 3.0
    assert len(server.bodies) == 3


def test_it_waits_as_long_as_it_is_told(server: Server) -> None:
    server.answer = lambda body, number: (429, b"", {"Retry-After": "1"}) if number == 1 else good(body)
    begun = time.perf_counter()
    assert scores(server, ["abc"])[0].value == 3.0
    assert time.perf_counter() - begun >= 1.0


def test_in_the_end_it_gives_up(server: Server) -> None:
    server.answer = lambda body, number: (503, b"", {})
    failed = scores(server, ["a", "b"], retries=2)
    assert [scored.value for scored in failed] == [None, None]
    assert {scored.error for scored in failed} == {f"{server.url}: status 503"}
    assert len(server.bodies) == 3


def test_one_batch_that_fails_takes_no_other_with_it(server: Server) -> None:
    server.answer = lambda body, number: (400, b"", {}) if body["completions"] == ["bb"] else good(body)
    assert [scored.value for scored in scores(server, ["a", "bb", "c"], batch=1)] == [1.0, None, 1.0]
    assert len(server.bodies) == 3, "a bad request is not made again"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"<html>", "the reply is no JSON"),
        (b"", "the reply is no JSON"),
        (b"\xff\xfe", "the reply is no JSON"),
        (b"[1]", "the reply must hold 1 scores (found no list `scores`)"),
        (b'{"score": [1]}', "the reply must hold 1 scores (found no list `scores`)"),
        (b'{"scores": [1, 2]}', "the reply must hold 1 scores (found 2 scores)"),
        (b"[" * 100_000, "the reply is no JSON"),
    ],
)
def test_a_reply_of_another_form(server: Server, reply: bytes, reason: str) -> None:
    server.answer = lambda body, number: (200, reply, {})
    (scored,) = scores(server, ["a"])
    assert scored.value is None and reason in str(scored.error)


def test_no_answer_in_time(server: Server) -> None:
    server.answer = lambda body, number: (server.stopped.wait(20), good(body))[1]
    begun = time.perf_counter()
    (scored,) = scores(server, ["a"], timeout=0.3, retries=1)
    assert scored.value is None and "timed out" in str(scored.error)
    assert len(server.bodies) == 2 and time.perf_counter() - begun < 5.0


def test_an_answer_that_trickles(server: Server) -> None:
    """Every byte comes in time, the whole never does."""
    server.answer = lambda body, number: (200, b"trickle", {})
    begun = time.perf_counter()
    (scored,) = scores(server, ["a"], timeout=0.5, retries=0)
    assert scored.value is None and "did not end in time" in str(scored.error)
    assert time.perf_counter() - begun < 5.0


def test_headers_that_trickle(server: Server) -> None:
    server.answer = lambda body, number: (200, b"endless headers", {})
    begun = time.perf_counter()
    (scored,) = scores(server, ["a"], timeout=0.3, retries=0)
    assert scored.value is None and "the headers did not end" in str(scored.error)
    assert time.perf_counter() - begun < 5.0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token would go along, to whatever host it names."""
    monkeypatch.setenv("MY_TOKEN", "abc")
    server.answer = lambda body, number: (status, b"", {"Location": server.url})
    (scored,) = scores(server, ["a"], token_env="MY_TOKEN")
    assert (scored.value, scored.error) == (None, f"{server.url}: status {status}")
    assert len(server.headers) == 1


def test_a_server_cannot_ask_for_more_than_a_minute(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("whet.rewards.http.time.sleep", waited.append)
    server.answer = lambda body, number: (429, b"", {"Retry-After": "99999999999"}) if number == 1 else good(body)
    assert scores(server, ["abc"])[0].value == 3.0
    assert waited == [60.0]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (scored,) = HttpReward(Http(url=url, retries=0)).score([prompt()], [completion("a")])
    assert scored.value is None and "refused" in str(scored.error)


def test_a_token_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abc")
    scores(server, ["a"], token_env="MY_TOKEN")
    assert server.headers[0]["Authorization"] == "Bearer abc"
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(ConfigError, match=r"reward\.token_env: is not set in the environment \(found MY_TOKEN\)"):
        scores(server, ["a"], token_env="MY_TOKEN")


def test_a_failed_completion_is_not_sent(server: Server) -> None:
    reward = HttpReward(Http(url=server.url))
    scored = reward.score([prompt()] * 2, [completion("", error="too long"), completion("ab")])
    assert [one.value for one in scored] == [None, 2.0]
    assert server.bodies[0]["completions"] == ["ab"]
    assert reward.score([], []) == []
