"""What is on disk of a round does not depend on how many ranks drew it, and nothing there is drawn again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.errors import RunError
from whet.experience.rounds import Rounds
from whet.models.load import load_tokenizer
from whet.ranks.group import ALONE, Ranks
from whet.rewards.normalise import NormalisedReward
from whet.rewards.reward import Reward
from whet.rollout.engine import Engine
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, Request, Score

PROMPTS = [Prompt(messages=(Message("user", word),)) for word in ("plum", "fig", "pear", "Rome", "lemon")]
PLACES = [4, 0, 2, 1]


class Counting:
    """Answers with the key, and counts what it is asked."""

    batched = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request.key)
            yield Completion(
                key=request.key, ids=(1, 2), text=request.key, logprobs=(-0.5, -0.25), finish_reason="stop"
            )

    def sync(self, version: int) -> None: ...

    def close(self) -> None: ...


class Length:
    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        return [Score(value=float(len(completion.text))) for completion in completions]


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(load_tokenizer(str(tiny_checkpoint)))


def rounds(
    folder: Path, renderer: Renderer, engine: Engine, ranks: Ranks = ALONE, num: int = 5, reward: Reward | None = None
) -> Rounds:
    return Rounds(
        engine=engine, renderer=renderer, reward=reward or Length(), rollout=Rollout(group_size=2, max_new_tokens=4),
        prompts=PROMPTS[:num], folder=folder, ranks=ranks,
    )  # fmt: skip


def test_one_process_asks_only_for_what_a_killed_rank_has_not_drawn(tmp_path: Path, renderer: Renderer) -> None:
    """Of two ranks the second had drawn its half of the round when the run was killed."""
    killed, lone = Counting(), Counting()
    rounds(tmp_path / "a", renderer, killed, Ranks(rank=1, world=2)).begin(3, PLACES)
    assert len(killed.asked) == 4 and [path.name for path in (tmp_path / "a").iterdir()] == ["000003.part-1-of-2.jsonl"]
    made = rounds(tmp_path / "a", renderer, lone).make(3, PLACES, lambda: None)
    assert not set(lone.asked) & set(killed.asked) and len(lone.asked) == 4
    whole = rounds(tmp_path / "b", renderer, Counting()).make(3, PLACES, lambda: None)
    assert [group.columns["place"] for group in made.groups] == PLACES
    assert (made.groups, made.left_out) == (whole.groups, whole.left_out)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["000003.jsonl"]


def test_other_ranks_find_what_one_process_drew_ahead(tmp_path: Path, renderer: Renderer) -> None:
    rounds(tmp_path, renderer, Counting()).begin(3, PLACES)
    for rank in range(3):
        engine = Counting()
        share = rounds(tmp_path, renderer, engine, Ranks(rank=rank, world=3)).begin(3, PLACES)
        assert not engine.asked and [group.columns["place"] for group in share.groups] == PLACES[rank::3]


def test_a_part_of_other_prompts_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    rounds(tmp_path, renderer, Counting()).begin(3, [0, 1])
    file = tmp_path / "000003.part-0-of-1.jsonl"
    file.write_text(file.read_text().replace('"place": 0', '"place": 2'))
    with pytest.raises(RunError, match="holds the rollouts of other prompts"):
        rounds(tmp_path, renderer, Counting()).make(3, [0, 1], lambda: None)


class Down:
    """A reward that is not there."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        return [Score(value=None, error="connection refused") for _ in completions]


class Dead(Counting):
    """An engine that fails, in the end for half of what it is asked."""

    def __init__(self, failing: Sequence[str]) -> None:
        super().__init__()
        self.failing = failing

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            if any(key in completion.key for key in self.failing):
                yield replace(completion, ids=(), logprobs=(), finish_reason="error", error="no such server")
            else:
                yield completion


@pytest.mark.parametrize("normalised", [False, True])
def test_a_round_without_a_reward_goes_on_when_the_reward_is_mended(
    normalised: bool, tmp_path: Path, renderer: Renderer
) -> None:
    """Its completions are there, whoever drew them; a round with some rewards stays as it is."""

    def made_of(reward: Reward) -> Reward:
        return NormalisedReward(reward=reward) if normalised else reward

    first, again, mended = Counting(), Counting(), Counting()
    rounds(tmp_path / "a", renderer, first, Ranks(rank=1, world=2), reward=made_of(Down())).begin(3, PLACES)
    for engine in (again, Counting()):
        with pytest.raises(RunError, match=r"no completion of round 3 has a reward.*connection refused") as caught:
            rounds(tmp_path / "a", renderer, engine, reward=made_of(Down())).make(3, PLACES, lambda: None)
        assert "the same command goes on" in str(caught.value)
    assert len(first.asked) == len(again.asked) == 4
    made = rounds(tmp_path / "a", renderer, mended, reward=made_of(Length())).make(3, PLACES, lambda: None)
    whole = rounds(tmp_path / "b", renderer, Counting(), reward=made_of(Length())).make(3, PLACES, lambda: None)
    assert not mended.asked and (made.groups, made.reward_state) == (whole.groups, whole.reward_state)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["000003.jsonl"]


def test_what_an_engine_failed_to_give_is_asked_for_again(tmp_path: Path, renderer: Renderer) -> None:
    down = Dead(["/"])
    with pytest.raises(RunError, match=r"no completion of round 3 has a reward.*no such server"):
        rounds(tmp_path, renderer, down).make(3, PLACES, lambda: None)
    engine = Counting()
    rounds(tmp_path, renderer, engine).make(3, PLACES, lambda: None)
    assert engine.asked == down.asked


def test_completions_are_on_disk_while_they_are_scored(tmp_path: Path, renderer: Renderer) -> None:
    """Killed while the reward thinks: nothing is drawn again."""

    class Killed:
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
            raise KeyboardInterrupt

    drawn, engine = Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        rounds(tmp_path, renderer, drawn, reward=Killed()).make(3, PLACES, lambda: None)
    made = rounds(tmp_path, renderer, engine).make(3, PLACES, lambda: None)
    assert len(drawn.asked) == 8 and not engine.asked
    assert all(score.value for group in made.groups for score in group.scores)


def test_prompts_that_are_whole_stay_where_a_server_gives_up(tmp_path: Path, renderer: Renderer) -> None:
    class GivesUp(Counting):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                if len(self.asked) == 6:
                    raise RunError("the server does not answer any more")
                yield completion

    engine = Counting()
    with pytest.raises(RunError, match="does not answer any more"):
        rounds(tmp_path, renderer, GivesUp()).make(3, PLACES, lambda: None)
    made = rounds(tmp_path, renderer, engine).make(3, PLACES, lambda: None)
    assert len(engine.asked) == 4, "two of four prompts had both of their completions"
    assert [group.columns["place"] for group in made.groups] == PLACES


def test_what_is_scored_is_not_asked_for_again_by_fewer_ranks(tmp_path: Path, renderer: Renderer) -> None:
    """Two ranks were killed while they scored; one went on and had the rewards when it was killed, too."""

    class Killed:
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
            raise KeyboardInterrupt

    for rank in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            rounds(tmp_path, renderer, Counting(), Ranks(rank=rank, world=2), reward=Killed()).begin(3, PLACES)
    rounds(tmp_path, renderer, Counting()).begin(3, PLACES)
    rounds(tmp_path, renderer, Counting(), reward=Killed()).make(3, PLACES, lambda: None)
