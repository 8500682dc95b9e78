"""One rank of a data-parallel training, started by torchrun: one step, and its gradient written down."""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from whet.config.train import Train
from whet.data.batch import collate_groups, collate_tokens
from whet.data.rendered import Rendered, RenderedGroup
from whet.models.attention import NAME
from whet.models.scoring import TokenScorer
from whet.objectives import transport
from whet.objectives.supervised import nll
from whet.ranks.group import join_ranks, leave_ranks
from whet.runs.sinks import MetricsFile
from whet.train.bind import PairObjective
from whet.train.checkpoint import Checkpoints
from whet.train.feed import OfflineFeed
from whet.train.learners import PairLearner, TokenLearner
from whet.train.loop import Loop
from whet.train.parallel import Parallel

NUM, CPU = 7, torch.device("cpu")
"""Rows of a step: two ranks get four and three."""


class Recording(Parallel):
    """Keeps the gradient of the step, the ranks' added up."""

    def step(self, optimizer, parameters, max_norm):
        if self.world == 1:
            self._keep([p.grad for p in parameters])
        return super().step(optimizer, parameters, max_norm)

    def _add_up(self, gradients):
        super()._add_up(gradients)
        self._keep(gradients)

    def _keep(self, gradients):
        self.gradients = {str(n): g.detach().clone() for n, g in enumerate(gradients)}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip
    made.set_attn_implementation(NAME)
    return made


def ids(generator: random.Random, most: int) -> tuple[int, ...]:
    return tuple(generator.randrange(1, 300) for _ in range(generator.randint(1, most)))


def main(kind: str, folder: Path) -> None:
    generator = random.Random(3)
    groups = [
        RenderedGroup(prompt_ids=ids(generator, 9), response_ids=(ids(generator, 9), ids(generator, 9)))
        for _ in range(NUM)
    ]
    if kind == "sft":
        texts = [g.prompt_ids + g.response_ids[0] for g in groups]
        rows = [Rendered(ids=text, weights=(1.0,) * len(text)) for text in texts]
        learner, lengths = TokenLearner(nll), [row.num_tokens for row in rows]
        collate = lambda indices: collate_tokens([rows[i] for i in indices], device=CPU)  # noqa: E731
    else:
        objective = PairObjective(partial(transport.aot_unpaired, beta=0.3), coupled=True, needs_reference=True)
        learner = PairLearner(objective, lambda batch: -3.0 * batch.lengths.float())
        lengths = [group.num_tokens for group in groups]
        collate = lambda indices: collate_groups([groups[i] for i in indices], indices, device=CPU)  # noqa: E731
    parallel = Recording(CPU, torch.float32, join_ranks())
    scorer = TokenScorer(model())
    own = folder / f"{kind}-{parallel.world}-{parallel.rank}"
    Loop(
        model=scorer,
        learner=learner,
        feed=OfflineFeed(
            lengths, collate, batch_size=NUM, micro_batch_tokens=40, epochs=1,
            max_steps=1, seed=1, rank=parallel.rank, world=parallel.world,
        ),
        train=Train(batch_size=NUM, max_steps=1, max_grad_norm=None, precision="fp32"),
        parallel=parallel,
        checkpoints=Checkpoints(own / "checkpoints", keep=1),
        save_model=lambda path: None,
        metrics=MetricsFile(own / "metrics.jsonl"),
    ).fit()  # fmt: skip
    save_file(parallel.gradients, folder / f"{kind}-{parallel.world}-{parallel.rank}.safetensors")
    leave_ranks()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
