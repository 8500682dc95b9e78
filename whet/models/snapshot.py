"""A model's weights as they are now, ready to generate: adapters folded in, one type, refreshed in place.

What the model holds in that type already is shared, so beside a LoRA model only the adapted layers are there twice.
On a CPU the copies are packed (`whet.models.packed_linear`), and the LM head gets a packed copy even where it could
be shared: it is the largest product of a step, by far in a small model, and small beside the layers in a large one.
Frozen layers are not doubled unless that is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import RunError
from whet.models.backbone import unwrapped
from whet.models.four_bit import dense
from whet.models.lora import is_adapted_linear
from whet.models.own_attention import share_refusal
from whet.models.packed_linear import PackedLinear, packs
from whet.models.vision import Vision, vision_parts

Whole = Callable[[Tensor], Tensor]
"""From a rank's part of a weight to all of it."""


class Snapshot:
    """`model` generates; `refresh` brings it up to date with the model it was taken of."""

    def __init__(
        self, source: torch.nn.Module, dtype: torch.dtype, *, pack_frozen: bool = False, whole: Whole | None = None
    ) -> None:
        """`dtype` is that of the products. A model that is frozen and of that type, and one whose adapter is of a
        kind that cannot be folded in, is used as it is. With `pack_frozen` a packed copy of every frozen layer is held
        as well: decoding is about a third faster where few layers are adapted, for the memory of their weights.
        `whole` gathers a weight of which this rank will hold a part when `refresh` is called, on all ranks at once.

        Raises RunError for a model that would be used as it is, where it will be in parts."""
        self._source, self._dtype, self._pack_frozen = unwrapped(source), dtype, pack_frozen
        self._gather = whole
        self._eyes = tuple(f"{name}." for name in vision_parts(self._source))
        self._copies: list[tuple[Tensor, str]] = []
        """Weights of its own, and the name of the module or parameter of the source that they follow."""
        self._packed: list[tuple[PackedLinear, str]] = []
        """The same for packed ones."""
        twin = self._needs_twin()
        if not twin and whole is not None:
            raise RunError(
                "the adapter cannot be folded into a copy that generates", field="launch.sharding.type",
                fix="leave launch.sharding out, or train a plain LoRA adapter",
            )  # fmt: skip
        self.model: PreTrainedModel = self._twin() if twin else self._source

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's weights as they are now."""
        for weight, name in self._copies:
            weight.copy_(self._now(name))
        for layer, name in self._packed:
            layer.take(self._now(name).to(self._dtype))

    def _needs_twin(self) -> bool:
        kinds = [m for m in self._source.modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper)]
        if not all(_folds(module) for module in kinds):
            return False
        trained = any(parameter.requires_grad for parameter in self._source.parameters())
        if bool(kinds) or trained or any(p.dtype != self._dtype for p in self._source.parameters()):
            return True
        return self._pack_frozen and packs(next(self._source.parameters()), self._dtype)

    @torch.no_grad()
    def _twin(self) -> PreTrainedModel:
        """A model of the same configuration whose weights are the source's own, or copies that follow them."""
        # Of a configuration of its own, in which alone it is told of another attention.
        config = copy.deepcopy(self._source.config)
        with torch.device("meta"):
            twin: PreTrainedModel = type(self._source)(config)
        share_refusal(self._source, twin)
        made: dict[int, torch.nn.Parameter] = {}
        for path, module in list(twin.named_modules()):
            if self._packs(path, module):
                twin.set_submodule(path, self._pack(path, made))
                continue
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    setattr(module, name, self._follow(path, name, made))
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = getattr(self._module(path), name)
        Vision.share(self._source, twin)
        return twin.eval().requires_grad_(False)

    def _follow(self, path: str, name: str, made: dict[int, torch.nn.Parameter]) -> torch.nn.Parameter:
        """The parameter at path.name: shared where it can be, else a copy. Tied weights stay one."""
        source = getattr(self._module(path), name)
        if id(source) in made:
            return made[id(source)]
        follows = self._followed(path, name)
        if follows is None:
            weight = source.detach()
        else:
            weight = self._now(follows).to(self._dtype, copy=True)
            self._copies.append((weight, follows))
        made[id(source)] = torch.nn.Parameter(weight, requires_grad=False)
        return made[id(source)]

    def _followed(self, path: str, name: str) -> str | None:
        """What a copy of the parameter at path.name has to follow; None where it can be shared."""
        folded = is_adapted_linear(self._source.get_submodule(path))
        if folded and name == "weight":
            return path
        source = getattr(self._module(path), name)
        if source.dtype == self._dtype and not source.requires_grad:
            return None
        return f"{path}.base_layer.{name}" if folded else f"{path}.{name}"

    def _packs(self, path: str, module: torch.nn.Module) -> bool:
        """Whether the twin's module is a linear layer to hold packed."""
        if type(module) is not torch.nn.Linear or not packs(self._weight(path), self._dtype):
            return False
        if path.startswith(self._eyes):
            return False  # its products are long, and a picture goes through them once
        head = self._module(path) is self._source.get_output_embeddings()
        return head or self._pack_frozen or self._followed(path, "weight") is not None

    def _pack(self, path: str, made: dict[int, torch.nn.Parameter]) -> PackedLinear:
        module, follows = self._module(path), self._followed(path, "weight")
        weight = self._weight(path) if follows is None else self._now(follows).to(self._dtype)
        layer = PackedLinear(weight, None if module.bias is None else self._follow(path, "bias", made))
        if follows is not None:
            self._packed.append((layer, follows))
        return layer

    def _module(self, path: str) -> torch.nn.Module:
        """The source's module at a path of the plain model, without its adapter."""
        module = self._source.get_submodule(path)
        plain: torch.nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        return plain

    def _weight(self, path: str) -> Tensor:
        weight = self._module(path).weight
        assert isinstance(weight, Tensor), "a linear layer has one"
        return weight

    def _now(self, name: str) -> Tensor:
        """The weight of an adapted layer, or a plain parameter."""
        parent, _, last = name.rpartition(".")
        module: Any = self._source.get_submodule(parent)
        own = getattr(module, last)
        if not isinstance(own, LoraLayer):
            return dense(self._whole(own))
        weight = dense(self._whole(own.get_base_layer().weight))
        if own.disable_adapters:
            return weight
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for adapter in own.active_adapters:
            if adapter in own.lora_A:
                a, b = self._whole(own.lora_A[adapter].weight), self._whole(own.lora_B[adapter].weight)
                wide = torch.addmm(wide, b.to(wide.dtype), a.to(wide.dtype), alpha=own.scaling[adapter])
        return wide

    def _whole(self, weight: Tensor) -> Tensor:
        return weight if self._gather is None else self._gather(weight)


def _folds(module: torch.nn.Module) -> bool:
    """Whether it is a plain low-rank adapter on a plain linear layer."""
    if not isinstance(module, LoraLayer) or not is_adapted_linear(module):
        return False
    return not module.merged and not module.lora_variant and not any(module.lora_bias.values())
