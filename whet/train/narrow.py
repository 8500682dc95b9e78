"""bf16 weights under an optimiser that works in fp32: half the memory, none of the lost updates.

    gradient   bf16 as the backward pass gives it; added up in fp32 once a second micro-batch comes
    step       a part of a weight at a time: fp32 from bf16, the optimiser's update, bf16 again

Bytes per weight under AdamW, with one micro-batch a step: 2 (weight) + 2 (gradient) + 8 (averages), and 2 more for what
makes the weight an exact fp32 number. All in fp32 it is 16, and 2 more while autocast's copies live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from whet.train.rounding import join, round_at_random, split
from whet.train.state import load_state, state_of

PART = 1 << 22
"""Weights that are fp32 at the same time, 16 MiB of them: larger parts are slower on a CPU, smaller ones on a GPU. A
multiple of the blocks that 8-bit states are made of."""
STEPS, REMAINDER = "steps", "remainder"


@dataclass(slots=True)
class _Part:
    """A stretch of one parameter, flattened."""

    rows: slice
    wide: Parameter
    """[n] fp32 while its update is computed, else empty; what `inner` knows it by."""
    inner: torch.optim.Optimizer
    remainder: Tensor | None
    """[n] int16: the lower half of the fp32 master weight; None where there is no master."""


@dataclass(slots=True)
class _Held:
    """One trained parameter."""

    parameter: Parameter
    parts: list[_Part] = field(default_factory=list)
    gradient: Tensor | None = None
    """Sum over the step's micro-batches: bf16 from the first alone, fp32 from the second on."""

    def take(self, parameter: Tensor) -> None:
        """Move the gradient of a micro-batch out of `.grad`, where the next one would be added in bf16."""
        assert parameter.grad is not None, "one optimiser holds a weight"
        new, parameter.grad = parameter.grad, None
        self.gradient = new if self.gradient is None else self.gradient.float().add_(new)

    @property
    def apart(self) -> bool:
        """Whether it is clipped apart from the rest."""
        apart: bool = self.parts[0].inner.param_groups[0]["apart"]
        return apart

    def flat_gradient(self) -> Tensor | None:
        return None if self.gradient is None else self.gradient.reshape(-1)


class NarrowWeights:
    """What the loop asks of an optimiser, for bf16 weights.

    With `master` the weights are fp32 numbers of which the model sees the nearest bf16 (Micikevicius et al.,
    1710.03740); without, each update is rounded at random. The random bits are a function of (seed, step), so nothing
    about them has to be saved.
    """

    def __init__(
        self, parameters: Sequence[Parameter], inner: Callable[[Parameter, Parameter], torch.optim.Optimizer], *,
        master: bool, seed: int,
    ) -> None:  # fmt: skip
        """Makes the parameters bf16. `inner(parameter, part)` gives the optimiser of an fp32 part of a parameter."""
        self._seed, self._steps = seed, 0
        self._generator = torch.Generator(parameters[0].device)
        self._scales: dict[bool, Tensor] = {}
        """What clipping leaves of the gradients, of what stands apart and of the rest."""
        longest = min(PART, max(parameter.numel() for parameter in parameters))
        self._scratch = torch.empty(2, longest, device=parameters[0].device)
        """Weights and gradients of the part that is being updated."""
        self._held = [_hold(parameter, inner, self._scratch, master=master) for parameter in parameters]

    def fill_gradients(self) -> None:
        """Zeros where the step has no gradient."""
        for held in self._held:
            if held.gradient is None:
                held.gradient = torch.zeros_like(held.parameter)

    def wide_gradients(self) -> list[Tensor]:
        """The step's gradients in fp32, where there are any; what is written to them is what `step` takes."""
        wide = []
        for held in self._held:
            if held.gradient is not None:
                held.gradient = held.gradient.float()
                wide.append(held.gradient)
        return wide

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all inner optimisers; the loop sets their `lr`."""
        return [group for held in self._held for part in held.parts for group in part.inner.param_groups]

    @property
    def gradients(self) -> list[Tensor | None]:
        """Sum of each parameter's gradients over the micro-batches so far, before clipping."""
        return [held.gradient for held in self._held]

    def clip(self, max_norm: float) -> Tensor:
        """Norm of the whole gradient, in fp32; the step will use the gradient scaled to at most `max_norm`, what stands
        apart by itself."""
        found: dict[bool, list[Tensor]] = {}
        for held in self._held:
            if (gradient := held.flat_gradient()) is not None:
                found.setdefault(held.apart, []).extend(
                    torch.linalg.vector_norm(gradient[part.rows], dtype=torch.float32) for part in held.parts
                )
        if not found:
            return torch.zeros(())
        norms = {apart: torch.linalg.vector_norm(torch.stack(own)) for apart, own in found.items()}
        self._scales = {apart: (max_norm / (norm + 1e-6)).clamp(max=1.0) for apart, norm in norms.items()}
        own = list(norms.values())
        whole: Tensor = own[0] if len(own) == 1 else torch.linalg.vector_norm(torch.stack(own))
        return whole

    @torch.no_grad()
    def step(self) -> None:
        """One update; each gradient is given up as soon as it has been used."""
        self._steps += 1
        self._generator.manual_seed(_bits(self._seed, self._steps))
        for held in self._held:
            gradient, narrow = held.flat_gradient(), held.parameter.data.view(-1)
            held.gradient = None
            if gradient is not None:
                for part in held.parts:
                    self._update(part, narrow[part.rows], gradient[part.rows], self._scales.get(held.apart, 1.0))

    def _update(self, part: _Part, narrow: Tensor, gradient: Tensor, scale: Tensor | float) -> None:
        wide, fp32_gradient = self._scratch[0, : len(narrow)], self._scratch[1, : len(narrow)]
        if part.remainder is None:
            wide.copy_(narrow)
        else:
            join(narrow, part.remainder, wide)
        part.wide.data, part.wide.grad = wide, fp32_gradient.copy_(gradient).mul_(scale)
        part.inner.step()
        wide, spare = part.wide.data, fp32_gradient.view(torch.int32)
        if part.remainder is None:
            round_at_random(wide, narrow, spare, self._generator)
        else:
            split(wide, narrow, part.remainder, spare)
        _empty(part.wide)

    def zero_grad(self) -> None:
        self._scales = {}
        for held in self._held:
            held.gradient = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the weights: `PARAMETER.PART.NAME`, both counted from 0, and the number of steps."""
        named = {STEPS: torch.tensor(self._steps)}
        for key, part in self._numbered():
            named |= {f"{key}.{name}": value for name, value in state_of(part.inner, part.wide).items()}
            if part.remainder is not None:
                named[f"{key}.{REMAINDER}"] = part.remainder.cpu()
        return named

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors()`; the model has been loaded with the weights of the same moment."""
        self._steps = int(tensors[STEPS])
        for key, part in self._numbered():
            own = {name[len(key) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{key}.")}
            if part.remainder is not None:
                part.remainder.copy_(own.pop(REMAINDER))
            load_state(part.inner, part.wide, own)

    def _numbered(self) -> list[tuple[str, _Part]]:
        return [
            (f"{number}.{place}", part)
            for number, held in enumerate(self._held)
            for place, part in enumerate(held.parts)
        ]


def _hold(
    parameter: Parameter, inner: Callable[[Parameter, Parameter], torch.optim.Optimizer], scratch: Tensor, *,
    master: bool,
) -> _Held:  # fmt: skip
    """Make the parameter bf16, keep what that cuts off if there is a master, and watch for its gradients."""
    held, before = _Held(parameter), parameter.data.contiguous().view(-1)
    narrow = torch.empty(parameter.shape, dtype=torch.bfloat16, device=parameter.device)
    for start in range(0, len(before), PART):
        rows = slice(start, min(start + PART, len(before)))
        wide, spare = scratch[0, : rows.stop - start], scratch[1, : rows.stop - start].view(torch.int32)
        remainder = torch.empty_like(wide, dtype=torch.int16) if master else None
        split(wide.copy_(before[rows]), narrow.view(-1)[rows], remainder, spare)
        known = Parameter(wide)
        held.parts.append(_Part(rows, known, inner(parameter, known), remainder))
        _empty(known)
    parameter.data = narrow
    parameter.register_post_accumulate_grad_hook(held.take)  # type: ignore[no-untyped-call]
    return held


def _empty(wide: Parameter) -> None:
    wide.grad = None
    wide.data = torch.empty(0, device=wide.device)


def _bits(seed: int, step: int) -> int:
    """A seed of a step's own, far from its neighbours'."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest())
