"""Final answers compared as mathematics: numbers here, everything else by math-verify in a worker process."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from whet.config.rules import Math
from whet.errors import ConfigError
from whet.rewards.amounts import alike, amount, lone_number
from whet.rewards.answer import answer_in, as_answer
from whet.rewards.final import LONGEST, boxed, final_answer, final_reference, is_prose, whole
from whet.rewards.process import Call, Worker
from whet.rewards.reward import Unscored, no_answer, reference_of
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score

_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")


class MathReward:
    """1.0 where the final answer of a completion is that of the reference, else 0.0."""

    some_gold = False

    def __init__(self, config: Math) -> None:
        """Raises ConfigError where math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "needs the package math-verify", field="reward.type", found="math",
                fix='install it by `pip install "whet[math]"`, or take type=numeric',
            )  # fmt: skip
        self.config = config
        self._worker = Worker("whet.rewards.equal:equal", timeout=config.timeout, what="the comparison")

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        scores: list[Score | None] = []
        unclear: list[Call] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            said = self._plainly(prompt, completion)
            scores.append(said if isinstance(said, Score) else None)
            if not isinstance(said, Score):
                unclear.append(Call(args=said))
        rest = iter(self._worker.call(unclear))
        return [next(rest) if score is None else score for score in scores]

    def gold(self, prompt: Prompt) -> str | None:
        """The reference as a completion; a bare expression goes into a box."""
        reference = prompt.reference
        if reference is None:
            return None
        bare = boxed(reference) is None and "####" not in reference and not is_prose(reference)
        return as_answer(f"\\boxed{{{reference}}}" if bare else reference, self.config)

    def bare(self, prompt: Prompt) -> str | None:
        """The number that a reference in words begins with, as a completion: whoever answers with it is right, too.

        None for a reference of another kind, or one whose number is read anyway.
        """
        try:
            expected = final_reference(reference_of(prompt))
        except Unscored:
            return None
        number = lone_number(expected) if amount(expected) is None else None
        return None if number is None else as_answer(f"\\boxed{{{number}}}", self.config)

    def _plainly(self, prompt: Prompt, completion: Completion) -> Score | tuple[str, str]:
        """The score, or the two expressions that have to be compared."""
        if failed := no_answer(completion):
            return failed
        try:
            expected = final_reference(reference_of(prompt))
        except Unscored as reason:
            return Score(value=None, error=str(reason))
        text = answer_in(completion.text, self.config)
        if text is not None and whole(text) == whole(reference_of(prompt)):
            return Score(value=1.0)
        answer = None if text is None else final_answer(text)
        if answer is None or len(answer) > LONGEST:
            return Score(value=0.0)
        same = alike(expected, answer)
        return (_latex(expected), _latex(answer)) if same is None else Score(value=float(same))


def _latex(expression: str) -> str:
    """`2 pi` is a product with pi, not with p and i."""
    return _PI.sub(r"\\pi ", expression)
