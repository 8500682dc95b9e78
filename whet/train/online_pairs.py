"""The feed of online DPO: of each prompt's completions the best against the worst, by their reward (2402.04792).

A step trains on the pairs of one round. What becomes of every prompt is counted: a pair, or the reason why there is
none (`whet.experience.pairs.REASONS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from whet.config.rollout import OnlinePairs
from whet.data.batch import GroupBatch, collate_groups
from whet.data.pack import fill
from whet.data.render import Renderer
from whet.data.rendered import RenderedGroup
from whet.experience.log import completion_rows
from whet.experience.pairs import Pair, select_pair
from whet.experience.round_file import Round
from whet.schema.metrics import values
from whet.schema.rollouts import Group
from whet.train.flat import flatten
from whet.train.measuring import Measured
from whet.train.parallel import Parallel, on_host
from whet.train.round_metrics import round_totals
from whet.train.rounds import RoundOrder


class OnlinePairFeed:
    """Gives the pairs of each optimiser step."""

    def __init__(
        self,
        order: RoundOrder,
        renderer: Renderer,
        pairs: OnlinePairs,
        *,
        micro_batch_tokens: int,
        parallel: Parallel,
        log: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ) -> None:
        """`log` gets a row a completion; there `advantage` is 1 for a chosen one and -1 for a rejected one."""
        assert order.steps_per_round == 1, "pairs are trained on once"
        self._order, self._renderer, self._pairs = order, renderer, pairs
        self._micro_batch_tokens, self._parallel, self._log = micro_batch_tokens, parallel, log
        self._metrics: dict[str, float] = {}

    @property
    def num_steps(self) -> int:
        return self._order.num_steps

    def epoch(self, step: int) -> float:
        return self._order.epoch(step)

    def ends_epoch(self, step: int) -> bool:
        return self._order.ends_epoch(step)

    def micro_batches(self, step: int) -> list[GroupBatch]:
        made = self._order.get(step, step)
        selected = [(group, select_pair(group, self._pairs)) for group in made.groups]
        paired = [(group, pair) for group, pair in selected if isinstance(pair, Pair)]
        why_not = Counter(pair for _, pair in selected if not isinstance(pair, Pair))
        self._metrics = self._of(made) | {"num_pairs": float(len(paired))}
        self._metrics |= {f"no_pair/{reason}": float(num) for reason, num in why_not.items()}
        told = {
            group.completions[place].key: sign
            for group, pair in paired
            for place, sign in ((pair.chosen.index, 1.0), (pair.rejected.index, -1.0))
        }
        for row in completion_rows(made, told):
            self._log({"step": step + 1, **row})
        rows = [self._rendered(group, pair) for group, pair in paired]
        # Each rank takes some of them; a formula that couples the pairs of a step tells all apart by their number.
        own = self._parallel.ranks.share(range(len(rows)))
        parts = fill([rows[i].num_tokens for i in own], self._micro_batch_tokens)
        return [
            collate_groups(
                [rows[own[i]] for i in part], [own[i] for i in part], device=self._parallel.device,
                reader=self._renderer.reader,
            )
            for part in parts
        ]  # fmt: skip

    def metrics(self, step: int) -> Mapping[str, float]:
        return self._metrics

    def rest(self) -> None:
        self._order.wait()

    def _rendered(self, group: Group, pair: Pair) -> RenderedGroup:
        prompt = group.prompt
        asked = self._renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)
        return RenderedGroup(
            prompt_ids=asked.prompt_ids,
            response_ids=(group.completions[pair.chosen.index].ids, group.completions[pair.rejected.index].ids),
            origin=prompt.origin,
            pictures=asked.pictures,
        )

    def _of(self, made: Round) -> dict[str, float]:
        totals = round_totals(made, flatten(made, self._renderer), Measured())
        seconds = {f"seconds/{name}": round(value, 4) for name, value in made.seconds.items()}
        return dict(values(on_host(totals))) | seconds
