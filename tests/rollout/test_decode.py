"""The decoder: shared prompts and a changing batch, against transformers' generate and the scoring core."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import pytest
import torch

from tests.models.packed import VOCABULARY, build, with_adapter
from whet.models.backbone import Backbone
from whet.models.decoding import KeyValues
from whet.models.rows import from_trees
from whet.models.scoring import TokenScorer, next_logits
from whet.rollout import decode, native
from whet.rollout.native import NativeEngine
from whet.schema.packed import Tree
from whet.schema.rollouts import Completion, Request, Sampling


class Letters:
    """A tokenizer as far as the engine needs one: token 5 is the letter chr(5 + 300)."""

    pad_token_id = 0

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(chr(300 + token) for token in ids)


def ask(num_prompts: int, per_prompt: int, sampling: Sampling, *, longest: int = 40) -> list[Request]:
    draw = random.Random(1)
    prompts = [tuple(draw.choices(range(1, VOCABULARY), k=draw.randint(1, longest))) for _ in range(num_prompts)]
    return [
        Request(key=f"{number}#{index}", prompt_ids=prompt, sampling=sampling, seed=3)
        for number, prompt in enumerate(prompts)
        for index in range(per_prompt)
    ]


def run(model: torch.nn.Module, asked: Sequence[Request], *, size: int, end: tuple[int, ...] = ()) -> list[Completion]:
    return list(NativeEngine(model, Letters(), batch_size=size, end_ids=end).generate(asked))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen2", "llama", "gemma2", "gemma3", "mistral", "gpt2", "gemma2, short window"]
)
def test_greedy_answers_equal_transformers(name: str) -> None:
    """200 prompts an architecture, answers of all lengths; a short window goes the padded way."""
    model = build(name).eval()
    end = tuple(range(5, 60))
    asked = ask(200, 1, Sampling(max_new_tokens=12, temperature=0.0))
    answers = run(model, asked, size=16, end=end)
    assert len({len(answer.ids) for answer in answers}) > 2, "answers of several lengths"
    found = {request.prompt_ids: answer.ids for request, answer in zip(asked, answers, strict=True)}
    for prompts in by_length(request.prompt_ids for request in asked):
        together = model.generate(
            torch.tensor(prompts), attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
            max_new_tokens=12, do_sample=False, eos_token_id=list(end), pad_token_id=0,
        )[:, len(prompts[0]) :]  # fmt: skip
        for prompt, expected in zip(prompts, together.tolist(), strict=True):
            ids = found[prompt]
            assert ids == tuple(expected[: len(ids)]) and not any(expected[len(ids) :])


def by_length(prompts: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts that go through a model together without padding."""
    return (list(group) for _, group in groupby(sorted(set(prompts), key=len), key=len))


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "cohere", "granite"])
def test_logprobs_are_the_scoring_cores(name: str) -> None:
    model = build(name).eval()
    asked = ask(6, 4, Sampling(max_new_tokens=20, temperature=0.8, top_p=0.9), longest=30)
    answers = run(model, asked, size=9, end=tuple(range(40)))
    for request, answer in zip(asked, answers, strict=True):
        size, num = len(request.prompt_ids), len(answer.ids)
        packed = from_trees(torch.tensor(request.prompt_ids + answer.ids), (Tree(0, size, (num,)),))
        with torch.no_grad():
            expected = TokenScorer(model)(packed).logprobs
        torch.testing.assert_close(torch.tensor(answer.policy_logprobs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_does_not_know_its_neighbours(dtype: torch.dtype) -> None:
    """Whatever runs beside it, whenever it enters, however large its group: the same ids and the same log-probs."""
    model = build("qwen3").to(dtype).eval()
    end = tuple(range(25))
    asked = ask(12, 3, Sampling(max_new_tokens=24, temperature=1.0))
    alone = {answer.key: answer for request in asked for answer in run(model, [request], size=1, end=end)}
    assert len({answer.ids for answer in alone.values()}) > 24
    for size in (4, 7, 64):
        for order in (asked, asked[::-1], random.Random(size).sample(asked, len(asked))):
            for answer in run(model, order, size=size, end=end):
                assert answer.ids == alone[answer.key].ids
                assert answer.logprobs == pytest.approx(alone[answer.key].logprobs, abs=1e-5)


def test_stop_texts_end_an_answer_and_are_not_in_it() -> None:
    model = build("llama").eval()
    free = run(model, ask(8, 1, Sampling(max_new_tokens=16)), size=8)
    stop = free[0].text[5:7]
    for before, answer in zip(
        free, run(model, ask(8, 1, Sampling(max_new_tokens=16, stop=(stop,))), size=8), strict=True
    ):
        assert answer.text == before.text.split(stop)[0]
        if stop in before.text:
            assert answer.finish_reason == "stop" and len(answer.ids) == before.text.index(stop) + 2
    request = ask(8, 1, Sampling(max_new_tokens=16, stop=(stop,)))[0]
    pieces = list(NativeEngine(model, Letters(), batch_size=1, end_ids=()).stream(request))  # type: ignore[arg-type]
    assert "".join(pieces) == free[0].text.split(stop)[0] and stop[0] not in pieces


def test_stop_texts_count_from_the_least_number_of_tokens_on() -> None:
    model = build("llama").eval()
    (free,) = run(model, ask(1, 1, Sampling(max_new_tokens=16)), size=1)
    stop = free.text[5]
    least = free.text.index(stop) + 1
    (held,) = run(model, ask(1, 1, Sampling(max_new_tokens=16, min_new_tokens=least, stop=(stop,))), size=1)
    assert held.text == free.text[:least] + free.text[least:].split(stop)[0]
    assert len(held.ids) > least


def test_answers_come_in_the_order_of_the_requests_while_others_still_run() -> None:
    model = build("qwen2").eval()
    short = ask(4, 1, Sampling(max_new_tokens=2))
    engine = NativeEngine(model, Letters(), batch_size=2, end_ids=())  # type: ignore[arg-type]
    answers = engine.generate(short)
    assert next(answers).key == short[0].key
    assert [answer.key for answer in answers] == [request.key for request in short[1:]]


def test_rows_leave_and_enter_within_the_batch_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    step = decode.Decoder.step

    def counted(self: decode.Decoder) -> None:
        seen.append((len(self._rows), self._memory.num_bytes()))
        step(self)

    monkeypatch.setattr(decode.Decoder, "step", counted)
    model = build("qwen3").eval()
    asked = ask(40, 2, Sampling(max_new_tokens=30, temperature=1.0))
    answers = run(model, asked, size=10, end=tuple(range(30)))
    assert [answer.key for answer in answers] == [request.key for request in asked]
    most = max(rows for rows, _ in seen)
    assert 8 <= most <= 10
    # Two layers, 2 key heads of width 8 in fp32: 256 bytes a token; lengths are rounded up to 32.
    assert max(num for _, num in seen) <= 256 * (10 * 64 + 10 * 64)
    tokens = sum(len(answer.ids) for answer in answers)
    assert len(seen) < tokens / 5, "rows that ended make room for others at once"

    seen.clear()
    monkeypatch.setattr(native, "decoding_tokens", lambda model: 150)
    assert [answer.ids for answer in run(model, asked, size=10, end=tuple(range(30)))] == [a.ids for a in answers]
    assert max(rows for rows, _ in seen) <= 4, "a budget of 150 tokens holds two groups of 40 + 60"


def test_memory_in_any_order_of_entering_and_leaving() -> None:
    """Random groups come and go; every row's next token is that of the whole text passed anew."""
    model = build("qwen3").double().eval()
    backbone, memory, draw = Backbone(model), KeyValues(), random.Random(0)
    rows: list[list[int]] = []
    with torch.no_grad():
        for _ in range(60):
            if not rows or (len(rows) < 9 and draw.random() < 0.3):
                rows += list(entered(model, backbone, memory, draw))
            elif draw.random() < 0.3:
                stay = sorted(draw.sample(range(len(rows)), draw.randint(0, len(rows))))
                memory.keep(stay)
                rows = [rows[place] for place in stay]
            else:
                newest = [draw.randrange(1, VOCABULARY) for _ in rows]
                hidden = backbone.stepper()(torch.tensor(newest), memory)[: len(rows)]
                rows = [[*row, token] for row, token in zip(rows, newest, strict=True)]
                expected = [model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows]
                torch.testing.assert_close(next_logits(model, hidden), torch.stack(expected), rtol=0, atol=1e-5)
    assert memory.num_rows == len(rows)


def entered(model: torch.nn.Module, backbone: Backbone, memory: KeyValues, draw: random.Random) -> Iterator[list[int]]:
    """One or two new prompts with their rows."""
    prompts = [draw.choices(range(1, VOCABULARY), k=draw.randint(1, 40)) for _ in range(draw.randint(1, 2))]
    trees, start = [], 0
    for prompt in prompts:
        trees.append(Tree(start, len(prompt)))
        start += len(prompt)
    _, captured = backbone.prompts(from_trees(torch.tensor([token for p in prompts for token in p]), tuple(trees)))
    counts = [draw.randint(1, 3) for _ in prompts]
    memory.enter(captured, counts)
    for prompt, count in zip(prompts, counts, strict=True):
        yield from (list(prompt) for _ in range(count))


@pytest.mark.parametrize("name", ["gpt2", "gemma2, short window"])
def test_an_ended_row_may_wait_at_the_models_last_position(name: str) -> None:
    """One row ends where the positions do, and leaves only with others; gpt2 has a table of 128 positions."""
    model = build(name).eval()
    prompts = [tuple(range(1, 125)), *((number, 2, 3) for number in range(1, 9))]
    asked = [
        Request(key=str(number), prompt_ids=prompt, sampling=Sampling(max_new_tokens=40, temperature=0.0), seed=0)
        for number, prompt in enumerate(prompts)
    ]
    assert [len(answer.ids) for answer in run(model, asked, size=9)] == [4] + [40] * 8


def test_an_adapter_folded_in_follows_the_training() -> None:
    model = with_adapter(build("qwen3"))
    asked = ask(5, 2, Sampling(max_new_tokens=10, temperature=0.0))
    engine = NativeEngine(model, Letters(), batch_size=8, end_ids=(), dtype=torch.float32)  # type: ignore[arg-type]

    def ids() -> list[tuple[int, ...]]:
        return [answer.ids for answer in engine.generate(asked)]

    first = ids()
    assert first == [answer.ids for answer in run(model, asked, size=8)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    assert ids() == first, "the copy is as old as its last sync"
    engine.sync(7)
    changed = list(engine.generate(asked))
    assert [answer.ids for answer in changed] == [answer.ids for answer in run(model, asked, size=8)] != first
    assert {answer.policy_version for answer in changed} == {7}
