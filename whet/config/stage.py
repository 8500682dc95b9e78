"""Stages: the verbs of a plan. A stage names its kind, what it reads, and how it works."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.data import Data
from whet.config.engine import Engine, Http, Native, served_by
from whet.config.evaluate import Task
from whet.config.judge import Judge, Meta, Pointwise
from whet.config.objective import (
    BradleyTerry,
    Kto,
    PairwiseObjective,
    RewardWeighted,
    SoftPreference,
    SupervisedObjective,
    UnpairedObjective,
)
from whet.config.pairwise import Sigmoid
from whet.config.policy import GroupObjective, Grpo, Gspo, Ppo, SequenceObjective
from whet.config.prompts import GivenPrompts, PromptSource
from whet.config.reference import OnlineReference, Reference
from whet.config.reject import Accept, Functions
from whet.config.reward import RewardHead
from whet.config.rewards import Reward
from whet.config.rollout import (
    Checker,
    OnlinePairs,
    OnlineRollout,
    PairRollout,
    Pairs,
    PpoRollout,
    Rollout,
)
from whet.config.supervised import Nll
from whet.config.train import DpoTrain, OnlineTrain, SftTrain, Train
from whet.config.value import PolicyValue, ValueFunction
from whet.config.values import Place


class _Stage(Section):
    name: str = Field("", max_length=100, pattern=r"^[A-Za-z0-9_-]*$")
    """Folder and table name; empty takes the kind, with a number where it repeats."""
    start: str = "previous"
    """Model to start from: `previous` (the last stage that made one, else the base), `base`, or a stage name."""


class SftStage(_Stage):
    """Supervised fine-tuning on conversations."""

    kind: Literal["sft"] = "sft"
    data: Data = Data()
    train: SftTrain = SftTrain()
    objective: SupervisedObjective = Nll()
    watch: tuple[Task, ...] = ()
    """Tasks measured whenever the loop evaluates, logged as watch/NAME/METRIC."""


class DpoStage(_Stage):
    """Preference training on pairs."""

    kind: Literal["dpo"] = "dpo"
    data: Data = Data()
    train: DpoTrain = DpoTrain()
    objective: PairwiseObjective = Sigmoid()
    reference: Reference = Reference()
    watch: tuple[Task, ...] = ()
    """Tasks measured whenever the loop evaluates, logged as watch/NAME/METRIC."""


class KtoStage(_Stage):
    """Preference training on single responses called good or bad."""

    kind: Literal["kto"] = "kto"
    data: Data = Data()
    train: DpoTrain = DpoTrain()
    objective: UnpairedObjective = Kto()
    reference: Reference = Reference()
    watch: tuple[Task, ...] = ()
    """Tasks measured whenever the loop evaluates, logged as watch/NAME/METRIC."""


class RewardWeightedStage(_Stage):
    """Training on stored responses by their stored rewards (offline; not GRPO)."""

    kind: Literal["reward_weighted"] = "reward_weighted"
    data: Data = Data()
    train: DpoTrain = DpoTrain()
    objective: RewardWeighted = RewardWeighted()
    reference: Reference = Reference()
    watch: tuple[Task, ...] = ()
    """Tasks measured whenever the loop evaluates, logged as watch/NAME/METRIC."""


class SoftPreferenceStage(_Stage):
    """Training on all stored responses of a prompt, each by its share (offline; not GSPO)."""

    kind: Literal["soft_preference"] = "soft_preference"
    data: Data = Data()
    train: DpoTrain = DpoTrain()
    objective: SoftPreference = SoftPreference()
    reference: Reference = Reference()
    watch: tuple[Task, ...] = ()
    """Tasks measured whenever the loop evaluates, logged as watch/NAME/METRIC."""


class RewardStage(_Stage):
    """A reward model from pairs or rankings: a sequence classifier with one label."""

    kind: Literal["reward"] = "reward"
    data: Data = Data()
    train: Train = Train()
    objective: BradleyTerry = BradleyTerry()
    head: RewardHead = RewardHead()


class _OnlineStage(_Stage):
    data: Data = Data()
    rollout: OnlineRollout = OnlineRollout()
    reward: Reward
    """What a completion is worth: `whet explain reward.type` lists the kinds."""
    train: OnlineTrain = OnlineTrain()
    reference: OnlineReference = OnlineReference()
    watch: tuple[Task, ...] = ()
    """Tasks measured whenever the loop evaluates, logged as watch/NAME/METRIC."""


class GrpoStage(_OnlineStage):
    """Online RL against the other samples of a prompt: GRPO, DAPO, Dr. GRPO, RLOO, REINFORCE++, RAFT and their kin."""

    kind: Literal["grpo"] = "grpo"
    objective: GroupObjective = Field(Grpo(), discriminator="type")


class GspoStage(_OnlineStage):
    """Online RL by GSPO: one importance ratio a response."""

    kind: Literal["gspo"] = "gspo"
    objective: SequenceObjective = Field(Gspo(), discriminator="type")


class PpoStage(_OnlineStage):
    """Online RL by PPO, with a value function."""

    kind: Literal["ppo"] = "ppo"
    rollout: PpoRollout = PpoRollout()
    objective: Ppo = Ppo()
    value: ValueFunction = PolicyValue()


class OnlineDpoStage(_OnlineStage):
    """Preference training on pairs of the model's own completions, made as it learns (2402.04792)."""

    kind: Literal["online_dpo"] = "online_dpo"
    rollout: PairRollout = PairRollout()
    objective: PairwiseObjective = Sigmoid()
    pairs: OnlinePairs = OnlinePairs()


class PromptsStage(_Stage):
    """Prompts for the stages behind it: none that was seen before, none that an evaluation asks."""

    kind: Literal["prompts"] = "prompts"
    data: Data = Data()
    num: int | None = Field(None, ge=1)
    """How many to leave in prompts.jsonl; null leaves all that `data.files` have. Needed to make new ones."""
    source: PromptSource = GivenPrompts()
    """`files`: the prompts of `data.files`; `self_instruct`: new ones, made by the model in their manner."""
    exclude: tuple[Data, ...] | None = None
    """What evaluations ask: never taken, and prompts.json proves it. null takes the data of every task of the plan,
    `watch` included."""
    seen: Data = Data()
    """Prompts used before; in rounds the prompts of all earlier rounds are among them."""


class PrepareStage(_Stage):
    """Self-rewarding data: the model answers, judges its answers, and pairs are made from the scores."""

    kind: Literal["prepare"] = "prepare"
    data: Data = Data()
    rollout: Rollout = Rollout()
    judge: Judge = Pointwise()
    pairs: Pairs = Pairs()
    meta: Meta | None = None
    """Judge the judgements too, and write judge_training.jsonl; null does not."""
    checker: Checker | None = None
    """Truth to compare the judge with, where there is one. It chooses pairs only where `pairs.select` says so."""
    num_logged: int = Field(20, ge=0)
    """Groups kept in self_reward_samples.jsonl for reading."""

    @model_validator(mode="after")
    def _what_needs_what(self) -> Self:
        if self.pairs.select == "right_wrong" and self.checker is None:
            raise ValueError("pairs.select=right_wrong needs a checker, which says what is right")
        server = not isinstance(served_by(self.rollout.engine), Native)
        if isinstance(self.judge, Pointwise) and self.judge.needs_probabilities and server and not self.judge.engine:
            raise ValueError(
                "judge.scores=expectation asks how likely given scores are: set judge.engine=native, or vllm where no "
                "adapter answers"
            )
        if self.meta is not None and not (isinstance(self.judge, Pointwise) and self.judge.votes > 1):
            raise ValueError("meta compares the votes on one answer: it needs judge.type=pointwise and judge.votes > 1")
        return self


class JudgeExamplesStage(_Stage):
    """Judge answers that people have scored: how far the judge agrees with them, and examples that teach it to judge.

    Reads preferences, rankings and scored answers; leaves judge_examples.jsonl, conversations for `sft` (the evaluation
    fine-tuning of Self-Rewarding, 2401.10020, section 2.2).
    """

    kind: Literal["judge_examples"] = "judge_examples"
    data: Data = Data()
    judge: Pointwise = Pointwise()
    targets: Literal["judge", "human"] = "judge"
    """Whose words an example has: `judge`, its own judgements where its scores stand in the people's order; `human`,
    the people's score itself, which must lie on the judge's scale, with the row's column `reason` where it has one."""
    balance: bool = True
    """Leave out examples of the commonest score, at random, until the next one is as common."""
    batch_size: int = Field(32, ge=1)
    """Judgements decoded at the same time."""
    num_logged: int = Field(20, ge=0)
    """Prompts kept in self_reward_samples.jsonl for reading."""


class RejectStage(_Stage):
    """Rejection sampling: several answers a prompt, a judge of correctness, right and wrong ones in files of their own.

    Right answers to learn from (RFT, 2308.01825; RAFT, 2304.06767), right against wrong for preferences, and the
    prompts that nothing right came of.
    """

    kind: Literal["reject"] = "reject"
    data: Data = Data()
    rollout: Rollout = Rollout()
    reward: Reward
    """What a completion is worth: `whet explain reward.type` lists the kinds."""
    accept: Accept = Accept()
    functions: Functions = Functions()
    num_logged: int = Field(20, ge=0)
    """Prompts with all their answers kept in reject_samples.jsonl for reading."""


class PairStage(_Stage):
    """Right answers of one model against wrong answers of another, to the same prompts: preferences for `dpo`.

    Stage 3 of UnifiedReward-Think (2505.03318). One file on each side is the inner join; with the files of both models
    on both sides it is the union: whatever either said right against whatever either said wrong.
    """

    kind: Literal["pair"] = "pair"
    chosen: tuple[Place, ...] = Field(min_length=1)
    """Files of right answers, e.g. `@second/accepted.jsonl`."""
    rejected: tuple[Place, ...] = Field(min_length=1)
    """Files of wrong answers, e.g. `@first/rejected.jsonl`."""
    pairs_per_prompt: int = Field(1, ge=1)
    """Most pairs of one prompt, each answer in one of them."""


class EvaluateStage(_Stage):
    """Measure models on held-out tasks."""

    kind: Literal["evaluate"] = "evaluate"
    models: tuple[str, ...] = Field(("previous",), min_length=1)
    """Which models: `base`, `previous`, or stage names."""
    tasks: tuple[Task, ...] = Field(default=(), min_length=0)
    engine: Engine = Native()
    """Who generates the models' answers."""
    num_logged: int = Field(20, ge=0)
    """Answers per model and task kept for reading in the report."""

    @model_validator(mode="after")
    def _a_server_has_one_model(self) -> Self:
        if isinstance(self.engine, Http) and len(self.models) > 1:
            raise ValueError("an engine of type http answers with the model it serves: name one in models")
        return self


class MergeStage(_Stage):
    """Adapter folded into the weights: one ordinary checkpoint, its logits checked against the adapter's."""

    kind: Literal["merge"] = "merge"
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of the written weights."""
    tolerance: float = Field(0.05, gt=0)
    """Largest allowed difference of a next-token log-probability, adapter against merged, over the probe texts."""
    onto: Literal["dequantised", "original"] = "dequantised"
    """Under `model.quantization`, the weights that the adapter is folded into: those it was trained on, whose numbers
    it keeps, or those of the checkpoint, which it has never seen. The difference of both is measured and told."""


OfflinePolicyStage = SftStage | DpoStage | KtoStage | RewardWeightedStage | SoftPreferenceStage
"""Stages that train a language model on fixed data."""
OfflineStage = OfflinePolicyStage | RewardStage
"""Stages that train on fixed data."""
OnlinePolicyStage = GrpoStage | GspoStage | PpoStage
"""Stages that train a language model on what it says, by advantages."""
OnlineStage = OnlinePolicyStage | OnlineDpoStage
"""Stages that train a language model on what it says."""
PolicyStage = OfflinePolicyStage | OnlineStage
"""Stages that train a language model."""
TrainStage = OfflineStage | OnlineStage
"""Stages that train."""
SharedStage = PrepareStage | RejectStage
"""Stages whose prompts several processes may share."""
Stage = Annotated[
    TrainStage | PromptsStage | PrepareStage | JudgeExamplesStage | RejectStage | PairStage | EvaluateStage
    | MergeStage,
    Field(discriminator="kind"),
]
STAGE_KINDS = (
    "sft", "prompts", "prepare", "reject", "pair", "dpo", "kto", "reward", "reward_weighted", "soft_preference", "grpo",
    "gspo", "ppo", "online_dpo", "judge_examples", "evaluate", "merge",
)  # fmt: skip
