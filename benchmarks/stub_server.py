"""A server that speaks enough of OpenAI's API to be asked by whet, in a process of its own, and counts.

It answers at once: the right sum for even seeds, another for odd ones. Or it passes everything on to a real server. A
request is known by its seed, which is a function of the sample's key.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import aiohttp

JSON = {"Content-Type": "application/json"}
NUMBER = re.compile(r"\d+")


class Stub:
    """Runs while the block does. `answered` and `seeds` are of the time since `forget`."""

    def __init__(self, port: int = 0, *, before: tuple[str, Mapping[str, str]] | None = None) -> None:
        """Port 0 takes any that is free. `before`: root and headers of the server that answers in its place."""
        self._port, self._before = port, before

    def __enter__(self) -> Self:
        ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(theirs, self._port, self._before), daemon=True)
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
    def seeds(self) -> list[int]:
        """Of all requests that were answered."""
        return list(self._ask("seeds"))

    def forget(self) -> None:
        self._ask("forget")

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._pipe.recv()


def _serve(pipe: Connection, port: int, before: tuple[str, Mapping[str, str]] | None) -> None:
    asyncio.run(_run(pipe, port, before))


async def _run(pipe: Connection, port: int, before: tuple[str, Mapping[str, str]] | None) -> None:
    seeds: list[int] = []
    keep = {"all": False}
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
                asked = await reader.readexactly(length)
                body, status = json.loads(asked), 200
                if before is None:
                    payload = json.dumps(reply(answer(body))).encode()
                else:
                    root, headers = before
                    place = root + head.split(maxsplit=2)[1].decode()
                    async with session.post(place, data=asked, headers={**JSON, **headers}) as passed:
                        status, payload = passed.status, await passed.read()
                if keep["all"] and status == 200:
                    seeds.append(int(body["seed"]))
                kind = f"Content-Type: application/json\r\nContent-Length: {len(payload)}"
                writer.write(f"HTTP/1.1 {status} OK\r\n{kind}\r\n\r\n".encode() + payload)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, aiohttp.ClientError):
            pass
        finally:
            writer.close()

    def told() -> None:
        match pipe.recv():
            case "forget":
                seeds.clear()
                keep["all"] = True
                pipe.send(None)
            case "answered":
                pipe.send(len(seeds))
            case "seeds":
                pipe.send(seeds)

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
