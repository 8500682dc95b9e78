"""Attention over packed trees: one function, registered with transformers, that every layer then calls.

Each prompt attends to itself, each branch to its prompt and itself; nothing is computed between trees. A call without
trees (generation, padded rows) is transformers' own SDPA. A layer that says more than is known here, such as attention
sinks, is refused: what is not understood would be left out of its numbers in silence.

On a CPU the trees are taken one segment at a time, so the cost is that of the allowed pairs of tokens: short segments
in bf16 by products of our own (`tree_attention`), twice as fast there as SDPA's flash kernel, everything else by SDPA.
On CUDA one FlexAttention call covers the row, its mask saying which blocks exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from whet.models.decoding import Captured, KeyValues
from whet.models.tree_attention import Segment, causal, segments_of, tree_attention
from whet.schema.packed import Tree

NAME = "whet_trees"
SHORT_PAIRS = 1024 * 1024
"""Queries times keys of a row's largest segment up to which probabilities are kept for the backward pass: 2 MiB a
head in bf16."""
SAID_ELSEWHERE = frozenset({
    "sliding_window", "position_ids", "cache_position", "use_cache", "token_type_ids", "mm_token_type_ids",
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
    "logits_to_keep", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
})  # fmt: skip
"""What layers hand on that changes nothing here: the mask or the trees say it already, other layers or another kernel
want it."""


class UnknownTerm(TypeError):
    """A layer tells its attention something that is not known here and may change its numbers."""


@dataclass(frozen=True)
class Layout:
    """Where the trees of a packed row stand; given to the model as `trees=`, and by it to every attention layer."""

    trees: tuple[Tree, ...]
    captured: Captured | None = field(default=None, compare=False)
    """Where keys and values go that will be decoded from."""
    read: Tensor | None = field(default=None, compare=False)
    """[N] tokens whose output is wanted alone, in any order, some twice (`whet.models.last_layer`); None: all are."""
    _masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict, compare=False)
    """Masks of branches by size and type, made by the first layer and used by all."""
    _blocks: list[Any] = field(default_factory=list, compare=False)
    """FlexAttention's mask of the row, once it has been made."""

    @cached_property
    def segments(self) -> list[Segment]:
        """Every prompt and branch, in order."""
        return segments_of(self.trees)

    @cached_property
    def largest(self) -> int:
        """Most queries times keys of a segment."""
        return max(segment.num_own * (segment.num_before + segment.num_own) for segment in self.segments)

    def branch_mask(self, queries: int, keys: int, like: Tensor) -> Tensor:
        """[queries, keys] added to the scores: the last `queries` keys are the queries themselves, seen up to each."""
        key = queries, keys, like.dtype
        if key not in self._masks:
            unseen = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu_(keys - queries + 1)
            self._masks[key] = torch.zeros_like(unseen, dtype=like.dtype).masked_fill_(unseen, -torch.inf)
        return self._masks[key]

    def block_mask(self, device: torch.device) -> Any:
        """FlexAttention's mask of the whole row."""
        if not self._blocks:
            from torch.nn.attention.flex_attention import create_block_mask

            tree_of, branch_of = (ids.to(device) for ids in segment_ids(self.trees))
            length = len(tree_of)

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                prompt_or_own = (branch_of[key] == 0) | (branch_of[key] == branch_of[query])
                return (query >= key) & (tree_of[query] == tree_of[key]) & prompt_or_own

            self._blocks.append(create_block_mask(sees, None, None, length, length, device=device))
        return self._blocks[0]


def segment_ids(trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
    """Number of the tree and of the branch (0 the prompt) of each of T tokens, each [T]."""
    tree_of = [number for number, tree in enumerate(trees) for _ in range(tree.num_tokens)]
    branch_of = [
        branch for tree in trees for branch, size in enumerate((tree.prompt, *tree.branches)) for _ in range(size)
    ]
    return torch.tensor(tree_of), torch.tensor(branch_of)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: Layout | None = None,
    decoding: KeyValues | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, h, T, d], key and value [B, k, T, d] with h a multiple of k.

    Returns [B, T, h, d]. With `trees`, B is 1 and `attention_mask` is not looked at; with `decoding`, T is the number
    of rows, each with its newest token. Raises UnknownTerm for anything else that is not None and may matter.
    """
    packed = trees is not None or decoding is not None
    # Packed rows are causal, and no bias is looked up for them.
    known = {"position_bias": position_bias, "is_causal": None if is_causal else is_causal} if packed else {}
    _refuse_unknown({**others, **known})
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if packed:
        # Under autocast angles and norms that train may be wider than products; SDPA would cast them just so.
        query, key = query.to(value.dtype), key.to(value.dtype)
    if decoding is not None:
        newest = query.squeeze(0), key.squeeze(0), value.squeeze(0)
        return decoding.attend(module.layer_idx, *newest, scale, softcap).unsqueeze(0), None  # type: ignore[arg-type]
    if trees is None and softcap is not None:
        _refuse_unknown({"position_bias": position_bias})
        causal_here = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        return _capped(query, key, value, scale, softcap, dropout, attention_mask, causal_here).transpose(1, 2), None
    if trees is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias,
        )  # fmt: skip
        return out, None
    if trees.captured is not None:
        trees.captured.take(module.layer_idx, key.squeeze(0), value.squeeze(0))  # type: ignore[arg-type]
    if query.is_cuda and dropout == 0.0:
        return _flex(query, key, value, scale, softcap, trees).transpose(1, 2), None
    query, key, value = query.squeeze(0), key.squeeze(0), value.squeeze(0)
    narrow = query.dtype == torch.bfloat16 and not query.is_cuda
    if narrow and dropout == 0.0 and softcap is None and trees.largest <= SHORT_PAIRS:
        return tree_attention(query, key, value, scale, trees.segments).unsqueeze(0), None
    pieces = [_segment(q, k, v, scale, softcap, dropout, trees) for q, k, v in _segments(query, key, value, trees)]
    return torch.cat(pieces, dim=1).transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _refuse_unknown(told: dict[str, Any]) -> None:
    unknown = sorted(name for name, value in told.items() if value is not None and name not in SAID_ELSEWHERE)
    if unknown:
        raise UnknownTerm(f"its attention takes {', '.join(unknown)}, which is not known here")


def _segments(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries of each segment with the keys and values they see; the last keys are the queries' own."""
    # One split a tensor: its backward is one concatenation, where slices would each fill a whole gradient with zeros.
    sizes = [segment.num_own for segment in layout.segments]
    queries, keys, values = (torch.split(tensor, sizes, dim=1) for tensor in (query, key, value))
    number = 0
    for tree in layout.trees:
        prompt = number
        yield queries[prompt], keys[prompt], values[prompt]
        for _ in tree.branches:
            number += 1
            seen_keys = torch.cat([keys[prompt], keys[number]], dim=1)
            yield queries[number], seen_keys, torch.cat([values[prompt], values[number]], dim=1)
        number += 1


def _segment(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, dropout: float, layout: Layout
) -> Tensor:
    """[h, n, d] queries over [kv, m, d] keys, m >= n. Returns [h, n, d]."""
    n, m = q.shape[1], k.shape[1]
    if cap is not None:
        return _capped(q, k, v, scale, cap, dropout, layout.branch_mask(n, m, q))
    mask = None if n == m else layout.branch_mask(n, m, q)
    return scaled_dot_product_attention(
        q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), attn_mask=mask, is_causal=n == m, dropout_p=dropout,
        scale=scale, enable_gqa=q.shape[0] != k.shape[0],
    )[0]  # fmt: skip


def _capped(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, dropout: float, mask: Tensor | None,
    is_causal: bool = True,
) -> Tensor:  # fmt: skip
    """Scores bent to cap * tanh(score / cap) before the softmax (Gemma 2), which SDPA does not know.

    `mask` is added, or says True where a key is seen; with None every key is, or with `is_causal` those up to a query.
    """
    groups = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    scores = cap * torch.tanh(torch.matmul(q, k.transpose(-1, -2)) * scale / cap)
    if mask is None and is_causal and q.shape[-2] > 1:
        mask = causal(q.shape[-2]).to(scores)
    if mask is not None:
        # Finite, since a padding position may see nothing at all, and its row must not become NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.matmul(drop(scores.softmax(dim=-1, dtype=wide).to(v.dtype), dropout), v)


def _flex(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, layout: Layout) -> Tensor:
    def bend(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap) if cap is not None else score

    attention = _compiled_flex() if q.is_cuda else _plain_flex()
    out: Tensor = attention(
        q, k, v, score_mod=None if cap is None else bend, block_mask=layout.block_mask(q.device), scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out


def _plain_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled_flex() -> Any:
    return torch.compile(_plain_flex(), dynamic=True)
