"""verl's reward function: asks whet, in a process of whet's own, what a response is worth.

`whet export verl` copies this file beside reward.json as reward.py. It imports Python's own library alone: verl's
environment is not whet's, for verl 0.9.1 needs transformers below 5.11 and whet a later one. The process that scores is
started by the interpreter that reward.json names, or by that of the environment variable WHET_PYTHON.

A reward that takes longer than its deadline costs its process; a new one is started and the other responses are asked
about again. A response that whet cannot score gets the number that reward.json says and counts as `unscored`; too many
of them end the run.
"""

import asyncio
import collections
import contextlib
import itertools
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).resolve().parent / "reward.json"
START_SECONDS = 600.0
"""Time until a process that scores must be ready."""
ATTEMPTS = 3
"""Processes that a response may be asked of, where they end before it is its turn."""
RECENT, FEWEST = 200, 50
"""Responses that the share of missing scores is taken over, and how many there must be."""

Reply = dict[str, Any]
"""{"value": number or null, "parts": {name: number}, "error": text or null}"""


class Asked:
    """A response that waits for its score."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.future: Future[Reply] = Future()
        self.attempts = 0
        self.since = 0.0


class Scoring:
    """One process that scores. A thread writes to it: its pipe is soon full, and nobody must wait for that."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        cwd = settings["cwd"]
        self.process = subprocess.Popen(
            [os.environ.get("WHET_PYTHON") or settings["python"], "-m", "whet.launch.verl.scorer", str(SETTINGS)],
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(settings["path"])),
            cwd=cwd if os.path.isdir(cwd) else None, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self.started = time.monotonic()
        self.ready = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def send(self, asked: Asked) -> None:
        asked.attempts += 1
        asked.since = time.monotonic()
        self._lines.put(asked.line)

    def close(self) -> None:
        """It has ended, or shall: with everything that it has started."""
        self._lines.put(None)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, 9)

    def _write(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, which whoever reads sees
            while (line := self._lines.get()) is not None:
                pipe.write(line)
                pipe.flush()


class Scorer:
    """The process beside this one, and whoever waits for it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Asked] = {}
        self._scoring: Scoring | None = None
        self._recent: collections.deque[bool] = collections.deque(maxlen=RECENT)
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, request: Mapping[str, Any]) -> "Future[Reply]":
        """The reply, once there is one; a RuntimeError where no process would do better."""
        with self._lock:
            number = next(self._numbers)
            asked = self._waiting[number] = Asked(json.dumps({"number": number, **request}) + "\n")
            if self._scoring is None:
                self._start()
            elif self._scoring.ready:
                self._scoring.send(asked)
        return asked.future

    def count(self, reply: Reply) -> None:
        """Raises RuntimeError where too many of the last responses have no score."""
        with self._lock:
            self._recent.append(reply["value"] is None)
            num, share = len(self._recent), sum(self._recent) / len(self._recent)
        if num >= FEWEST and share > self.settings["max_unscored"]:
            raise RuntimeError(f"{share:.0%} of the last {num} responses have no score; the last: {reply['error']}")

    def _start(self) -> None:
        self._scoring = Scoring(self.settings)
        threading.Thread(target=self._read, args=(self._scoring,), daemon=True).start()

    def _read(self, scoring: Scoring) -> None:
        """Take replies until the process ends."""
        pipe = scoring.process.stdout
        assert pipe is not None
        for line in pipe:
            said = json.loads(line)
            with self._lock:
                if "problem" in said:
                    self._fail(f"whet cannot score: {said['problem']}")
                elif "ready" in said:
                    scoring.ready = True
                    for asked in self._waiting.values():
                        scoring.send(asked)
                elif (asked_ := self._waiting.pop(said["number"], None)) is not None:
                    asked_.future.set_result(said)
        self._ended(scoring, scoring.process.wait())

    def _ended(self, scoring: Scoring, code: int) -> None:
        """Ask another process about what waits, as often as that is allowed."""
        with self._lock:
            scoring.close()
            self._scoring = None
            if not scoring.ready:
                self._fail(f"whet's reward process ended before it was ready (exit code {code})")
            for number, asked in list(self._waiting.items()):
                if asked.attempts >= ATTEMPTS:
                    self._give_up(number, f"its reward process ended (exit code {code})")
            if self._waiting:
                self._start()

    def _watch(self) -> None:
        """End a process that is over its time."""
        while True:
            time.sleep(0.2)
            with self._lock:
                scoring, now = self._scoring, time.monotonic()
                if scoring is None:
                    continue
                deadline, late = self.settings["deadline"], []
                if scoring.ready:
                    late = [number for number, asked in self._waiting.items() if now - asked.since > deadline]
                for number in late:
                    self._give_up(number, f"took longer than {deadline:g} s")
                if late or (not scoring.ready and now - scoring.started > START_SECONDS):
                    scoring.close()

    def _give_up(self, number: int, reason: str) -> None:
        self._waiting.pop(number).future.set_result({"value": None, "parts": {}, "error": reason})

    def _fail(self, reason: str) -> None:
        """For everybody who waits."""
        for number in list(self._waiting):
            self._waiting.pop(number).future.set_exception(RuntimeError(reason))


_scorer: Scorer | None = None
_starting = threading.Lock()


def scorer() -> Scorer:
    """The one of this process of verl's."""
    global _scorer
    with _starting:
        if _scorer is None:
            _scorer = Scorer(json.loads(SETTINGS.read_text(encoding="utf-8")))
        return _scorer


async def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any],
    reward_router_address: str | None = None, reward_model_tokenizer: Any = None,
) -> dict[str, float]:  # fmt: skip
    """{"score": whet's reward, "unscored": 0 or 1, and every part of a composite reward of another name}."""
    asked = scorer()
    request = {
        "completion": solution_str,
        "reference": ground_truth,
        "extra": {name: extra_info[name] for name in ("messages", "columns", "answer", "file", "line")},
        "router": reward_router_address,
    }
    reply = await asyncio.wrap_future(asked.ask(request))
    asked.count(reply)
    missing = reply["value"] is None
    score = {"score": asked.settings["unscored"] if missing else reply["value"], "unscored": float(missing)}
    return {name: reply["parts"].get(name, float("nan")) for name in asked.settings["parts"]} | score
