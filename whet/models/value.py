"""The value function of PPO: a number for the state before each token, off the policy's layers or off its own.

Beside an adapter or a checkpoint a head lies in

    value_head.safetensors   weight  [(K - 1) H + 1, H], as in `whet.models.score_head`

and a value model of its own in a folder, as a reward model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.errors import ModelError
from whet.models.activations import KEEPING_ALL, Activations
from whet.models.backbone import Backbone, unwrapped
from whet.models.head import TokenScores
from whet.models.reward import load_reward_model
from whet.models.score_head import ScoreHead, adapter_head, checkpoint_head, fresh_head
from whet.models.scoring import TokenScorer
from whet.models.unreadable import unreadable
from whet.schema.artifacts import ModelRef
from whet.schema.packed import Packed

FILE, KEY = "value_head.safetensors", "weight"


@dataclass(frozen=True, kw_only=True)
class Values:
    """Values of states, float32 at least; they carry the gradient."""

    tokens: Tensor
    """[N], of the state before each target: what the token was chosen from."""
    ends: Tensor
    """[R], of the state behind each row's last token: what is still to come for a response that was cut off."""


@dataclass(frozen=True, kw_only=True)
class PolicyScores:
    """What a policy and its value function say of a packed row."""

    tokens: TokenScores
    values: Values


class ValueHead(torch.nn.Module):
    """Values off the policy's hidden states."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` is [(K - 1) H + 1, H], K layers."""
        super().__init__()
        self.score = ScoreHead(weight)

    def forward(self, before: Tensor, behind: Tensor) -> Values:
        """Of the hidden states [N, H] before the targets and [R, H] at the ends of the rows."""
        return Values(tokens=self.score(before).squeeze(-1), ends=self.score(behind).squeeze(-1))


class ValueScorer(torch.nn.Module):
    """A value model of its own as a function from a packed row to values."""

    def __init__(
        self, model: torch.nn.Module, *, keep_tokens: int | None = None, activations: Activations = KEEPING_ALL
    ) -> None:
        """`model` is one of `load_value_model`. Packed rows of more than `keep_tokens` recompute their activations in
        the backward pass."""
        super().__init__()
        self.model = model
        self.backbone = Backbone(model, keep_tokens=keep_tokens, activations=activations)

    def forward(self, packed: Packed) -> Values:
        hidden, score = self.backbone.hidden(packed, _read(packed)), unwrapped(self.model).score
        before, behind = _split(packed, hidden)
        return Values(tokens=score(before).squeeze(-1), ends=score(behind).squeeze(-1))


class PolicyScorer(torch.nn.Module):
    """A policy with a value function, as one module: its parameters are those of both.

    `policy` alone scores what needs no values, such as the reference.
    """

    def __init__(self, policy: TokenScorer, value: ValueHead | ValueScorer, *, pace: float = 1.0) -> None:
        """`pace` is the learning rate of a value model of its own over the policy's."""
        super().__init__()
        self.policy, self.value, self._pace = policy, value, pace

    def apart(self) -> dict[torch.nn.Parameter, float]:
        """What learns beside the policy and not with it: the parameters of a value model of its own, with their pace.
        A head trains the policy's layers, and is one with them."""
        if isinstance(self.value, ValueHead):
            return {}
        return dict.fromkeys(self.value.parameters(), self._pace)

    def forward(
        self, packed: Packed, *, statistics: bool = False, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> PolicyScores:
        """Log-probs of the targets as `TokenScorer` gives them, and the values; a head costs no pass of its own."""
        value, has_head = self.value, isinstance(self.value, ValueHead)
        read = _read(packed) if has_head else packed.sources
        before, behind = _split(packed, self.policy.hidden(packed, read))
        tokens = self.policy.scores(
            before, packed.targets, statistics=statistics, temperature=temperature, entropy_gradient=entropy_gradient
        )
        values = value(before, behind) if has_head else value(packed)
        return PolicyScores(tokens=tokens, values=values)

    def values(self, packed: Packed) -> Values:
        """The values alone, where log-probs are not wanted or known already."""
        if isinstance(self.value, ValueScorer):
            values: Values = self.value(packed)
        else:
            values = self.value(*_split(packed, self.policy.hidden(packed, _read(packed))))
        return values


def _read(packed: Packed) -> Tensor:
    """The tokens at which there are values: before every target, and at the end of every row."""
    return torch.cat([packed.sources, packed.ends])


def _split(packed: Packed, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The states before the targets, and what was read behind them."""
    before, behind = hidden.tensor_split([len(packed.sources)])
    return before, behind


def fresh_value_head(policy: PreTrainedModel | PeftModel, *, layers: int = 1, seed: int = 0) -> ValueHead:
    """A head that says 0 of every state, on the policy's device.

    Random values would be noise in the first advantages, and their loss noise in the policy's layers. Hidden layers are
    drawn from `seed`; only the last, which they need to learn anything, is 0.
    """
    weight = fresh_head(layers, unwrapped(policy).config.get_text_config().hidden_size, std=0.0, seed=seed)
    return ValueHead(weight).to(_device(policy))


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the head into a folder that exists, beside what else was trained."""
    save_file({KEY: head.score.weight.detach().cpu().contiguous()}, folder / FILE)


def load_value_head(policy: PreTrainedModel | PeftModel, folder: Path) -> ValueHead:
    """The head that `save_value_head` left in a folder, on the policy's device, in fp32.

    Raises ModelError where there is none, or it is of another width than the policy.
    """
    file, width = folder / FILE, unwrapped(policy).config.get_text_config().hidden_size
    with unreadable("cannot load the value head", field="model.path", path=str(file)):
        weight = load_file(file)[KEY]
    rows, found = weight.shape
    if found != width or (rows - 1) % width:
        raise ModelError(
            f"value head of shape [{rows}, {found}] on a model of width {width}", field="model.path",
            found=repr(str(file)), fix="it belongs to another model",
        )  # fmt: skip
    # A copy, since safetensors' own memory is not aligned, and products of unaligned memory may round differently.
    return ValueHead(weight.to(torch.float32, copy=True)).to(_device(policy))


def load_value_model(ref: ModelRef, config: Model, *, dtype: torch.dtype, seed: int) -> PreTrainedModel | PeftModel:
    """A value model to train, made of a language model or gone on from; `save_reward_model` writes it.

    A reward model's score, or what an earlier training made of it, is the value to start from; else values start at 0.
    """
    model = load_reward_model(ref, config, RewardHead(), dtype=dtype, trainable=True, seed=seed)
    if (ref.adapter is None or adapter_head(ref.adapter) is None) and checkpoint_head(ref.path) is None:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, ScoreHead):
                    module.weight[-1].zero_()
    return model


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
