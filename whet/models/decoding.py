"""Keys and values of rows that are being decoded, and their attention: a prompt once for all its samples.

    prompts    G groups, each a prompt          keys and values [G, k, P, d]    P the longest prompt
    own        M rows, each in a group          keys and values [M, k, S, d]    S the longest answer so far

A step appends one token to every row. Its query meets the prompt in one product for all rows of the group, so a prompt
is read from memory once a step however many samples it has, and its own tokens in another; one softmax covers both.
While the same rows run and their room lasts, all of this stays in place, and a step can be recorded and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

STRIDE = 32
"""Lengths grow by so many positions: fewer shapes to compile a product for, fewer copies."""


@dataclass(slots=True)
class Captured:
    """Keys and values of whole prompts, layer by layer, as a forward pass over packed rows goes by."""

    sizes: tuple[int, ...]
    """Tokens of each prompt."""
    shifts: tuple[int, ...]
    """How much further on than its tokens' number what follows each prompt stands; 0 but for pictures in a grid."""
    keys: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    """Layer to one [k, P, d] for each prompt."""
    values: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def take(self, layer: int, key: Tensor, value: Tensor) -> None:
        """key and value [k, T, d] of the packed row, prompts first."""
        num = sum(self.sizes)
        self.keys[layer] = torch.split(key[:, :num], [*self.sizes], dim=1)
        self.values[layer] = torch.split(value[:, :num], [*self.sizes], dim=1)


@dataclass(slots=True)
class _Layer:
    """One layer's memory; see the module's picture. The own part has room for more tokens than are in use."""

    prompt_keys: Tensor
    prompt_values: Tensor
    own_keys: Tensor
    own_values: Tensor


class KeyValues:
    """The memory of a changing set of rows. All of a group's rows enter together."""

    def __init__(self, *, recordable: bool = False) -> None:
        """`recordable`: only tensors tell a step from the one before (`whet.models.recorded`)."""
        self._recordable = recordable
        self._layers: dict[int, _Layer] = {}
        self._prompt_lengths: list[int] = []
        self._shifts: list[int] = []
        """Of each group, see `Captured`."""
        self._groups: list[int] = []
        """Group of each row."""
        self._lengths: list[int] = []
        """Tokens of its own that each row has."""
        self._step: _Step | None = None
        self._begun = False

    @property
    def arrangement(self) -> object:
        """The same object as long as all tensors stay in place, once a step has begun."""
        assert self._step is not None, "after begin"
        return self._step

    @property
    def num_rows(self) -> int:
        return len(self._groups)

    @property
    def positions(self) -> list[int]:
        """Where the next token of each row stands."""
        begin = [size + shift for size, shift in zip(self._prompt_lengths, self._shifts, strict=True)]
        return [begin[group] + length for group, length in zip(self._groups, self._lengths, strict=True)]

    def num_bytes(self) -> int:
        """What is held, unused room included."""
        tensors = (
            tensor
            for layer in self._layers.values()
            for tensor in (layer.prompt_keys, layer.prompt_values, layer.own_keys, layer.own_values)
        )
        return sum(tensor.nbytes for tensor in tensors)

    def enter(self, captured: Captured, rows: Sequence[int]) -> None:
        """Add the captured prompts as new groups, `rows[i]` rows to the i-th, behind the rows there are."""
        first, self._step = len(self._prompt_lengths), None
        self._prompt_lengths += captured.sizes
        self._shifts += captured.shifts
        for number, count in enumerate(rows):
            self._groups += [first + number] * count
            self._lengths += [0] * count
        longest = _room(max(self._prompt_lengths))
        for number in captured.keys:
            keys, values = _padded(captured.keys[number], longest), _padded(captured.values[number], longest)
            layer = self._layers.get(number)
            if layer is None:
                own_keys, own_values = (x.new_zeros(0, x.shape[1], STRIDE, x.shape[3]) for x in (keys, values))
                self._layers[number] = _Layer(keys, values, own_keys, own_values)
                continue
            layer.prompt_keys = torch.cat([_wider(layer.prompt_keys, 2, longest), keys])
            layer.prompt_values = torch.cat([_wider(layer.prompt_values, 2, longest), values])

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave, and the groups that have none left."""
        groups, self._step = list(dict.fromkeys(self._groups[row] for row in rows)), None
        again = {group: number for number, group in enumerate(groups)}
        whole = len(groups) == len(self._prompt_lengths)
        for layer in self._layers.values():
            which = torch.tensor(rows, device=layer.own_keys.device, dtype=torch.int64)
            used = which[which < len(layer.own_keys)]  # rows that have just entered have nothing yet
            longest = _room(max((self._lengths[row] for row in rows), default=0))
            layer.own_keys = layer.own_keys[used][:, :, :longest].contiguous()
            layer.own_values = layer.own_values[used][:, :, :longest].contiguous()
            if not whole:
                which = torch.tensor(groups, device=which.device, dtype=torch.int64)
                longest = _room(max((self._prompt_lengths[group] for group in groups), default=1))
                layer.prompt_keys = layer.prompt_keys[which][:, :, :longest].contiguous()
                layer.prompt_values = layer.prompt_values[which][:, :, :longest].contiguous()
        self._prompt_lengths = [self._prompt_lengths[group] for group in groups]
        self._shifts = [self._shifts[group] for group in groups]
        self._groups, self._lengths = [again[self._groups[row]] for row in rows], [self._lengths[row] for row in rows]

    def begin(self) -> None:
        """Make room for one more token of every row; every layer's `attend` follows, then `end`."""
        needed = max(self._lengths) + 1
        again, self._begun = self._begun, True
        if self._step is not None and not again and needed <= self._step.room:
            self._step.advance()
            return
        room = _room(needed)
        for layer in self._layers.values():
            layer.own_keys = _wider(_wider(layer.own_keys, 0, self.num_rows), 2, room)
            layer.own_values = _wider(_wider(layer.own_values, 0, self.num_rows), 2, room)
            room = layer.own_keys.shape[2]
        device = next(iter(self._layers.values())).own_keys.device
        place = self._lengths[0] if len(set(self._lengths)) == 1 and not self._recordable else None
        self._step = _Step.of(self._groups, self._prompt_lengths, self._lengths, place, room, device)

    def end(self) -> None:
        self._lengths = [length + 1 for length in self._lengths]
        self._begun = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, cap: float | None) -> Tensor:
        """Attention of each row's newest token: query and key [h or k, T, d], value [k, T, v]. Returns [T, h, v].

        What T has beyond the M rows is filling, and comes out as zeros.
        """
        step, memory = self._step, self._layers[layer]
        assert step is not None and self._begun, "between begin and end"
        num, kv = self.num_rows, len(key)
        heads, asked, width = query.shape
        query, key, value = query[:, :num], key[:, :num], value[:, :num]
        if step.place is None:
            memory.own_keys[step.rows, :, step.lengths] = key.transpose(0, 1)
            memory.own_values[step.rows, :, step.lengths] = value.transpose(0, 1)
        else:
            memory.own_keys[:, :, step.place] = key.transpose(0, 1)
            memory.own_values[:, :, step.place] = value.transpose(0, 1)
        q = query.transpose(0, 1).reshape(num, kv, heads // kv, width)
        own = _products(q, memory.own_keys.transpose(2, 3))
        prompt = step.to_rows(_products(step.to_groups(q), memory.prompt_keys.transpose(2, 3)))
        scores = torch.cat([prompt, own], dim=-1)
        if cap is None:
            scores = torch.add(step.mask, scores, alpha=scale)
        else:
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale / cap).tanh_()
            scores = scores.mul_(cap).add_(step.mask)
        p = scores.softmax(dim=-1).to(value.dtype)
        split = prompt.shape[-1]
        out = step.to_rows(_products(step.to_groups(p[..., :split]), memory.prompt_values))
        out = (out + _products(p[..., split:], memory.own_values)).reshape(num, heads, -1)
        return _wider(out, 0, asked)


@dataclass(slots=True)
class _Step:
    """Which rows there are, and what each may see in the step that is on."""

    rows: Tensor
    """[M], 0 to M - 1."""
    lengths: Tensor
    """[M] place of the new token among the row's own."""
    place: int | None
    """The same as a number, where it is one for all rows of the memory: a copy then writes what else is scattered."""
    room: int
    """S."""
    places: Tensor | None
    """[M] the row's place among G groups of n; None where they lie one behind the other already."""
    num_groups: int
    per_group: int
    mask: Tensor
    """[M, 1, 1, P + S] float32, added to the scores."""

    @classmethod
    def of(
        cls, groups: Sequence[int], prompts: Sequence[int], lengths: Sequence[int], place: int | None, room: int,
        device: torch.device,
    ) -> _Step:  # fmt: skip
        seen: dict[int, int] = dict.fromkeys(range(len(prompts)), 0)
        inside = []
        for group in groups:
            inside.append(seen[group])
            seen[group] += 1
        most = max(seen.values())
        places = [group * most + place for group, place in zip(groups, inside, strict=True)]
        in_order = places == list(range(len(prompts) * most))
        own = torch.tensor(lengths, device=device)
        told = torch.tensor([prompts[group] for group in groups], device=device)
        ahead = torch.cat(
            [
                torch.arange(_room(max(prompts)), device=device) >= told[:, None],
                torch.arange(room, device=device) > own[:, None],
            ],
            dim=-1,
        )
        mask = torch.zeros(ahead.shape, device=device).masked_fill_(ahead, -torch.inf)
        return cls(
            rows=torch.arange(len(groups), device=device), lengths=own,
            place=place, room=room, places=None if in_order else torch.tensor(places, device=device),
            num_groups=len(prompts), per_group=most, mask=mask[:, None, None],
        )  # fmt: skip

    def advance(self) -> None:
        """To the next token of every row, in place."""
        self.lengths.add_(1)
        newest = self.lengths + (self.mask.shape[-1] - self.room)
        self.mask.view(len(self.rows), -1).scatter_(1, newest[:, None], 0.0)
        if self.place is not None:
            self.place += 1

    def to_groups(self, x: Tensor) -> Tensor:
        """[M, k, g, n] to [G, k, rows g, n], rows that a group lacks as zeros."""
        _, kv, each, width = x.shape
        full = x
        if self.places is not None:
            full = x.new_zeros(self.num_groups * self.per_group, kv, each, width)
            full[self.places] = x
        grouped = full.view(self.num_groups, self.per_group, kv, each, width).transpose(1, 2)
        return grouped.reshape(self.num_groups, kv, self.per_group * each, width)

    def to_rows(self, x: Tensor) -> Tensor:
        """The way back."""
        groups, kv, both, width = x.shape
        each = both // self.per_group
        full = x.view(groups, kv, self.per_group, each, width).transpose(1, 2).reshape(-1, kv, each, width)
        return full if self.places is None else full[self.places]


def _products(left: Tensor, right: Tensor) -> Tensor:
    """[a, k, n, m] @ [a, k, m, o] as one batch."""
    batch = left.shape[0] * left.shape[1]
    out = torch.bmm(left.reshape(batch, *left.shape[2:]), right.reshape(batch, *right.shape[2:]))
    return out.view(*left.shape[:2], *out.shape[1:])


def _room(length: int) -> int:
    return -(-length // STRIDE) * STRIDE


def _padded(parts: Sequence[Tensor], length: int) -> Tensor:
    """[k, P_i, d] each, to [G, k, length, d] with zeros behind."""
    whole = parts[0].new_zeros(len(parts), parts[0].shape[0], length, parts[0].shape[2])
    for into, part in zip(whole, parts, strict=True):
        into[:, : part.shape[1]] = part
    return whole


def _wider(x: Tensor, dim: int, size: int) -> Tensor:
    """x with zeros behind up to `size` along `dim`."""
    missing = size - x.shape[dim]
    if missing <= 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim=dim)
