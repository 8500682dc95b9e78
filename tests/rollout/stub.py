"""A server that speaks OpenAI's API and makes things up, and one in front of it that spoils a share of the replies."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Reply = tuple[int, bytes, dict[str, str]]
Answer = Callable[[str, dict[str, Any], int], Reply]


PASSED_ON = ("Authorization", "Content-Type")


class Local:
    """An HTTP server on this machine, in threads."""

    def __init__(self, port: int = 0) -> None:
        outer = self
        self.stopped = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def do_POST(self) -> None:
                outer.handle(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def do_GET(self) -> None:
                outer.handle(self, b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away, as those do that are killed."""

        self._http = Server(("127.0.0.1", port), Handler)
        self.root = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.url = f"{self.root}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()


def send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    status, body, headers = reply
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


class Stub(Local):
    """Answers with words that its request alone decides. `answer(path, body, number)` may do otherwise."""

    def __init__(self, answer: Answer | None = None, *, seconds: float = 0.0, log: str | None = None) -> None:
        super().__init__()
        self.answer, self._seconds, self._log = answer or (lambda path, body, number: good(path, body)), seconds, log
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_open = self.most_open = 0
        self._lock = threading.Lock()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body or b"{}")
        with self._lock:
            self.bodies.append(asked)
            self.headers.append(dict(handler.headers))
            number = len(self.bodies)
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
        try:
            self.stopped.wait(self._seconds)
            reply = self.answer(handler.path, asked, number)
            if self._log is not None:  # before it is sent: who died in between has been answered
                with self._lock, open(self._log, "a") as log:
                    log.write(f"{asked['seed']}\n")
        finally:
            with self._lock:
                self.num_open -= 1
        if reply[1] == b"cut":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        send(handler, reply)


def good(path: str, body: dict[str, Any]) -> Reply:
    """A text made of the seed; ids where ids were sent, and log-probs where they are wanted."""
    digest = hashlib.sha256(str(body["seed"]).encode()).hexdigest()
    words = f"answer {digest[:8]} Score: {int(digest, 16) % 6}"
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": words}
    else:
        ids = [5, 6, 2]
        choice |= {"text": words, "token_ids": ids}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.5] * len(ids)}
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode(), {}


class Spoiler(Local):
    """In front of another server: a share of the requests is dropped, refused (429, 500), slowed, cut short in the
    middle of the reply, or answered with garbage; before the server has seen the request, or after."""

    KINDS = ("drop", "429", "500", "slow", "cut", "garbage", "empty")

    def __init__(self, target: str, share: float, *, seed: int = 0, slow: float = 0.2, fixed: int = 0) -> None:
        """`target` without `/v1`."""
        super().__init__(fixed)
        self._target, self._share, self._slow = target, share, slow
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self.faults: Counter[str] = Counter()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        with self._lock:
            fault = self._draw.choice(self.KINDS) if self._draw.random() < self._share else "none"
            self.faults[fault] += 1
        match fault:
            case "drop":
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            case "429":
                return send(handler, (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"}))
            case "500":
                return send(handler, (500, b"<html>Internal Server Error</html>", {}))
            case "slow":
                time.sleep(self._slow)
        status, reply = self._ask(handler, body)
        match fault:
            case "cut":
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(reply)))
                handler.end_headers()
                handler.wfile.write(reply[: len(reply) // 2])
                handler.connection.shutdown(socket.SHUT_RDWR)
            case "garbage":
                send(handler, (200, b'{"choices": [{"text": "half' + reply[:20], {}))
            case "empty":
                send(handler, (200, b'{"choices": []}', {}))
            case _:
                send(handler, (status, reply, {}))

    def _ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self._target + handler.path, data=body if handler.command == "POST" else None, method=handler.command,
            headers={name: handler.headers[name] for name in PASSED_ON if name in handler.headers},
        )  # fmt: skip
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
