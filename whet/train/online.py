"""The feed of online RL: rounds of rollouts, and the micro-batches of the optimiser steps that train on each.

    round r    prompts of the r-th batch -> groups -> rewards -> advantages, log-probs under policy and reference
    steps      passes x minibatches of a round, each pass over its prompts in another order

Responses without a reward are in no batch and no count. Those with advantage 0 change nothing as long as there is no
KL and no entropy in the loss: they are not passed through the model, but their units stay in the divisor.

Every rank knows the whole round, so that advantages, the KL's weight and what a step trains on do not depend on their
number; the work is dealt out: who draws, who measures, who passes which prompts of a step through the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whet.config.policy import PolicyObjective
from whet.data.pack import fill, pack_groups
from whet.data.render import Renderer
from whet.data.rendered import RenderedGroup
from whet.experience.log import completion_rows
from whet.experience.round_file import Round
from whet.objectives.credit import Advantages, Rollouts
from whet.objectives.kl import KlController
from whet.runs.files import read_json, write_json
from whet.schema.metrics import values
from whet.train.bind_policy import PolicyLearning
from whet.train.flat import Flat, flatten
from whet.train.measuring import Measured, Measuring
from whet.train.parallel import Parallel, on_host
from whet.train.policy import PolicyBatch
from whet.train.round_metrics import explained, round_totals
from whet.train.rounds import RoundOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A round ready to be trained on."""

    made: Round
    flat: Flat
    advantages: Advantages
    measured: Measured
    metrics: Mapping[str, float]

    def advantages_by_key(self) -> dict[str, float]:
        """The mean over the tokens of each response that may be trained on, by its completion's key."""
        flat, kept = self.flat, self.advantages.kept
        return {
            key: float(self.advantages.tokens[flat.tokens(row)].mean())
            for row, key in enumerate(flat.keys)
            if kept[row]
        }


class OnlineFeed:
    """Gives the micro-batches of each optimiser step, and makes a round whenever a new one begins."""

    def __init__(
        self,
        order: RoundOrder,
        renderer: Renderer,
        objective: PolicyObjective,
        learning: PolicyLearning,
        measuring: Measuring,
        *,
        micro_batch_tokens: int,
        seed: int,
        parallel: Parallel,
        folder: Path,
        log: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ) -> None:
        """`folder` keeps the KL's weight as each round left it, for runs that are killed; `log` gets a row a completion
        when the first step of its round begins."""
        self._order, self._renderer, self._objective, self._learning = order, renderer, objective, learning
        self._measuring, self._micro_batch_tokens, self._seed = measuring, micro_batch_tokens, seed
        self._parallel, self._folder, self._log = parallel, folder, log
        self._controller = learning.controller
        self._current: tuple[int, Experience] | None = None

    @property
    def num_steps(self) -> int:
        return self._order.num_steps

    def epoch(self, step: int) -> float:
        return self._order.epoch(step)

    def ends_epoch(self, step: int) -> bool:
        return self._order.ends_epoch(step)

    def micro_batches(self, step: int) -> list[PolicyBatch]:
        number, within = divmod(step, self._order.steps_per_round)
        if self._current is None or self._current[0] != number:
            self._current = number, self._begin(number, step)
            if within == 0:  # else it was logged before the run was killed
                self._tell(self._current[1], step)
        return self._batches(self._current[1], number, within)

    def metrics(self, step: int) -> Mapping[str, float]:
        """Of the round that the step trains on; logged with its first step."""
        if step % self._order.steps_per_round or self._current is None:
            return {}
        return self._current[1].metrics

    def rest(self) -> None:
        self._order.wait()

    def _begin(self, number: int, step: int) -> Experience:
        made = self._order.get(number, step)
        flat = flatten(made, self._renderer)
        measured = self._measuring(number, flat)
        self._controller = self._controller_of(number)
        rollouts = Rollouts(
            rewards=flat.rewards, groups=flat.group_of, rows=flat.rows, lengths=flat.lengths,
            penalty=self._penalty(measured), values=measured.values,
        )  # fmt: skip
        advantages = self._learning.advantages(rollouts)
        if self._learning.whiten:
            advantages = advantages.whitened(advantages.moments())
        metrics = {**self._logged(made, flat, measured), **explained(measured, advantages)}
        if self._learning.reward_penalty is not None and self._parallel.is_main:
            write_json(self._folder / f"{number:06d}.json", {"kl_weight": self._controller.weight})
        return Experience(made=made, flat=flat, advantages=advantages, measured=measured, metrics=metrics)

    def _controller_of(self, number: int) -> KlController:
        """The KL's weight as the round before left it, on disk for a run that was killed since."""
        path = self._folder / f"{number - 1:06d}.json"
        if number == 0 or not path.is_file():
            return self._controller
        return replace(self._controller, weight=read_json(path)["kl_weight"])

    def _penalty(self, measured: Measured) -> Tensor | None:
        """[N], what the KL takes off each token's reward."""
        if self._learning.reward_penalty is None:
            return None
        assert measured.policy is not None and measured.reference is not None, "the KL compares the two"
        return self._controller.weight * self._learning.reward_penalty(measured.policy, measured.reference)

    def _batches(self, experience: Experience, number: int, within: int) -> list[PolicyBatch]:
        """The micro-batches of one optimiser step of the round: its share of the prompts, in this pass's order."""
        flat, kept = experience.flat, experience.advantages.kept
        a_pass, minibatch = divmod(within, self._objective.minibatches)
        order = np.random.Generator(np.random.PCG64([self._seed, number, a_pass])).permutation(len(flat.groups))
        together = [int(g) for g in np.array_split(order, self._objective.minibatches)[minibatch]]
        first = flat.first_rows
        usable = [row for g in together for row in range(first[g], first[g + 1]) if kept[row]]
        units = self._learning.aggregation.units(len(usable), int(flat.lengths[usable].sum()))
        passing = [row for row in usable if self._all_pass or self._has_gradient(row, experience)] or usable[:1]
        # All ranks know what the step passes through the model; each takes some of its prompts, rank 0 the units.
        own = set(self._parallel.ranks.share(list(dict.fromkeys(int(flat.group_of[row]) for row in passing))))
        passing = [row for row in passing if int(flat.group_of[row]) in own]
        if not passing:
            return []
        shared: dict[int, list[int]] = {}
        for row in passing:
            shared.setdefault(int(flat.group_of[row]), []).append(row)
        groups = list(shared)
        lengths = [len(flat.groups[g].prompt_ids) + int(flat.lengths[shared[g]].sum()) for g in groups]
        parts = [[groups[i] for i in part] for part in fill(lengths, self._micro_batch_tokens)]
        # The divisor of the step is the sum over its batches: the first one brings the units of them all.
        return [
            self._batch(experience, [shared[g] for g in part], units if place == self._parallel.rank == 0 else 0.0)
            for place, part in enumerate(parts)
        ]

    @property
    def _all_pass(self) -> bool:
        """Whether responses of advantage 0 have a gradient: of the KL, the entropy or the values."""
        in_loss = self._objective.kl_weight > 0 and self._objective.kl_in == "loss"
        return in_loss or self._objective.entropy_weight > 0 or self._learning.value is not None

    @staticmethod
    def _has_gradient(row: int, experience: Experience) -> bool:
        own = experience.advantages.tokens[experience.flat.tokens(row)]
        return bool((own != 0).any())

    def _batch(self, experience: Experience, rows: Sequence[Sequence[int]], units: float) -> PolicyBatch:
        flat, device = experience.flat, self._parallel.device
        first = flat.first_rows
        chosen = []
        for mine in rows:
            group = flat.groups[int(flat.group_of[mine[0]])]
            inside = [row - first[int(flat.group_of[row])] for row in mine]
            chosen.append(
                RenderedGroup(
                    prompt_ids=group.prompt_ids,
                    response_ids=tuple(group.response_ids[i] for i in inside),
                    origin=group.origin,
                    pictures=group.pictures,
                )
            )
        order = [row for mine in rows for row in mine]
        places = flat.tokens_of(order)

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[places].to(device)

        return PolicyBatch(
            packed=pack_groups(chosen, self._renderer.reader).to(device),
            lengths=flat.lengths[order].to(device),
            advantages=experience.advantages.tokens[places].to(device),
            old_logprobs=of(experience.measured.policy) if self._measuring.has_old else None,
            reference_logprobs=of(experience.measured.reference),
            old_values=of(experience.measured.values),
            returns=of(experience.advantages.returns),
            sampler_logprobs=flat.sampler_logprobs[places].to(device),
            units=units,
            num_samples=len(order),
        )

    def _logged(self, made: Round, flat: Flat, measured: Measured) -> Mapping[str, float]:
        """The round's numbers; moves the KL's weight where that follows the KL."""
        logged = values(on_host(round_totals(made, flat, measured)))
        if self._learning.reward_penalty is not None:
            self._controller = self._controller.updated(logged["objective/kl"], len(flat.lengths))
            logged["objective/kl_weight"] = self._controller.weight
        return {
            **logged,
            "left_out_prompts": float(len(made.left_out)),
            **{f"seconds/{name}": round(value, 4) for name, value in made.seconds.items()},
        }

    def _tell(self, experience: Experience, step: int) -> None:
        """Log the round's completions with the step that trains on them first."""
        for row in completion_rows(experience.made, experience.advantages_by_key()):
            self._log({"step": step + 1, **row})
