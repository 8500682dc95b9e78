"""An event loop in a thread of its own, with the connections to servers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import aiohttp


class Running:
    """`places` are for the requests that may wait for an answer at a time."""

    def __init__(self, concurrency: int, *, local: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()
        self.places = asyncio.Semaphore(concurrency)
        self.session: aiohttp.ClientSession = self.start(_session(concurrency, local=local)).result()

    def start(self, task: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    def cancel(self, tasks: Iterable[Any]) -> None:
        for task in tasks:
            task.cancel()

    def stop(self) -> None:
        self.start(self.session.close()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


async def _session(concurrency: int, *, local: bool) -> aiohttp.ClientSession:
    """Made inside the loop that it belongs to."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency), timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(), trust_env=not local,
    )  # fmt: skip
