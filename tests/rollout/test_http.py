"""The http engine against a server on this machine in every mood."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.rollout.stub import Reply, Spoiler, Stub, good
from whet.config.engine import Http
from whet.errors import ConfigError, RunError
from whet.experience.store import RolloutStore
from whet.rollout import endpoints, retry
from whet.rollout.engine import answers
from whet.rollout.http import http_engine
from whet.rollout.server import MOST_IN_A_ROW, ServerEngine
from whet.rollout.wire import NotReadable, chat_body, complaint, messages_of, read_last_logprobs, read_reply, seed_of
from whet.schema.pictures import Picture
from whet.schema.records import Message, Part
from whet.schema.rollouts import Completion, Request, Sampling


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(endpoints, "FIRST_REST", 0.01)


def requests(num: int, **sampling: Any) -> list[Request]:
    how = Sampling(**{"max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9} | sampling)
    said = (Message("system", "Be short."), Message("user", "Hi"))
    return [Request(key=f"p#{n}", prompt_ids=(1, 2), messages=said, sampling=how, seed=3) for n in range(num)]


@pytest.fixture
def opened() -> Iterator[list[ServerEngine]]:
    engines: list[ServerEngine] = []
    yield engines
    for engine in engines:
        engine.close()


def engine_of(opened: list[ServerEngine], *urls: str, **config: Any) -> ServerEngine:
    opened.append(http_engine(Http(urls=urls, model="m", **{"timeout": 5.0} | config)))
    return opened[-1]


def test_what_a_chat_server_is_sent_and_what_comes_back(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        engine = engine_of(opened, stub.url, fields={"reasoning_effort": "low", "top_p": None})
        (completion,) = answers(engine, requests(1, stop=("END",)))
    body = stub.bodies[0]
    assert body == {
        "model": "m", "max_tokens": 8, "temperature": 0.7, "stop": ["END"], "reasoning_effort": "low",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
        "seed": body["seed"],
    }  # fmt: skip
    assert completion.text.startswith("answer ") and completion.finish_reason == "stop"
    assert (completion.ids, completion.num_tokens) == ((), 3)


def test_token_ids_where_the_server_takes_them(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        (completion,) = answers(engine_of(opened, stub.url, api="completions"), requests(1, top_k=5))
    assert stub.bodies[0]["prompt"] == [1, 2] and stub.bodies[0]["top_k"] == 5
    assert (completion.ids, completion.logprobs) == ((5, 6, 2), (-0.5, -0.5, -0.5))


def test_log_probs_that_a_stage_throws_away_are_not_asked_for(opened: list[ServerEngine], tmp_path: Path) -> None:
    with Stub() as stub:
        engine = engine_of(opened, stub.url, api="completions")
        stored = list(RolloutStore(tmp_path / "rollouts.jsonl").stream(engine, requests(4), chunk=1))
    assert [completion.ids for completion in stored] == [(5, 6, 2)] * 4
    assert not any("logprobs" in body for body in stub.bodies)


def test_seeds_are_a_function_of_seed_and_key(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        engine = engine_of(opened, stub.url, concurrency=1)
        first, second = answers(engine, requests(9)), answers(engine, requests(9)[::-1])
    assert first == second[::-1]
    assert len({body["seed"] for body in stub.bodies}) == 9 and all(0 <= b["seed"] < 2**31 for b in stub.bodies)


def test_never_more_open_than_asked_for_and_pulled_as_needed(opened: list[ServerEngine]) -> None:
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        for request in requests(5000):
            pulled += 1
            yield request

    with Stub(seconds=0.02) as stub:
        running = engine_of(opened, stub.url, concurrency=4).generate(endless())
        for _ in range(40):
            next(running)
        assert pulled <= 40 + 2 * 4
        assert stub.most_open == 4
        running.close()


def test_a_slow_answer_is_not_outrun_for_ever(opened: list[ServerEngine]) -> None:
    """What waits for its turn stays bounded."""

    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        if number == 1:
            stub.stopped.wait(0.5)
        return good(path, body)

    with Stub(answer) as stub:
        order = [c.key for c in engine_of(opened, stub.url, concurrency=2).generate(requests(200))]
    slow = next(place for place, key in enumerate(order) if key in ("p#0", "p#1") and place > 3)
    assert 20 <= slow <= 2 * 16 and sorted(order) == sorted(f"p#{n}" for n in range(200))


@pytest.mark.parametrize("spoilt", [
    (429, b"", {"Retry-After": "0"}), (500, b"oops", {}), (503, b"", {}), (200, b"cut", {}), (200, b"<html>", {}),
    (200, b"{}", {}), (200, b'{"choices": []}', {}), (200, b'{"choices": [{"text": "a", "token_ids": "x"}]}', {}),
    (200, b'{"choices": [{"text": 5}]}', {}), (200, b'{"choices": [{"text": "", "finish_reason": "abort"}]}', {}),
])  # fmt: skip
def test_it_is_asked_again(opened: list[ServerEngine], spoilt: Reply) -> None:
    with Stub(lambda path, body, number: spoilt if number < 3 else good(path, body)) as stub:
        engine = engine_of(opened, stub.url)
        (completion,) = answers(engine, requests(1))
    assert completion.finish_reason == "stop" and len(stub.bodies) == 3
    assert engine.counts["retries"] == 2 and len({body["seed"] for body in stub.bodies}) == 1


def test_it_waits_as_long_as_it_is_told(opened: list[ServerEngine]) -> None:
    told = (429, b"", {"Retry-After": "1"})
    with Stub(lambda path, body, number: told if number == 1 else good(path, body)) as stub:
        begun = time.perf_counter()
        answers(engine_of(opened, stub.url), requests(1))
        assert time.perf_counter() - begun >= 1.0


def test_pauses_grow_and_differ() -> None:
    pauses = [retry.pause(attempt, "a") for attempt in range(20)]
    assert pauses == [retry.pause(attempt, "a") for attempt in range(20)] and retry.pause(0, "b") != pauses[0]
    assert all(0 < pause <= retry.LONGEST_PAUSE for pause in pauses) and pauses[5] > pauses[0]


def test_no_answer_in_time(opened: list[ServerEngine]) -> None:
    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        if number == 1:
            stub.stopped.wait(10)
        return good(path, body)

    with Stub(answer) as stub:
        engine = engine_of(opened, stub.url, timeout=0.3)
        (completion,) = answers(engine, requests(1))
        assert completion.finish_reason == "stop" and engine.counts["retries"] == 1


def test_what_fails_for_ever_is_data(opened: list[ServerEngine]) -> None:
    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        bad = body["max_tokens"] == 9
        return (500, b'{"error": {"message": "out\\nof memory"}}', {}) if bad else good(path, body)

    with Stub(answer) as stub:
        engine = engine_of(opened, stub.url, retries=2)
        asked = [*requests(3), Request(key="bad", prompt_ids=(1,), sampling=Sampling(max_new_tokens=9), seed=0)]
        *well, bad = answers(engine, asked)
    assert [completion.finish_reason for completion in well] == ["stop"] * 3
    assert (bad.finish_reason, bad.error) == ("error", f"{stub.url}: status 500 out of memory")
    assert engine.counts["failed"] == 1 and engine.counts["answered"] == 3


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (402, "the server refuses all requests by now .*status 402 no money.*the same command goes on"),
        (403, "the server refuses all requests by now .*status 403 no money.*the same command goes on"),
        (503, "the server does not answer any more .*status 503 no money.*the same command goes on"),
    ],
)
def test_a_server_that_fails_half_way_ends_the_stage_and_costs_no_answer(
    opened: list[ServerEngine], tmp_path: Path, status: int, said: str
) -> None:
    """Nothing is kept as a request that could not be answered, and what was answered is not asked for again."""
    well = 3

    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        if number <= well:
            return good(path, body)
        time.sleep(0.3)  # what was answered before has arrived
        return status, b'{"error": {"message": "no money"}}', {}

    def stream(engine: ServerEngine) -> list[Completion]:
        return list(RolloutStore(tmp_path / "rollouts.jsonl").stream(engine, iter(requests(8)), chunk=4))

    with Stub(answer) as stub:
        with pytest.raises(RunError, match=said) as caught:
            stream(engine_of(opened, stub.url, retries=2, concurrency=2))
        assert "\n" not in str(caught.value)
        well, before = 10**6, len(stub.bodies)
        completions = stream(engine_of(opened, stub.url, concurrency=2))
        asked = {body["seed"] for body in stub.bodies[before:]}  # a request of the first run may arrive late
    assert [completion.finish_reason for completion in completions] == ["stop"] * 8 and len(asked) == 5


@pytest.mark.parametrize("status", [504, None])
def test_a_request_that_takes_too_long_is_data_also_at_the_end(opened: list[ServerEngine], status: int | None) -> None:
    """Nobody else is answered meanwhile, and the same command would ask for it again for ever."""

    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        if body["max_tokens"] != 9:
            return good(path, body)
        if status is None:
            stub.stopped.wait(10)
        return status or 200, b"", {}

    with Stub(answer) as stub:
        engine = engine_of(opened, stub.url, retries=1, concurrency=1, timeout=0.3)
        asked = [*requests(2), Request(key="long", prompt_ids=(1,), sampling=Sampling(max_new_tokens=9), seed=0)]
        assert [completion.finish_reason for completion in answers(engine, asked)] == ["stop", "stop", "error"]


def test_many_failures_in_a_row_are_the_servers(opened: list[ServerEngine]) -> None:
    """One request may be more than a server can bear; not every one."""

    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        return good(path, body) if number == 1 else (500, b"", {})

    with Stub(answer) as stub:
        engine = engine_of(opened, stub.url, retries=0, concurrency=1)
        few = answers(engine, requests(MOST_IN_A_ROW))
        assert [completion.finish_reason for completion in few].count("error") == MOST_IN_A_ROW - 1
        with pytest.raises(RunError, match="does not answer any more"):
            answers(engine, requests(1))


def test_a_request_the_server_cannot_take_is_not_made_again(opened: list[ServerEngine]) -> None:
    with Stub(lambda path, body, number: (400, b'{"message": "too long"}', {})) as stub:
        (completion,) = answers(engine_of(opened, stub.url), requests(1))
    assert (completion.error, len(stub.bodies)) == (f"{stub.url}: status 400 too long", 1)


def test_a_server_that_refuses_all_is_said_in_one_line(opened: list[ServerEngine], tmp_path: Path) -> None:
    with Stub(lambda path, body, number: (400, b'{"message": "no seed, please"}', {})) as stub:
        store = RolloutStore(tmp_path / "rollouts.jsonl")
        with pytest.raises(RunError, match=r"the server refuses all requests .*status 400 no seed, please"):
            list(store.stream(engine_of(opened, stub.url, concurrency=4), requests(200), chunk=1))
    assert len(stub.bodies) < 40
    assert RolloutStore(tmp_path / "rollouts.jsonl").num_stored == 0, "none of them passes for unanswerable"


def test_refusals_of_small_calls_add_up(opened: list[ServerEngine]) -> None:
    with Stub(lambda path, body, number: (400, b"", {})) as stub:
        engine = engine_of(opened, stub.url)
        few = answers(engine, requests(MOST_IN_A_ROW - 1))
        assert {completion.finish_reason for completion in few} == {"error"}
        with pytest.raises(RunError, match="refuses all requests"):
            answers(engine, requests(1))


def test_refusals_come_sooner_than_answers(opened: list[ServerEngine]) -> None:
    def answer(path: str, body: dict[str, Any], number: int) -> Reply:
        if body["seed"] % 3:
            return 400, b'{"message": "too long"}', {}
        stub.stopped.wait(0.05)
        return good(path, body)

    with Stub(answer) as stub:
        asked = requests(40)
        done = answers(engine_of(opened, stub.url, concurrency=40), asked)
    assert [c.finish_reason for c in done] == ["error" if seed_of(r) % 3 else "stop" for r in asked]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the server refuses the key .*status 401 who are you.*token_env"),
        (402, "the account has no money .*status 402 who are you"),
        (404, "the server has no such model or path .*status 404 who are you.*check the model's name"),
    ],
)
def test_what_stands_in_the_plan_is_said_in_one_line(opened: list[ServerEngine], status: int, said: str) -> None:
    reply = status, b'{"error": {"message": "who are you"}}', dict[str, str]()
    with Stub(lambda path, body, number: reply) as stub, pytest.raises(ConfigError, match=said) as caught:
        answers(engine_of(opened, stub.url), requests(50))
    assert "\n" not in str(caught.value)


def test_nobody_there_is_said_in_one_line(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        url = stub.url
    with pytest.raises(RunError, match=r"rollout\.engine: the server does not answer \(found http://127"):
        answers(engine_of(opened, url, retries=1), requests(3))


def test_the_key_comes_from_the_environment(opened: list[ServerEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "abc")
    with Stub() as stub:
        answers(engine_of(opened, stub.url, token_env="MY_KEY"), requests(1))
    assert stub.headers[0]["Authorization"] == "Bearer abc"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="is not set in the environment"):
        http_engine(Http(urls=("http://a/v1",), model="m", token_env="MY_KEY"))


def test_tokens_and_cost_are_counted(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 10.0}
        engine = engine_of(opened, stub.url, **prices)
        answers(engine, requests(1000))
    assert (engine.counts["prompt_tokens"], engine.counts["completion_tokens"]) == (10_000, 3_000)
    assert engine.counts["cost"] == pytest.approx(0.02 + 0.03)


def test_several_servers_share_the_work_and_a_dead_one_is_set_aside(opened: list[ServerEngine]) -> None:
    with Stub(seconds=0.002) as one, Stub(seconds=0.002) as two, Stub() as dead:
        dead.answer = lambda path, body, number: (503, b"", {})
        engine = engine_of(opened, one.url, two.url, dead.url, concurrency=8)
        done = answers(engine, requests(200))
    assert all(completion.finish_reason == "stop" for completion in done)
    assert min(len(one.bodies), len(two.bodies)) > 60 and len(dead.bodies) < 60


def test_endpoints_rest_longer_each_time_and_come_back() -> None:
    now = [0.0]
    some = endpoints.Endpoints(["http://a/", "http://b"], now=lambda: now[0])
    first, second = some.take(), some.take()
    assert {first.url, second.url} == {"http://a", "http://b"}
    some.answered(second)
    for _ in range(2):
        some.failed(first)
        first = some.take() if first.num_open == 0 else first
        first.num_open = 1
    some.failed(first)
    rest = first.rests_until
    assert rest > 0 and all(some.take() is second for _ in range(5))
    now[0] = rest
    assert some.take() is first, "it has the fewest open"
    some.failed(first)
    assert first.rests_until - now[0] > rest
    some.failed(second), setattr(second, "failures", 9), some.failed(second)
    assert some.take() is min((first, second), key=lambda endpoint: endpoint.rests_until)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_through_faults_every_prompt_has_exactly_its_samples(
    opened: list[ServerEngine], tmp_path: Path, share: float
) -> None:
    asked = requests(300)
    with Stub() as stub, Spoiler(stub.root, share, slow=0.02) as proxy:
        engine = engine_of(opened, proxy.url, concurrency=16, retries=20)
        store = RolloutStore(tmp_path / "rollouts.jsonl")
        done = list(store.stream(engine, asked, chunk=1))
        expected = answers(engine_of(opened, stub.url), asked)
    assert [c.key for c in done] == [r.key for r in asked]
    assert [c.text for c in done] == [c.text for c in expected], "an answer is its own, whatever happened on the way"
    assert all(proxy.faults[kind] for kind in Spoiler.KINDS) and engine.counts["failed"] == 0


def test_tool_calls_and_images_in_a_servers_words(tmp_path: Path) -> None:
    url = red(tmp_path / "a.png")
    said = messages_of([
        Message("user", (Part("text", "What is this?"), Part("image", str(tmp_path / "a.png")))),
        Message("assistant", "", tool_calls=(
            {"name": "look", "arguments": {"at": 1}}, {"name": "ask", "arguments": {}},
        )),
        Message("tool", "a cat"), Message("tool", "yes"),
    ])  # fmt: skip
    assert said[0]["content"][1]["image_url"]["url"] == url
    calls = said[1]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "look", "arguments": '{"at": 1}'}, {"name": "ask", "arguments": "{}"}
    ]  # fmt: skip
    assert [turn["tool_call_id"] for turn in said[2:]] == [call["id"] for call in calls]


def with_picture(source: str) -> Request:
    said = (Message("user", (Part("image", source), Part("text", "What is this?"))),)
    picture = Picture(source=source, digest="d", num_tokens=2, grid=(1, 2))
    return replace(requests(1)[0], messages=said, prompt_ids=(7, 9, 9, 8), pictures=(picture,))


def red(path: Path, **saved: Any) -> str:
    """A picture of 3 times 2 pixels, in a file; its bytes as a URL."""
    Image.new("RGB", (3, 2), "red").save(path, **saved)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_a_picture_that_came_as_bytes_is_passed_on_as_it_is(tmp_path: Path) -> None:
    url = red(tmp_path / "a.png")
    content = chat_body(with_picture(url))["messages"][0]["content"]
    assert content[0] == {"type": "image_url", "image_url": {"url": url}}


def test_a_server_sees_a_picture_as_training_does(tmp_path: Path) -> None:
    held = Image.Exif()
    held[0x0112] = 6  # the camera was held upright
    red(tmp_path / "a.jpg", exif=held, format="jpeg")
    (shown, _) = chat_body(with_picture(str(tmp_path / "a.jpg")))["messages"][0]["content"]
    kind, _, data = shown["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (2, 3)


def test_pictures_that_cannot_be_sent_are_a_failure_of_their_request(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        (lost,) = answers(engine_of(opened, stub.url), [with_picture("/nowhere/a.png")])
        (mute,) = answers(engine_of(opened, stub.url, api="completions"), [with_picture("a.png")])
    assert lost.error is not None and "the picture is missing (found /nowhere/a.png" in lost.error
    assert mute.error is not None and "take api=chat" in mute.error
    assert stub.bodies == []


def test_ids_and_log_probs_of_a_chat_reply_and_the_prompt_it_answers() -> None:
    request = with_picture("data:,")
    logprobs = {"content": [{"token": "x", "logprob": -0.25}, {"token": "y", "logprob": -1.5}]}
    choice = {"message": {"content": "xy"}, "token_ids": [5, 6], "logprobs": logprobs, "finish_reason": "stop"}

    def read(prompt: list[int]) -> Completion:
        reply = {"choices": [choice], "usage": {"completion_tokens": 2}, "prompt_token_ids": prompt}
        return read_reply(request, json.dumps(reply).encode(), same_prompt=True)[0]

    assert (read([7, 9, 9, 8]).ids, read([7, 9, 9, 8]).logprobs) == ((5, 6), (-0.25, -1.5))
    assert read([7, 9, 8]).error == "the server read another prompt: 3 tokens for our 4, other ones from token 2 on"


def test_half_a_character_in_a_reply_can_be_kept() -> None:
    body = b'{"choices": [{"text": "\\ud83d\\ude00 and \\ud83d", "finish_reason": "length"}]}'
    completion, _ = read_reply(requests(1)[0], body)
    assert completion.text == "\U0001f600 and \ufffd"
    assert complaint(b'{"message": "no \\ud83d"}') == "no \ufffd"


def test_log_probs_of_the_end_of_a_prompt() -> None:
    known = [None, {"7": {"logprob": -9.0}}, {"5": {"logprob": -0.5}}, {"6": {"logprob": -1.25}}]
    reply = {"choices": [{"prompt_logprobs": known}], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}
    summed, usage = read_last_logprobs(2, json.dumps(reply).encode())
    assert summed == -1.75 and usage.prompt_tokens == 4
    with pytest.raises(NotReadable, match="3 log-probs for 4 tokens"):
        read_last_logprobs(4, json.dumps({"choices": [{"prompt_logprobs": known[1:]}]}).encode())
    with pytest.raises(NotReadable, match="cannot be read"):
        read_last_logprobs(4, json.dumps(reply).encode())


def test_a_server_that_cannot_measure_says_so_for_each_request(opened: list[ServerEngine]) -> None:
    with Stub() as stub:
        (refused,) = answers(engine_of(opened, stub.url), [replace(requests(1)[0], continuations=((5,), (6,)))])
    assert refused.error == "this server does not tell the log-probs of given continuations" and not stub.bodies


def completion_of(engine: ServerEngine) -> Completion:
    return answers(engine, requests(1))[0]


def test_an_error_of_the_caller_leaves_nothing_running(opened: list[ServerEngine]) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(3)
        raise ValueError("broken prompts")

    with Stub() as stub:
        engine = engine_of(opened, stub.url)
        with pytest.raises(ValueError, match="broken prompts"):
            list(engine.generate(broken()))
        assert completion_of(engine).finish_reason == "stop"
