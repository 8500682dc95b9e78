"""kill -9, ten times, while a server answers 2,000 requests: no sample is lost, none that was kept is asked again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.rollout.stub import Stub
from whet.rollout.wire import seed_of
from whet.schema.rollouts import Request, Sampling

NUM = 2000
KILLS = 10


def request(number: int) -> Request:
    return Request(key=f"p{number // 4}#{number % 4}", prompt_ids=(1, 2), sampling=Sampling(max_new_tokens=4), seed=1)


def generate(url: str, path: str) -> None:
    """What the processes that are killed do."""
    from whet.config.engine import Http
    from whet.experience.store import RolloutStore
    from whet.rollout.http import http_engine

    engine = http_engine(Http(urls=(url,), model="m", api="completions", concurrency=16))
    for _ in RolloutStore(Path(path)).stream(engine, map(request, range(NUM)), chunk=1):
        pass
    engine.close()


def kept(folder: Path) -> set[int]:
    """Seeds of what is on disk."""
    seeds = {request(number).key: seed_of(request(number)) for number in range(NUM)}
    found = set()
    for name in ("rollouts.jsonl", "rollouts.early.jsonl"):
        content = (folder / name).read_bytes() if (folder / name).exists() else b""
        found |= {seeds[json.loads(line)["key"]] for line in content.split(b"\n")[:-1]}
    return found


def test_killed_ten_times(tmp_path: Path) -> None:
    draw = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    with Stub() as stub:
        generate(stub.url, str(whole / "rollouts.jsonl"))
    with Stub(seconds=0.02) as stub:
        for kill in range(KILLS + 1):
            before = kept(killed)
            stub.bodies.clear()
            called = f"generate({stub.url!r}, {str(killed / 'rollouts.jsonl')!r})"
            words = f"from tests.rollout.test_kills import generate; {called}"
            process = subprocess.Popen([sys.executable, "-c", words])
            if kill < KILLS:
                goal, deadline = len(before) + draw.randrange(20, 180), time.monotonic() + 60
                while len(stub.bodies) + len(before) < goal and time.monotonic() < deadline:
                    time.sleep(0.005)
                process.send_signal(signal.SIGKILL)
            status = process.wait(120)
            assert status == (-signal.SIGKILL if kill < KILLS else 0)
            time.sleep(0.1)  # the server ends what it was at
            assert not before & {body.get("seed") for body in stub.bodies}, "asked for again"
    assert {path.name for path in killed.iterdir()} == {"rollouts.jsonl"}
    assert (killed / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
