"""Hidden states of packed rows, by the checkpoint's own layers; padded rows where its attention cannot take a tree.

What a model can take is tried out, not looked up: its first packed row is preceded by a probe of a few tokens, packed
and padded, and where the two differ the model is given padded rows from then on, which is said once. So are pictures:
a row with the first one must get the numbers of the model's own forward pass.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from whet.errors import ModelError
from whet.models.activations import KEEPING_ALL, Activations, recomputing
from whet.models.attention import NAME, Layout
from whet.models.decoding import Captured, KeyValues
from whet.models.gate import fuse_gates
from whet.models.head import product_dtype
from whet.models.inputs import Inputs, inputs_of
from whet.models.lean_step import LeanStep, fits
from whet.models.lora import fuse_adapters
from whet.models.mode import evaluating
from whet.models.norm import fuse_norms
from whet.models.offload import offloading
from whet.models.positions import prompt_shifts
from whet.models.recorded import Layers, Record, Recorded
from whet.models.repeated import ROWS, TOKENS, missing
from whet.models.rotary import fuse_rotary
from whet.models.rows import from_trees, row_places
from whet.models.vision import Vision, language_layers
from whet.schema.packed import Packed, Tree
from whet.schema.pictures import Media

PROBE = (Tree(0, 3, (2, 4)), Tree(9, 5))
ONEDNN_ABOVE = 16**3
"""Rows times inputs times outputs of a bf16 product (ATen's `mkldnn_gemm_min_size`)."""

Stepper = Callable[[Tensor, KeyValues], Tensor]


class Backbone:
    """The layers of one model between its embeddings and its head."""

    def __init__(
        self, model: torch.nn.Module, *, keep_tokens: int | None = None, activations: Activations = KEEPING_ALL
    ) -> None:
        """Rows of more than `keep_tokens` tokens keep no activations but each layer's input; others as `activations`
        says."""
        self._whole = unwrapped(model)
        self._keep_tokens, self._activations = keep_tokens, activations
        if activations.offload and next(self._whole.parameters()).device.type == "cpu":
            warnings.warn("train.activation_offload moves nothing on a CPU: activations lie on the host", stacklevel=2)
        self._layers = language_layers(self._whole)
        self._vision = Vision.of(self._whole)
        self._window = _window(self._whole)
        self._last_position = (max_positions(self._whole) or sys.maxsize) - 1
        self.least_rows = least_rows(self._whole)
        """Rows that are decoded together at least, some of them filling."""
        fuse_adapters(self._whole)
        fuse_norms(self._whole)
        fuse_gates(self._whole)
        self.refusal = self._why_not()
        """Why rows are padded, or None where they are packed."""
        if self.refusal is None:
            fuse_rotary(self._whole)
        else:
            warnings.warn(f"rows are padded, not packed: {self.refusal}", stacklevel=2)

    @property
    def embeddings(self) -> torch.nn.Module:
        embeddings: torch.nn.Module = self._whole.get_input_embeddings()
        return embeddings

    def hidden(self, packed: Packed, embedded: Tensor | None = None) -> Tensor:
        """[T, H]: the last layer's output for every token. `embedded` [T, H] replaces the tokens' embeddings, but for
        the pictures'.

        Raises ModelError for pictures that the model does not take, or not in a way that is known here.
        """
        padded = self.refusal is not None or (self._window is not None and _longest(packed.trees) > self._window)
        self._try_pictures(packed.media)
        with self._keeping(packed):
            inputs = self._inputs(packed, embedded)
            return self._padded(inputs, packed.trees) if padded else self._packed(inputs, packed.trees)

    @contextmanager
    def _keeping(self, packed: Packed) -> Iterator[None]:
        """What autograd keeps of one forward pass, and where."""
        if not torch.is_grad_enabled():
            yield
            return
        large = self._keep_tokens is not None and packed.num_tokens > self._keep_tokens
        how = replace(self._activations, every=1, selective=False) if large else self._activations
        device = packed.input_ids.device
        away = offloading(self._whole, device) if how.offload and device.type != "cpu" else nullcontext()
        with away, recomputing(self._whole, how):
            yield

    def prompts(self, packed: Packed) -> tuple[Tensor, Captured]:
        """[T, H] of prompts without branches, and their keys and values to decode from."""
        self._try_pictures(packed.media)
        captured = Captured(sizes=tuple(tree.prompt for tree in packed.trees), shifts=self._shifts(packed))
        return self._packed(self._inputs(packed), packed.trees, captured, least=self.least_rows), captured

    def padded_prompts(self, packed: Packed, place: Tensor) -> tuple[Tensor, Any, Tensor]:
        """The same for prompts with pictures where rows are padded, on the left: their tokens stand at place [R, L] of
        the packed row, -1 is padding. [R, H] of their last tokens, transformers' cache, and their shifts [R]."""
        self._try_pictures(packed.media)
        inputs = self._inputs(packed)
        # Positions count from the first real token, where a model would count from the first column.
        taken = inputs.rows(place) | {"position_ids": inputs.positions[..., place.clamp_min(0)]}
        out = self._layers(**taken, use_cache=True)
        shifts = torch.tensor(self._shifts(packed), device=place.device)
        return out.last_hidden_state[:, -1], out.past_key_values, shifts

    def _shifts(self, packed: Packed) -> tuple[int, ...]:
        """How much further on what follows each prompt stands than its tokens' number says."""
        in_grid = self._vision is not None and self._vision.in_grid
        return prompt_shifts(packed.trees, packed.media if in_grid else None)

    def stepper(self, record: Record | None = None) -> Stepper:
        """What decodes a token a row with the weights as they are now.

        From ids [M], each row's newest token, which takes its place in the memory, to [M, H] and what fills them up to
        `least_rows` and a multiple of `ROWS`, valid until the next step. With `record` steps are recorded and replayed;
        the memory must be recordable.
        """
        layers: Layers = LeanStep(self._whole) if self._is_lean else self._step
        if record is not None:
            layers = Recorded(layers, record)

        def step(ids: Tensor, memory: KeyValues) -> Tensor:
            filling = (0, self._filling(len(ids), self.least_rows, ROWS))
            # A row that has ended goes on until it leaves, and a table of positions ends where the model does.
            positions = torch.tensor(memory.positions, device=ids.device).clamp_max_(self._last_position)
            memory.begin()
            hidden = layers(pad(ids, filling), pad(positions, filling), memory)
            memory.end()
            return hidden

        return step

    def _step(self, ids: Tensor, positions: Tensor, memory: KeyValues) -> Tensor:
        """By the checkpoint's own layers."""
        return self._run(Inputs(ids=ids, positions=positions), decoding=memory)

    @cached_property
    def _is_lean(self) -> bool:
        """Whether `LeanStep` gives the numbers of the checkpoint's own layers."""
        if not fits(self._whole):
            return False
        device = next(self._whole.parameters()).device
        sizes = [tree.num_tokens for tree in PROBE]
        prompts, ids = tuple(Tree(sum(sizes[:n]), size) for n, size in enumerate(sizes)), torch.arange(sum(sizes))
        with torch.no_grad(), evaluating(self._whole):
            captured = self.prompts(from_trees((ids + 1).to(device), prompts))[1]
            newest, places = torch.tensor([2, 3, 4], device=device), torch.tensor([sizes[0]] * 2 + [sizes[1]])
            own, lean = KeyValues(), KeyValues()
            try:
                steps: list[tuple[Layers, KeyValues]] = [(LeanStep(self._whole), lean), (self._step, own)]
            except AttributeError:
                return False
            hidden = []
            for step, memory in steps:
                memory.enter(captured, [2, 1])
                memory.begin()
                hidden.append(step(newest, places.to(device), memory).float())
                memory.end()
        return self._agree(*hidden)

    def decodes(self, length: int) -> bool:
        """Whether rows of so many tokens can be decoded by `prompts` and `step`."""
        return self.refusal is None and (self._window is None or length <= self._window)

    def _inputs(self, packed: Packed, embedded: Tensor | None = None) -> Inputs:
        return inputs_of(packed, embedded, self.embeddings, self._vision)

    def _run(self, inputs: Inputs, **known: Layout | KeyValues) -> Tensor:
        """[T, H] of T tokens in one row; what is `known` of how they belong together goes to the attention."""
        # transformers hands a mask of four dimensions on as it is; our attention does not look at it.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs.ids.device)
        hidden: Tensor = self._layers(
            **inputs.one_row(), attention_mask=mask, use_cache=False, **known
        ).last_hidden_state
        return hidden[0]

    def _packed(
        self, inputs: Inputs, trees: tuple[Tree, ...], captured: Captured | None = None, least: int = 1
    ) -> Tensor:
        """[T, H], behind them rows of filling on the way where a CPU's products want them: one more tree, which none of
        the others sees."""
        num = len(inputs.ids)
        filling = self._filling(num, least, TOKENS)
        if not filling:
            return self._run(inputs, trees=Layout(trees, captured))
        return self._run(inputs.filled(filling), trees=Layout((*trees, Tree(num, filling)), captured))[:num]

    def _filling(self, num: int, least: int, round_to: int) -> int:
        """Rows behind `num` of them, for products that round alike and have a shape that was there before."""
        weight, full = next(self._whole.parameters()), max(num, least)
        return full + missing(full, product_dtype(weight), weight.device, round_to) - num

    def _padded(self, inputs: Inputs, trees: tuple[Tree, ...]) -> Tensor:
        places = row_places(trees).to(inputs.ids.device)  # [R, L], -1 is padding
        hidden: Tensor = self._layers(**inputs.rows(places), use_cache=False).last_hidden_state
        # A prompt's tokens stand in several rows and are the same in all: the first row's are taken.
        flat = torch.full((len(inputs.ids),), -1, dtype=torch.int64, device=places.device)
        order = (places >= 0).flatten().nonzero(as_tuple=True)[0].flip(0)
        flat[places.flatten()[order]] = order
        return hidden.flatten(0, 1)[flat]

    def _why_not(self) -> str | None:
        implementation = self._whole.config._attn_implementation
        if implementation not in (NAME, "sdpa"):
            return f"model.attention is {implementation}"
        if not self._whole._supports_attention_backend:
            return f"{type(self._whole).__name__} has an attention of its own"
        kinds = set(_config(self._whole).get("layer_types") or ()) - {"full_attention", "sliding_attention"}
        if kinds:
            return f"{type(self._whole).__name__} has layers of {', '.join(sorted(kinds))}"
        self._whole.set_attn_implementation(NAME)
        if self._probe_agrees():
            return None
        self._whole.set_attn_implementation(implementation)
        return f"{type(self._whole).__name__} gives other numbers for packed rows"

    def _probe_agrees(self) -> bool:
        device = next(self._whole.parameters()).device
        ids = torch.arange(1, 1 + sum(tree.num_tokens for tree in PROBE), device=device)
        probe = from_trees(ids, PROBE)
        with torch.no_grad(), evaluating(self._whole):
            try:
                inputs = self._inputs(probe)
                packed, padded = self._run(inputs, trees=Layout(PROBE)), self._padded(inputs, PROBE)
            except (TypeError, ValueError, RuntimeError, IndexError):
                return False  # a layer that does not pass `trees` on, or will not have the mask
        return self._agree(packed.float(), padded.float())

    def _try_pictures(self, media: Media | None) -> None:
        """Raises ModelError where a row with the first picture gets other numbers than by the model's own forward."""
        if media is None or self._vision is None or self._vision.tried:
            return
        device, picture = next(self._whole.parameters()).device, media.pictures[0]
        tried = torch.arange(1, 1 + picture.num_tokens, device=device)
        types = torch.zeros(picture.num_tokens + 3, dtype=torch.int64, device=device).index_fill_(0, tried, 1)
        ids = types * self._whole.config.image_token_id
        one = Media(pictures=(picture,), places=tried, load=media.load)
        row = from_trees(ids, (Tree(0, len(ids)),), one)
        with torch.no_grad(), evaluating(self._whole), torch.autocast(device.type, enabled=False):
            ours = self._padded(self._inputs(row), row.trees).float()
            agree = self._agree(ours, self._own(ids, types, one).float())
        if not agree:
            raise ModelError(
                f"{type(self._whole).__name__} takes pictures in a way that is not known here", field="model.path",
                fix="take a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA checkpoint",
            )  # fmt: skip
        self._vision.tried = True

    def _own(self, ids: Tensor, types: Tensor, media: Media) -> Tensor:
        """[T, H] of one row with pictures by the model's own forward pass; types [T] are 1 at a picture's tokens."""
        base = getattr(self._whole, self._whole.base_model_prefix)
        told = {"mm_token_type_ids", "token_type_ids"} & signature(base.forward).parameters.keys()
        seen = {name: tensor.to(ids.device) for name, tensor in media.load(media.pictures).items()}
        hidden: Tensor = base(
            input_ids=ids.unsqueeze(0), attention_mask=torch.ones_like(ids).unsqueeze(0), use_cache=False, **seen,
            **{name: types.unsqueeze(0) for name in told},
        ).last_hidden_state  # fmt: skip
        return hidden[0]

    def _agree(self, ours: Tensor, theirs: Tensor) -> bool:
        narrow = product_dtype(next(self._whole.parameters())) in (torch.bfloat16, torch.float16)
        return bool((ours - theirs).norm() <= (0.05 if narrow else 1e-3) * theirs.norm())


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model under a peft adapter."""
    whole: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return whole


def max_positions(model: torch.nn.Module) -> int | None:
    """Positions the model has; None where its configuration sets no limit."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    return getattr(config, "max_position_embeddings", None)


def _longest(trees: tuple[Tree, ...]) -> int:
    return max(tree.prompt + max(tree.branches, default=0) for tree in trees)


def _config(whole: PreTrainedModel) -> dict[str, Any]:
    """The shape of the language model, a vision-language model's included."""
    config: dict[str, Any] = whole.config.get_text_config().to_dict()
    return config


def _window(whole: PreTrainedModel) -> int | None:
    """Tokens that the layers with a sliding window see; shorter rows do not notice it."""
    config = _config(whole)
    slides = "sliding_attention" in (config.get("layer_types") or ()) or (
        not config.get("layer_types") and config.get("sliding_window")
    )
    return config.get("sliding_window") if slides else None


def least_rows(model: torch.nn.Module) -> int:
    """Rows from which on the model's products round alike; a sample must not know its neighbours.

    Found by trying: fp32 on a CPU from 8 rows on; bf16 there as soon as oneDNN computes all of them, which torch leaves
    to another routine up to `ONEDNN_ABOVE` multiplications. With AMX, whose tiles take over at 37 rows, from 40.
    """
    parameters = list(model.parameters())
    if parameters[0].device.type != "cpu" or parameters[0].dtype != torch.bfloat16:
        return 8
    if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return 40
    smallest = min((parameter.numel() for parameter in parameters if parameter.ndim == 2), default=ONEDNN_ABOVE)
    return max(8, ONEDNN_ABOVE // smallest + 1)
