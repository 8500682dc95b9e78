"""Hidden states of packed rows, by the checkpoint's own layers; padded rows where its attention cannot take a tree.

What a model can take is tried out, not looked up: its first packed row is preceded by a probe of a few tokens, packed,
padded, and padded under the model's own attention. Where one differs from another the model is given padded rows under
its own attention from then on, which is said once. So are pictures: a row with the first one must get the numbers of
the model's own forward pass.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from whet.models.activations import KEEPING_ALL, Activations, can_recompute, check_recomputing, recomputing
from whet.models.attention import NAME, Layout, UnknownTerm
from whet.models.decoding import Captured, KeyValues
from whet.models.gate import fuse_gates
from whet.models.head import product_dtype
from whet.models.inputs import Inputs, inputs_of
from whet.models.last_layer import SHARE, leave_last_layer, read_last_layer, reads_last_layer
from whet.models.lean_step import LeanStep, fits
from whet.models.lora import fuse_adapters
from whet.models.memory import num_weights
from whet.models.mode import agree, trying
from whet.models.norm import fuse_norms
from whet.models.offload import offloading
from whet.models.own_attention import attention_of, finding, found_before, own_attention, remember, set_attention
from whet.models.padding import parts_of, through_parts
from whet.models.picture_trial import try_pictures
from whet.models.positions import prompt_shifts
from whet.models.recorded import Layers, Record, Recorded
from whet.models.repeated import ROWS, least_rows, missing, row_step
from whet.models.rotary import fuse_rotary
from whet.models.rows import from_trees, row_places
from whet.models.vision import Vision, language_layers
from whet.models.window import longest_row, tell_once, text_config, window_of
from whet.schema.packed import Packed, Tree
from whet.schema.pictures import Media

PROBE = (Tree(0, 3, (2, 4)), Tree(9, 5))

Stepper = Callable[[Tensor, KeyValues], Tensor]


class Backbone:
    """The layers of one model between its embeddings and its head."""

    def __init__(
        self, model: torch.nn.Module, *, keep_tokens: int | None = None, activations: Activations = KEEPING_ALL
    ) -> None:
        """Rows of more than `keep_tokens` tokens keep no activations but each layer's input; others as `activations`
        says. Raises ModelError where that is to recompute what this model cannot."""
        self._whole = unwrapped(model)
        check_recomputing(self._whole, activations)
        self._keep_tokens, self._activations = keep_tokens, activations
        if activations.offload and next(self._whole.parameters()).device.type == "cpu":
            warnings.warn("train.activation_offload moves nothing on a CPU: activations lie on the host", stacklevel=2)
        self._layers = language_layers(self._whole)
        self._vision = Vision.of(self._whole)
        self._window = window_of(self._whole)
        self._last_position = (max_positions(self._whole) or sys.maxsize) - 1
        self.least_rows = least_rows(self._whole)
        """Rows that are decoded together at least, some of them filling."""
        self.at_once = False
        """Whether padded rows go through the layers in one part, however long: all ranks call them as often then."""
        self._row_step = row_step(num_weights(self._layers))
        fuse_adapters(self._whole)
        fuse_norms(self._whole)
        fuse_gates(self._whole)
        known = found_before(self._whole, self._layers)
        self.refusal = finding(self._whole) if known else self._why_not()
        """Why rows are padded, or None where they are packed."""
        self._reads = reads_last_layer(self._whole) if known else self.refusal is None and self._reads_well()
        remember(self._whole, self.refusal)
        if self.refusal is None:
            fuse_rotary(self._whole)
        elif not known:
            warnings.warn(f"rows are padded, not packed: {self.refusal}", stacklevel=2)

    @property
    def embeddings(self) -> torch.nn.Module:
        embeddings: torch.nn.Module = self._whole.get_input_embeddings()
        return embeddings

    def hidden(self, packed: Packed, read: Tensor, embedded: Tensor | None = None) -> Tensor:
        """[N, H]: the last layer's output for the tokens `read` [N]. `embedded` [T, H] replaces the tokens' embeddings,
        but for the pictures'.

        Raises ModelError for pictures that the model does not take, or not in a way that is known here.
        """
        padded, num = self.refusal is not None or self._exceeds_window(packed.trees), packed.num_tokens
        self._try_pictures(packed.media)
        room = sys.maxsize if self.at_once else max(num, self._keep_tokens or 0)
        parts = parts_of(row_places(packed.trees), room) if padded else []
        with self._keeping(sum(part.numel() for part in parts) or num, packed.input_ids.device):
            inputs = self._inputs(packed, embedded)
            if padded:
                return through_parts(self._layers, inputs, parts)[read]
            if not self._reads or len(read) > SHARE * num:
                return self._packed(inputs, packed.trees)[read]
            few = pad(read, (0, self._filling(len(read), 1, self._row_step)))
            return self._packed(inputs, packed.trees, read=few)[: len(read)]

    @contextmanager
    def _keeping(self, num: int, device: torch.device) -> Iterator[None]:
        """What autograd keeps of a forward pass over so many tokens, and where."""
        if not torch.is_grad_enabled():
            yield
            return
        large = self._keep_tokens is not None and num > self._keep_tokens
        if large and not can_recompute(self._whole):
            warnings.warn(
                f"transformers cannot recompute the activations of {type(self._whole).__name__}: rows of more than "
                f"{self._keep_tokens} tokens keep theirs", stacklevel=2,
            )  # fmt: skip
            self._keep_tokens, large = None, False
        how = replace(self._activations, every=1, selective=False) if large else self._activations
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
        with trying(self._whole):
            try:
                lean = LeanStep(self._whole)
            except AttributeError:
                return False
            same = agree(self._whole, self._decoded(lean), self._decoded(self._step))
            return same and all(agree(self._whole, *pair) for pair in lean.gates(self._whole))

    @cached_property
    def _steps(self) -> bool:
        """Whether a step gives the numbers of the packed row with its token; not where a layer attends twice, say."""
        trees = tuple(Tree(start, size, (1,) * rows) for start, size, rows in ((0, 9, 2), (11, 5, 1)))
        ids = torch.tensor([*range(1, 10), 2, 3, *range(10, 15), 4], device=next(self._whole.parameters()).device)
        with trying(self._whole):
            try:
                expected = self._packed(self._inputs(from_trees(ids, trees)), trees)[[9, 10, 16]].float()
                same = agree(self._whole, self._decoded(self._step), expected)
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError, IndexError, KeyError):
                same = False
        if not same:
            name = type(self._whole).__name__
            warnings.warn(f"rows are decoded with padding: {name} gives other numbers without", stacklevel=2)
        return same

    def _decoded(self, layers: Layers) -> Tensor:
        """[3, H] of one step behind two prompts, of which the first has two rows."""
        device = next(self._whole.parameters()).device
        captured = self.prompts(from_trees(torch.arange(1, 15, device=device), (Tree(0, 9), Tree(9, 5))))[1]
        memory = KeyValues()
        memory.enter(captured, [2, 1])
        memory.begin()
        newest, places = torch.tensor([2, 3, 4], device=device), torch.tensor([9, 9, 5], device=device)
        hidden = layers(newest, places, memory)[:3].float()
        memory.end()
        return hidden

    def _exceeds_window(self, trees: tuple[Tree, ...]) -> bool:
        """Whether a row must be padded, since packed ones know no window."""
        length = longest_row(trees)
        if self._window is None or length <= self._window:
            return False
        tell_once(self._whole, length, self._window)
        return True

    def decodes(self, length: int) -> bool:
        """Whether rows of so many tokens can be decoded by `prompts` and `step`."""
        return self.refusal is None and (self._window is None or length <= self._window) and self._steps

    def _inputs(self, packed: Packed, embedded: Tensor | None = None) -> Inputs:
        return inputs_of(packed, embedded, self.embeddings, self._vision)

    def _run(self, inputs: Inputs, **known: Layout | KeyValues) -> Tensor:
        """[T, H] of T tokens in one row, or what `Layout.read` names of it; what is `known` of how they belong together
        goes to the attention."""
        # transformers hands a mask of four dimensions on as it is; our attention does not look at it.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs.ids.device)
        hidden: Tensor = self._layers(
            **inputs.one_row(), attention_mask=mask, use_cache=False, **known
        ).last_hidden_state
        return hidden[0]

    def _packed(
        self, inputs: Inputs, trees: tuple[Tree, ...], captured: Captured | None = None, least: int = 1,
        read: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[T, H], or of the tokens `read` alone; on the way there are rows of filling behind all tokens where a CPU's
        products want them: one more tree, which none of the others sees."""
        num = len(inputs.ids)
        filling = self._filling(num, least, self._row_step)
        if filling:
            inputs, trees = inputs.filled(filling), (*trees, Tree(num, filling))
        hidden = self._run(inputs, trees=Layout(trees, captured, read))
        return hidden if read is not None else hidden[:num]

    def _filling(self, num: int, least: int, round_to: int) -> int:
        """Rows behind `num` of them, for products that round alike and have a shape that was there before."""
        weight, full = next(self._whole.parameters()), max(num, least)
        return full + missing(full, product_dtype(weight), weight.device, round_to) - num

    def _padded(self, inputs: Inputs, trees: tuple[Tree, ...]) -> Tensor:
        return through_parts(self._layers, inputs, [row_places(trees)])

    def _why_not(self) -> str | None:
        """Try the model out, and leave its layers with the attention that it is to have."""
        asked = attention_of(self._layers)
        own = own_attention(self._layers) if asked == NAME else asked
        refusal = self._obstacle(asked) or self._other_numbers(own)
        if attention_of(self._layers) == NAME and refusal is not None:
            set_attention(self._layers, own)
        return refusal

    def _obstacle(self, asked: str) -> str | None:
        """What is known without a trial."""
        name = type(self._whole).__name__
        if not self._whole._supports_attention_backend:
            return f"{name} has an attention of its own"
        if asked not in (NAME, "sdpa"):
            return f"model.attention is {asked}"
        kinds = set(text_config(self._whole).get("layer_types") or ()) - {"full_attention", "sliding_attention"}
        return f"{name} has layers of {', '.join(sorted(kinds))}" if kinds else None

    def _other_numbers(self, own: str) -> str | None:
        """Why packed rows are not what the layers compute under their own attention; None where they are."""
        name = type(self._whole).__name__
        device = next(self._whole.parameters()).device
        ids = torch.arange(1, 1 + sum(tree.num_tokens for tree in PROBE), device=device)
        with trying(self._whole):
            try:
                inputs = self._inputs(from_trees(ids, PROBE))
                set_attention(self._layers, own)
                expected = self._padded(inputs, PROBE).float()
                set_attention(self._layers, NAME)
                packed, padded = self._run(inputs, trees=Layout(PROBE)), self._padded(inputs, PROBE)
            except UnknownTerm as error:
                return f"{name}: {error}"
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError, IndexError):
                return f"{name} gives other numbers for packed rows"  # a layer that drops `trees`, or minds the mask
        # Padded rows as well: those longer than a window are padded under this attention.
        same = agree(self._whole, packed.float(), padded.float()) and agree(self._whole, padded.float(), expected)
        return None if same else f"{name} gives other numbers for packed rows"

    def _reads_well(self) -> bool:
        """Whether the last layer can go on with some tokens alone; where it cannot it stays as it was."""
        if not read_last_layer(self._whole):
            return False
        device, same = next(self._whole.parameters()).device, False
        ids = torch.arange(1, 1 + sum(tree.num_tokens for tree in PROBE), device=device)
        read = torch.tensor([2, 8, 2, 13], device=device)
        try:
            with trying(self._whole):
                inputs = self._inputs(from_trees(ids, PROBE))
                every, some = (self._run(inputs, trees=Layout(PROBE, read=which)) for which in (None, read))
            same = some.shape == every[read].shape and agree(self._whole, some.float(), every[read].float())
        except (TypeError, ValueError, AttributeError):
            pass  # parts by other names, or that give more
        finally:
            if not same:
                leave_last_layer(self._whole)
        return same

    def _try_pictures(self, media: Media | None) -> None:
        if media is not None and self._vision is not None and not self._vision.tried:
            try_pictures(self._whole, media, lambda row: self._padded(self._inputs(row), row.trees))
            self._vision.tried = True


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model under a peft adapter."""
    whole: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return whole


def max_positions(model: torch.nn.Module) -> int | None:
    """Positions the model has; None where its configuration sets no limit."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    return getattr(config, "max_position_embeddings", None)
