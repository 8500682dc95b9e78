"""The scoring core: packed rows in, log-probs of their targets or one score a row out. Every objective stands on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from whet.models.activations import KEEPING_ALL, Activations
from whet.models.backbone import Backbone, unwrapped
from whet.models.head import Head, TokenScores, head_scores, logits_of, tempered
from whet.models.logits import Transform, logit_transform
from whet.models.packed_linear import PackedLinear
from whet.schema.packed import Packed

DENSE_TOKENS = 256
"""Tokens whose full logits exist at once where a head is more than one matrix."""


class TokenScorer(torch.nn.Module):
    """A causal language model as a function from a packed row to the log-probs of its targets.

    A module, so that a data-parallel wrapper sees the forward pass; its only parameters are the model's.
    """

    def __init__(
        self, model: torch.nn.Module, *, noise: float = 0.0, keep_tokens: int | None = None,
        activations: Activations = KEEPING_ALL,
    ) -> None:  # fmt: skip
        """`noise` is NEFTune's alpha (Jain et al., 2310.05914): while training, every embedding of a row of L tokens
        and width H gets uniform noise of +-alpha / sqrt(L H). Packed rows of more than `keep_tokens` recompute their
        activations in the backward pass, others keep them as `activations` says. Raises ModelError for a model that
        does to its logits what is not known here."""
        super().__init__()
        self.model = model
        self.backbone = Backbone(model, keep_tokens=keep_tokens, activations=activations)
        self._noise = noise
        logit_transform(unwrapped(model))  # tried out now, while weights are whole and nobody waits

    def forward(
        self, packed: Packed, *, statistics: bool = False, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> TokenScores:
        """Scores of the N targets, in their order, under softmax(logits / temperature).

        With `statistics` the entropy at each as well; with `entropy_gradient` that carries a gradient.
        Raises ValueError where the temperature is not above 0.
        """
        return self.scores(
            self.hidden(packed, packed.sources), packed.targets, statistics=statistics, temperature=temperature,
            entropy_gradient=entropy_gradient,
        )  # fmt: skip

    def hidden(self, packed: Packed, read: Tensor) -> Tensor:
        """[N, H]: the last layer's output for the tokens `read` [N]."""
        return self.backbone.hidden(packed, read, self._noisy(packed))

    def scores(
        self, hidden: Tensor, targets: Tensor, *, statistics: bool, temperature: float, entropy_gradient: bool
    ) -> TokenScores:
        """The same, from the hidden states [N, H] that predict the targets [N]."""
        head = head_of(self.model)
        if head is not None:
            return head_scores(
                hidden, head.at(temperature), targets, statistics=statistics, entropy_gradient=entropy_gradient
            )
        return _dense_scores(
            self.model, hidden, targets, temperature, statistics=statistics, entropy_gradient=entropy_gradient
        )

    def _noisy(self, packed: Packed) -> Tensor | None:
        if not (self.training and self._noise):
            return None
        embedded: Tensor = self.backbone.embeddings(packed.input_ids)
        lengths = [size for tree in packed.trees for size in [tree.prompt + sum(tree.branches)] * tree.num_tokens]
        area = torch.tensor(lengths, device=embedded.device) * embedded.shape[-1]
        size = (self._noise / area.sqrt()).unsqueeze(-1).to(embedded.dtype)
        return embedded + size * torch.empty_like(embedded).uniform_(-1.0, 1.0)


class RowScorer(torch.nn.Module):
    """A sequence classifier with one label as a function from a packed row to a score for each of its rows."""

    def __init__(
        self, model: torch.nn.Module, *, keep_tokens: int | None = None, activations: Activations = KEEPING_ALL
    ) -> None:
        super().__init__()
        self.model = model
        self.backbone = Backbone(model, keep_tokens=keep_tokens, activations=activations)

    def forward(self, packed: Packed) -> Tensor:
        """[R] float32 scores, read at each row's last token."""
        hidden = self.backbone.hidden(packed, packed.ends)
        scores: Tensor = unwrapped(self.model).score(hidden)
        return scores.squeeze(-1).float()


def next_logits(model: torch.nn.Module, hidden: Tensor) -> Tensor:
    """[N, V] after the hidden states [N, H]: see `logits_of`."""
    head = head_of(model)
    if head is not None:
        return logits_of(hidden, head)
    whole = unwrapped(model)
    return logit_transform(whole)(whole.get_output_embeddings()(hidden))


def logits_function(model: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """`next_logits` of this model; for a packed head that is a product and nothing else, the product as it comes."""
    whole = unwrapped(model)
    head, plain = whole.get_output_embeddings(), logit_transform(whole) == Transform()
    return head if isinstance(head, PackedLinear) and head.bias is None and plain else partial(next_logits, model)


def head_of(model: torch.nn.Module) -> Head | None:
    """The LM head as one matrix with what the architecture does to its logits; None where it is something else."""
    whole = unwrapped(model)
    module = whole.get_output_embeddings()
    if isinstance(module, ModulesToSaveWrapper):
        module = module.modules_to_save[module.active_adapters[0]]
    if type(module) is not torch.nn.Linear:
        return None
    transform = logit_transform(whole)
    return Head(weight=module.weight, bias=module.bias, scale=transform.scale, cap=transform.cap)


def _dense_scores(
    model: torch.nn.Module, hidden: Tensor, targets: Tensor, temperature: float, *, statistics: bool,
    entropy_gradient: bool,
) -> TokenScores:  # fmt: skip
    """A head that is more than a matrix (an adapter on it, say): full logits, a few tokens at a time."""
    whole = unwrapped(model)
    transform = logit_transform(whole)
    score = partial(
        _dense_tile, whole.get_output_embeddings(), Transform(*tempered(transform.scale, transform.cap, temperature))
    )
    tiles = [
        checkpoint(score, h, y, use_reentrant=False)
        for h, y in zip(torch.split(hidden, DENSE_TOKENS), torch.split(targets, DENSE_TOKENS), strict=True)
    ]
    logprobs, entropy, top1 = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    wanted = entropy if entropy_gradient else entropy.detach() if statistics else None
    return TokenScores(logprobs=logprobs, entropy=wanted, top1=top1)


def _dense_tile(
    head: torch.nn.Module, transform: Transform, hidden: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits = transform(head(hidden))
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return own, entropy, logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) >= logits.amax(dim=-1)
