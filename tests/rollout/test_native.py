"""The native engine against transformers' own generate, and against itself in other batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from whet.config.engine import Native
from whet.config.model import Model
from whet.errors import ConfigError
from whet.models import packed_linear
from whet.rollout.build import Answering, Served, native_engine, policy_engine
from whet.rollout.engine import Engine
from whet.rollout.native import NativeEngine
from whet.rollout.sampling import Drawn
from whet.schema.artifacts import ModelRef
from whet.schema.rollouts import Completion, Request, Sampling

PROMPTS = ("What is 12 plus 30?", "Paris", "Write the words apple, pear and plum.", "答案是", "Score:")


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> PreTrainedModel:
    """Weights scaled up, so that the next token depends on the prompt and is not nearly a tie."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


def requests(tokenizer: PreTrainedTokenizerBase, sampling: Sampling, per_prompt: int = 1) -> list[Request]:
    return [
        Request(key=f"{text}#{index}", prompt_ids=tuple(tokenizer.encode(text)), sampling=sampling, seed=5)
        for text in PROMPTS
        for index in range(per_prompt)
    ]


def run(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[Request],
    *,
    size: int,
    end: tuple[int, ...] = (),
    packed: bool = False,
) -> list[Completion]:
    copied = {"dtype": torch.float32, "pack_frozen": True} if packed else {}
    return list(NativeEngine(model, tokenizer, batch_size=size, end_ids=end, **copied).generate(asked))


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """From a copy whose products are oneDNN's, as large models are answered with."""
    monkeypatch.setattr(packed_linear, "LEAST_WEIGHTS", 1)
    return bool(request.param)


def test_greedy_equals_transformers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, packed: bool
) -> None:
    asked = requests(tokenizer, Sampling(max_new_tokens=24, temperature=0.0))
    end = tokenizer.eos_token_id
    for completion, request in zip(run(model, tokenizer, asked, size=8, end=(end,), packed=packed), asked, strict=True):
        expected = model.generate(
            torch.tensor([request.prompt_ids]), attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            max_new_tokens=24, do_sample=False, eos_token_id=end,
        )[0, len(request.prompt_ids) :]  # fmt: skip
        assert completion.ids == tuple(expected.tolist())
        assert completion.key == request.key


def test_an_adapter_changes_what_is_generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_checkpoint: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    base.load_state_dict(model.state_dict())
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    asked = requests(tokenizer, Sampling(max_new_tokens=12, temperature=0.0))
    merged_answers = run(adapted, tokenizer, asked, size=5)
    assert [c.ids for c in merged_answers] != [c.ids for c in run(model, tokenizer, asked, size=5)]
    assert adapted.training, "the engine leaves the model in the mode it found it in"


@pytest.mark.parametrize("folds", [True, False])
def test_a_model_that_trains_answers_ahead_from_a_copy_alone(
    folds: bool, tokenizer: PreTrainedTokenizerBase, tiny_checkpoint: Path
) -> None:
    """DoRA does not fold into a copy: the engine's thread would read weights that move."""
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", use_dora=not folds))
    served = Served(ref=ModelRef(path="m"), model=Model(path="m"), folder=tiny_checkpoint)
    answering = Answering(tokenizer=tokenizer, end_id=0, batch_size=4)

    def engine(ahead: bool) -> Engine:
        return policy_engine(Native(), adapted, served, answering, dtype=torch.float32, ahead=ahead)

    found = engine(ahead=False)
    assert isinstance(found, NativeEngine) and found.answers_with(adapted) != folds
    if folds:
        engine(ahead=True)
    else:
        with pytest.raises(ConfigError, match=r"rollout.staleness: the adapter cannot be folded"):
            engine(ahead=True)


@pytest.mark.parametrize("training", [False, True])
def test_a_model_in_fp32_answers_from_a_packed_copy_unless_it_trains(
    training: bool, packed: bool, tokenizer: PreTrainedTokenizerBase, tiny_checkpoint: Path
) -> None:
    there = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).requires_grad_(training)
    with pytest.MonkeyPatch.context() as small:
        if not packed:
            small.setattr("whet.rollout.build.has_room_for_copy", lambda model, dtype: False)
        engine = native_engine(there, Answering(tokenizer=tokenizer, end_id=0, batch_size=4, exact=True))
    assert engine.answers_with(there) == (training or not packed)


def test_samples_do_not_depend_on_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, packed: bool
) -> None:
    asked = requests(tokenizer, Sampling(max_new_tokens=16, temperature=0.9, top_p=0.95), per_prompt=3)
    end = (tokenizer.eos_token_id, 40, 41)
    expected = {c.key: c.ids for c in run(model, tokenizer, asked, size=1, end=end, packed=packed)}
    assert len(set(expected.values())) > len(PROMPTS), "samples of one prompt differ"
    for size in (3, 8, 64):
        found = run(model, tokenizer, asked, size=size, end=end, packed=packed)
        assert {c.key: c.ids for c in found} == expected
    backwards = run(model, tokenizer, asked[::-1], size=4, end=end, packed=packed)
    assert [c.key for c in backwards] == [request.key for request in asked[::-1]]
    assert {c.key: c.ids for c in backwards} == expected


def test_logprobs_are_those_of_the_sampling_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, packed: bool
) -> None:
    asked = requests(tokenizer, Sampling(max_new_tokens=10, temperature=0.7, top_k=20), per_prompt=2)
    for request, completion in zip(asked, run(model, tokenizer, asked, size=4, packed=packed), strict=True):
        whole = torch.tensor([request.prompt_ids + completion.ids])
        with torch.no_grad():
            logits = model(whole).logits[0, len(request.prompt_ids) - 1 : -1] / 0.7
        least = logits.topk(20, dim=-1).values[:, -1:]
        expected = torch.log_softmax(logits.masked_fill(logits < least, float("-inf")), -1)
        expected = expected.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


def test_rows_end_at_an_end_id_and_not_before_the_minimum(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    end = tuple(range(3, 60))
    free = run(model, tokenizer, requests(tokenizer, Sampling(max_new_tokens=40, temperature=1.5), 4), size=20, end=end)
    assert {c.finish_reason for c in free} >= {"stop"}
    for completion in free:
        assert not any(token in end for token in completion.ids[:-1])
        assert (completion.finish_reason == "stop") == (completion.ids[-1] in end)
    held = run(
        model,
        tokenizer,
        requests(tokenizer, Sampling(max_new_tokens=12, min_new_tokens=6, temperature=1.5), 4),
        size=20,
        end=end,
    )
    assert all(len(c.ids) >= 7 and not set(c.ids[:6]) & set(end) for c in held)


def test_a_prompt_beyond_the_positions_is_an_error_of_its_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    sampling = Sampling(max_new_tokens=8)
    positions = model.config.max_position_embeddings
    asked = [
        Request(key="long", prompt_ids=(5,) * positions, sampling=sampling, seed=0),
        Request(key="fits", prompt_ids=(5, 6), sampling=sampling, seed=0),
        Request(key="tight", prompt_ids=(5,) * (positions - 3), sampling=sampling, seed=0),
        Request(key="empty", prompt_ids=(), sampling=sampling, seed=0),
    ]
    long, fits, tight, empty = run(model, tokenizer, asked, size=4)
    assert (
        long.finish_reason == "error"
        and long.error == f"the prompt has {positions} tokens and the model {positions} positions"
    )
    assert fits.finish_reason == "length" and len(fits.ids) == 8
    assert tight.finish_reason == "length" and len(tight.ids) == 3
    assert empty.finish_reason == "error"


def test_streamed_pieces_join_to_the_completion(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Random bytes make broken and multi-byte characters likely."""
    for request in requests(tokenizer, Sampling(max_new_tokens=30, temperature=1.3), per_prompt=3):
        engine = NativeEngine(model, tokenizer, batch_size=1, end_ids=())
        (completion,) = engine.generate([request])
        assert "".join(engine.stream(request)) == completion.text


def test_a_character_of_several_tokens_is_streamed_whole(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("a𝄞é答 z")
    assert len(ids) > 9, "the tiny tokenizer spells these characters byte by byte"

    def next_id(logits, sampling, uniform, banned=(), barred=None, scratch=None):  # type: ignore[no-untyped-def]
        return Drawn(torch.tensor([remaining.pop(0)]), torch.zeros(1), torch.zeros(1))

    remaining = list(ids)
    monkeypatch.setattr("whet.rollout.decode.draw", next_id)
    engine = NativeEngine(model, tokenizer, batch_size=1, end_ids=())
    request = Request(key="k", prompt_ids=(5,), sampling=Sampling(max_new_tokens=len(ids)), seed=0)
    assert list(engine.stream(request)) == ["a", "𝄞", "é", "答", " ", "z"]
