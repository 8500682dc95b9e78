"""The stub server of the benchmark of reject: what it answers, and that it counts."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from benchmarks.reject_stream import keys_in, resident_peak, write_prompts
from benchmarks.stub_server import Stub, generate
from whet.config.rules import Numeric
from whet.rewards.rules import numeric
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion


def ask(url: str, number: int, seed: int) -> str:
    body = {"messages": [{"role": "user", "content": f"How much is {number} plus {number}?"}], "seed": seed}
    request = urllib.request.Request(f"{url}/chat/completions", data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


def test_the_server_answers_and_counts() -> None:
    with Stub() as stub:
        assert ask(stub.url, 4, 2) == "Sample 2: 8" and stub.answered == 0, "it counts from when it is told to"
        stub.forget()
        assert [ask(stub.url, 4, seed) for seed in (2, 3)] == ["Sample 2: 8", "Sample 3: 9"]
        assert stub.answered == 2 and stub.seeds == [2, 3]
        with Stub(before=(stub.url.removesuffix("/v1"), {})) as relay:
            relay.forget()
            assert ask(relay.url, 5, 8) == "Sample 8: 10" and relay.seeds == [8] and stub.answered == 3
        stub.forget()
        assert stub.seeds == []


def test_half_of_the_answers_are_right(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 20)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    asked = [{"key": f"{n}#0", "messages": [{"role": "user", "content": row["prompt"]}]} for n, row in enumerate(rows)]
    prompts = [Prompt(messages=(Message("user", row["prompt"]),), reference=row["reference"]) for row in rows]
    said = [Completion(key="", ids=(), text=text, logprobs=(), finish_reason="stop") for text in generate(asked)]
    assert 4 < sum(score.value or 0 for score in numeric(Numeric()).score(prompts, said)) < 16


def test_what_is_stored_and_how_much_memory_it_took(tmp_path: Path) -> None:
    store = tmp_path / "rollouts.jsonl"
    store.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "cut')
    (tmp_path / "rollouts.early.jsonl").write_text('{"place": 7, "key": "d"}\n')
    assert keys_in(store) == ["a", "b", "d"]
    assert resident_peak(-1) == 0
