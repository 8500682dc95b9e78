"""A reward model's scores: completions behind their prompts by the reward checkpoint's own template, in packed rows.

Completions of the same prompt that follow each other share it, as in training. Batches hold at most `batch_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from whet.config.model import Model, Vision
from whet.config.reward import RewardHead
from whet.config.rewards import RewardModel
from whet.data.pack import fill, pack_groups
from whet.data.pictures import picture_reader
from whet.data.render import Draft, Renderer
from whet.data.rendered import RenderedGroup
from whet.errors import DataError
from whet.models.backbone import unwrapped
from whet.models.four_bit import trained_on
from whet.models.load import compute_dtype, load_tokenizer, pick_device, template_of
from whet.models.memory import token_budget
from whet.models.placed import Placed
from whet.models.reward import load_reward_model
from whet.models.scoring import RowScorer
from whet.ranks.pulse import beat
from whet.rewards.reward import finite, no_answer
from whet.schema.artifacts import ModelRef
from whet.schema.records import Message, Prompt, Rating
from whet.schema.rollouts import Completion, Score


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A reward model on a device."""

    scorer: RowScorer
    budget: int
    """Tokens per forward pass."""
    longest: int
    """Tokens it takes; 0 where it has no limit."""

    @classmethod
    def of(cls, config: RewardModel, ref: ModelRef, device: torch.device) -> _Loaded:
        model_config = Model.model_validate(
            {"path": ref.path, "adapter": ref.adapter, "device": device.type, "quantization": trained_on(ref.adapter)}
        )
        dtype = compute_dtype("auto", device)
        model = load_reward_model(ref, model_config, RewardHead(), dtype=dtype)
        return cls(
            scorer=RowScorer(model).eval(),
            budget=config.batch_tokens or token_budget(unwrapped(model), device, dtype).packed,
            longest=int(unwrapped(model).config.get_text_config().to_dict().get("max_position_embeddings") or 0),
        )


class ModelReward:
    """Scores by a sequence classifier with one label; with `device: auto` it moves to the CPU where memory runs out."""

    def __init__(self, config: RewardModel, ref: ModelRef, vision: Vision | None = None) -> None:
        """`vision` has the limits of pictures, else the checkpoint's hold. Raises ModelError where `ref` is no reward
        model."""
        self._placed = Placed(
            partial(_Loaded.of, config, ref), pick_device(config.device, field="reward.device"),
            fall_back=config.device == "auto", what="the reward model",
        )  # fmt: skip
        self._placed.use(lambda loaded: loaded)
        tokenizer = load_tokenizer(ref.path, chat_template=template_of(ref))
        limits = vision or Vision()
        reader = picture_reader(ref.path, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
        self._renderer = Renderer(tokenizer, reader=reader)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        scores, groups = self._rendered(prompts, completions)
        scores |= self._placed.use(partial(self._scored, groups))
        return [scores[place] for place in range(len(completions))]

    @torch.inference_mode()
    def _scored(self, groups: Mapping[int, RenderedGroup], loaded: _Loaded) -> dict[int, Score]:
        """By place."""
        scores: dict[int, Score] = {}
        shared = _shared(groups, loaded.budget)
        for batch in fill([group.num_tokens for group, _ in shared], loaded.budget):
            beat()
            packed = pack_groups([shared[number][0] for number in batch], self._renderer.reader)
            said = iter(loaded.scorer(packed.to(self._placed.device)).tolist())
            for number in batch:
                for place in shared[number][1]:
                    scores[place] = finite(next(said), "the reward model")
        return scores

    def _rendered(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[dict[int, Score], dict[int, RenderedGroup]]:
        """By place: what cannot be scored, and token ids of what can."""
        scores: dict[int, Score] = {}
        drafts: dict[int, Draft] = {}
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if failed := no_answer(completion):
                scores[place] = failed
                continue
            answer = (Message("assistant", completion.text),)
            try:
                drafts[place] = self._renderer.draft(
                    Rating(
                        prompt=prompt.messages, response=answer, label=True, tools=prompt.tools, origin=prompt.origin
                    )
                )
            except DataError as error:
                scores[place] = Score(value=None, error=str(error))
        ids = self._renderer.template.pieces.ids(text for draft in drafts.values() for text in draft.texts)
        groups: dict[int, RenderedGroup] = {}
        longest = self._placed.here().longest
        for place, draft in drafts.items():
            (group,) = self._renderer.rows(draft, ids)
            assert isinstance(group, RenderedGroup), "a rating has one answer"
            if longest and group.num_tokens > longest:
                reason = f"the reward model takes {longest} tokens (found {group.num_tokens})"
                scores[place] = Score(value=None, error=reason)
            else:
                groups[place] = group
        return scores, groups


def _shared(groups: Mapping[int, RenderedGroup], budget: int) -> list[tuple[RenderedGroup, list[int]]]:
    """Neighbours with the same prompt as one group, up to the budget, each with the places of its answers."""
    shared: list[tuple[RenderedGroup, list[int]]] = []
    for place, group in groups.items():
        (answer,) = group.response_ids
        if shared:
            last, places = shared[-1]
            same = last.prompt_ids == group.prompt_ids and last.pictures == group.pictures
            if same and last.num_tokens + len(answer) <= budget:
                joined = replace(last, response_ids=(*last.response_ids, answer))
                shared[-1] = (joined, [*places, place])
                continue
        shared.append((group, [place]))
    return shared
