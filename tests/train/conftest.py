"""A small model, rows of uneven lengths, and the real loop around them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from whet.config.train import Train
from whet.data.batch import collate_groups, collate_tokens
from whet.data.render import Rendered, RenderedGroup
from whet.models.scoring import TokenScorer
from whet.objectives.supervised import nll
from whet.runs.sinks import MetricsFile
from whet.train.checkpoint import Checkpoints
from whet.train.feed import OfflineFeed
from whet.train.learners import Learner, TokenLearner
from whet.train.loop import Loop
from whet.train.parallel import Parallel

CPU = torch.device("cpu")
VOCABULARY = 300


class RecordingParallel(Parallel):
    """Keeps the gradient of every step as the optimiser is about to get it, before clipping."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(CPU, dtype)
        self.gradients: list[list[torch.Tensor]] = []

    def step(self, optimizer: torch.optim.Optimizer, parameters: Any, max_norm: float | None) -> float:
        self.gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters])
        return super().step(optimizer, parameters, max_norm)


def _ids(generator: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(generator.randrange(1, VOCABULARY) for _ in range(generator.randint(low, high)))


@pytest.fixture
def make_rows() -> Callable[[int], list[Rendered]]:
    """Conversations of 3 to 30 tokens; weights 0, 1 and 0.5, trained parts of very different sizes."""

    def make(num: int) -> list[Rendered]:
        generator = random.Random(5)
        rows = []
        for number in range(num):
            prompt, response = _ids(generator, 1, 12), _ids(generator, 1, 2 if number % 3 else 18)
            weights = [0.0] * len(prompt) + [1.0] * len(response)
            if number % 4 == 1:
                weights[-1] = 0.5
            rows.append(Rendered(ids=prompt + response, weights=tuple(weights)))
        return rows

    return make


@pytest.fixture
def make_pairs() -> Callable[[int], list[RenderedGroup]]:
    def make(num: int) -> list[RenderedGroup]:
        g = random.Random(6)
        return [
            RenderedGroup(prompt_ids=_ids(g, 1, 10), response_ids=(_ids(g, 1, 14), _ids(g, 1, 9)))
            for _ in range(num)
        ]

    return make


@pytest.fixture
def make_model() -> Callable[..., torch.nn.Module]:
    """Qwen3 of two layers, weights large enough that its answers differ; `lora` gives it a live adapter."""

    def make(*, lora: bool = False, dropout: float = 0.0, seed: int = 0, scale: float = 4.0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model: torch.nn.Module = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
                tie_word_embeddings=True,
            )
        )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(scale)
        if lora:
            config = LoraConfig(
                r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            model = get_peft_model(model, config)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.05)
        return model.train()

    return make


@pytest.fixture
def collate() -> Callable[[Sequence[Any]], Callable[[Sequence[int]], Any]]:
    """Rows to a collate function of their indices."""

    def of(rows: Sequence[Any]) -> Callable[[Sequence[int]], Any]:
        def batch(indices: Sequence[int]) -> Any:
            chosen = [rows[i] for i in indices]
            if isinstance(chosen[0], Rendered):
                return collate_tokens(chosen, device=CPU)
            return collate_groups(chosen, indices, device=CPU)

        return batch

    return of


@pytest.fixture
def make_loop(tmp_path: Path) -> Callable[..., Loop[Any]]:
    """The real loop on some rows; SFT unless a learner is given. Files go to `tmp_path / folder`."""

    def make(
        model: torch.nn.Module, rows: Sequence[Any], collate: Callable[[Sequence[int]], Any], train: Train, *,
        learner: Learner[Any] | None = None, folder: str = "stage", dtype: torch.dtype = torch.float32,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
    ) -> Loop[Any]:  # fmt: skip
        return Loop(
            model=TokenScorer(model),
            learner=learner or TokenLearner(nll),
            feed=OfflineFeed(
                [row.num_tokens for row in rows], collate, batch_size=train.batch_size,
                micro_batch_tokens=train.micro_batch_tokens or 10_000, epochs=train.epochs, max_steps=train.max_steps,
                seed=train.seed,
            ),
            train=train,
            parallel=RecordingParallel(dtype),
            checkpoints=Checkpoints(tmp_path / folder / "checkpoints", keep=train.keep_checkpoints),
            save_model=lambda path: model.save_pretrained(path / "model"),
            metrics=MetricsFile(tmp_path / folder / "metrics.jsonl"),
            evaluate=evaluate,
        )  # fmt: skip

    return make
