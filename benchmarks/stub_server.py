"""A server that speaks enough of OpenAI's chat API to be asked by whet, in a process of its own.

It answers at once: the right sum for even seeds, another for odd ones, with the seed in the text, so that every sample
has a text of its own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import zlib
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

NUMBER = re.compile(r"\d+")


class Stub:
    """Runs while the block does. `answered` and `asked` are of the time since `forget`."""

    def __init__(self, port: int = 0) -> None:
        """0 takes any port that is free."""
        self._port = port

    def __enter__(self) -> Self:
        ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(theirs, self._port), daemon=True)
        self._process.start()
        self._pipe = ours
        self.url = f"http://127.0.0.1:{ours.recv()}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def answered(self) -> int:
        return int(self._ask("answered"))

    @property
    def asked(self) -> set[str]:
        """The texts of all answers: a request for the same sample has the same."""
        return set(self._ask("asked"))

    def forget(self) -> None:
        self._ask("forget")

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._pipe.recv()


def _serve(pipe: Connection, port: int) -> None:
    asyncio.run(_run(pipe, port))


async def _run(pipe: Connection, port: int) -> None:
    texts: list[str] = []
    keep = {"all": False}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
                body = json.loads(await reader.readexactly(length))
                text = answer(body)
                if keep["all"]:
                    texts.append(text)
                payload = json.dumps(reply(text)).encode()
                header = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
                writer.write(header.encode() + payload)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def told() -> None:
        match pipe.recv():
            case "forget":
                texts.clear()
                keep["all"] = True
                pipe.send(None)
            case "answered":
                pipe.send(len(texts))
            case "asked":
                pipe.send(texts)

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    asyncio.get_running_loop().add_reader(pipe.fileno(), told)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def answer(body: dict[str, Any]) -> str:
    number, seed = int(NUMBER.findall(body["messages"][-1]["content"])[0]), int(body.get("seed", 0))
    return f"Sample {seed}: {2 * number + seed % 2}"


def generate(requests: list[dict[str, Any]]) -> list[str]:
    """The same answers as a function of a plan (`functions.generate`), with no server between."""
    return [answer({"messages": one["messages"], "seed": zlib.crc32(one["key"].encode())}) for one in requests]


def reply(text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "stub", "object": "chat.completion", "model": "stub", "choices": [choice], "usage": usage}
