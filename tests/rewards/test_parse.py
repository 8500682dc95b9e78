"""Every form in which a judge writes its score, decided; and text that decides nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.rewards.parse import parse_ranking, parse_score, parse_verdict

TABLE = [
    # the forms that the seed pipeline got wrong
    ("Score: 10", None),
    ("Score: 5.7", None),
    ("score: 4", 4.0),
    ("**Score:** 4", 4.0),
    ("Score: <4>", 4.0),
    ("Score: 7", None),
    # plain forms
    ("Score: 0", 0.0),
    ("Score: 5", 5.0),
    ("Score:3", 3.0),
    ("SCORE: 2", 2.0),
    ("Score: 3.5", 3.5),
    ("Score: 4.", 4.0),
    ("Score: 4\n", 4.0),
    ("Total score: 4 points", 4.0),
    ("Score = 3", 3.0),
    ("Score : 3", 3.0),
    ("Score:\n3", 3.0),
    # dress
    ("**Score**: 4", 4.0),
    ("**Score: 4**", 4.0),
    ("Score: **4**", 4.0),
    ("Score: **4/5**", 4.0),
    ("*Score*: `4`", 4.0),
    ("__Score:__ 4", 4.0),
    ("Score: [4]", 4.0),
    ("Score: (4)", 4.0),
    ("Score: [[4]]", 4.0),
    ("Score：4", 4.0),
    ('{"score": 4, "reason": "short"}', 4.0),
    ("{'score': '3'}", 3.0),
    ("**Score：** 4.5", 4.5),
    ("评分：4", 4.0),
    ("评分: 4分", 4.0),
    ("得分：3.5", 3.5),
    ("最终得分：**2**", 2.0),
    ("分数：5", 5.0),
    ("总分：4", 4.0),
    ("得分：4（总分：5）", 4.0),
    ("评分：４", 4.0),
    ("评分：４．５", 4.5),
    ("评分：4，5个理由", 4.0),
    ("Score：（4）", 4.0),
    # the scale named
    ("Score: 4/5", 4.0),
    ("Score: <4>/5", 4.0),
    ("Score: 4 / 5", 4.0),
    ("Score: 4 out of 5", 4.0),
    ("Score: 4.0/5.0", 4.0),
    ("Score: 4/10", None),
    ("Score: 8/10", None),
    ("得分：4／10", None),
    ("得分：4／5", 4.0),
    ("Score: 4 out of 10", None),
    # out of range
    ("Score: -1", None),
    ("Score: −1", None),
    ("Score: 5.01", None),
    ("Score: 400", None),
    # several: the last valid form decides
    ("I would first say Score: 2.\nOn reflection\nScore: 4", 4.0),
    ("Score: 4\nScore: 10", None),
    ("Score: <0-5>\nScore: 3", 3.0),
    ("Score: 4\n- 2 points for clarity", 4.0),
    # thinking says nothing
    ("<think>On relevance Score: 2.</think>\nScore: 5", 5.0),
    ("<think>On relevance Score: 2. Now let me", None),
    ("Score: 2. Enough.</think>\nNo idea", None),
    ("its <think> block is empty. Score: 4", 4.0),
    ("Score: 3\nin the form Score: <0-5>", 3.0),
    # no valid form
    ("", None),
    ("4", None),
    ("<4>", None),
    ("[[4]]", None),
    ("I give it four points.", None),
    ("Score: four", None),
    ("Score: <0-5>", None),
    ("Score: 0–5", None),
    ("Score: 0 to 5", None),
    ("Score: 4th", None),
    ("Score: 4,5", None),
    ("Score: 4.5.1", None),
    ("Score 4", None),
    ("subscore: 4", None),
    ("underscore_score: 4", None),
    ("scores: 4", None),
    ("Score:", None),
]


@pytest.mark.parametrize(("text", "value"), TABLE)
def test_every_form_is_decided(text: str, value: float | None) -> None:
    assert parse_score(text, 0.0, 5.0) == value


def test_the_first_form_decides_where_the_score_comes_first() -> None:
    text = "Score: 4\nA Score: 2 would be too strict."
    assert parse_score(text, 0, 5, take="first") == 4.0
    assert parse_score(text, 0, 5) == 2.0
    assert parse_score("Score: 9\nScore: 4", 0, 5, take="first") is None


def test_other_scales() -> None:
    assert parse_score("Score: 87", 1, 100) == 87.0
    assert parse_score("Score: 8/10", 1, 10) == 8.0
    assert parse_score("Score: 0", 1, 10) is None
    assert parse_score("Score: -2", -3, 3) == -2.0


@given(st.text())
def test_any_text_gives_none_or_a_score_in_range(text: str) -> None:
    value = parse_score(text, 0.0, 5.0)
    assert value is None or 0.0 <= value <= 5.0
    assert parse_verdict(text) in (None, "first", "second", "tie")


@given(
    st.lists(
        st.sampled_from(
            ["Score", "评分", ":", "：", "4", "10", "-", "/", "5", ".", "**", "<", ">", " ", "\n", "to", "x"]
        )
    )
)
def test_pieces_of_scores_in_any_order_never_crash(pieces: list[str]) -> None:
    value = parse_score("".join(pieces), 0.0, 5.0)
    assert value is None or 0.0 <= value <= 5.0


def test_long_runs_of_decoration_are_read_in_no_time() -> None:
    """A regular expression with nested repeats would need hours for this."""
    assert parse_score("Score:" + " *" * 5_000, 0, 5) is None
    assert parse_score("score" * 20_000, 0, 5) is None
    for space in (" ", "\n"):
        assert parse_score("Score:" + space * 50_000, 0, 5) is None
        assert parse_score("Score: 4" + space * 50_000 + "x", 0, 5) == 4.0
        assert parse_verdict("Verdict:" + space * 50_000) is None
        assert parse_verdict("Verdict: first" + space * 50_000) == "first"
        assert parse_verdict("Verdict: first or" + space * 50_000) == "first"
        assert parse_ranking("Ranking" + space * 50_000, 3) is None


@pytest.mark.parametrize("end", ["1", "1.", "10/1"])
def test_a_score_at_the_end_of_a_cut_reply_may_go_on(end: str) -> None:
    assert parse_score(f"Good. Score: {end}", 0, 10, cut=True) is None


def test_a_cut_reply_is_read_where_it_went_on() -> None:
    assert parse_score("Score: 1\nIt is", 0, 10, cut=True) == 1.0
    assert parse_score("**Score: 1**", 0, 10, cut=True) == 1.0
    assert parse_verdict("Verdict: first", cut=True) is None
    assert parse_verdict("Verdict: first\n", cut=True) == "first"
    assert parse_ranking("Ranking: 2 > 1", 2, cut=True) is None
    assert parse_ranking("Ranking: 2 > 1\nFor", 2, cut=True) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: first", "first"),
        ("verdict: SECOND", "second"),
        ("**Verdict:** tie", "tie"),
        ("Verdict：<second>", "second"),
        ("At first Verdict: first, but then\nVerdict: tie", "tie"),
        ("The first one is better.", None),
        ("Verdict: firstly", None),
        ("Verdict: first or second", None),
        ("Verdict: first/second", None),
        ("Verdict: <first>或<second>", None),
        ("Verdict: first\nOr so I think.", "first"),
        ("| Verdict: first |", "first"),
        ("| A | Verdict: first | good |", "first"),
        ("Verdict: first | it is clearer", "first"),
        ("Verdict: first, or at least better", "first"),
        ("Verdict: first, or the second", None),
        ("Verdict: **first** | **second**", None),
        ("They write\n<think> and go on.\nVerdict: tie", "tie"),
        ("<think>a</think>\n<think>Verdict: first", None),
        ("Verdict: first\nVerdict: second\nVerdict: tie", None),
        ("Verdict: second. One of:\nVerdict: first\nVerdict: second\nVerdict: tie", "second"),
        ("Verdict: first\nVerdict: second\nVerdict: tie\nVerdict: second", "second"),
        ("<think>Verdict: first</think>Verdict: tie", "tie"),
        ("<think>Verdict: first", None),
        ("", None),
    ],
)
def test_verdicts(text: str, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "num", "ranks"),
    [
        ("Ranking: 2 > 1 > 3", 3, (2.0, 1.0, 3.0)),
        ("They differ.\nRanking: 3>1>2", 3, (2.0, 3.0, 1.0)),
        ("Ranking: 2 > 1 = 3", 3, (2.5, 1.0, 2.5)),
        ("Ranking: 1 = 2 = 3", 3, (2.0, 2.0, 2.0)),
        ("Ranking: 2, 1", 2, (2.0, 1.0)),
        ("**Ranking:** **2** > **1**", 2, (2.0, 1.0)),
        ("ranking: [2] > [1].", 2, (2.0, 1.0)),
        ("Ranking: <2> > <1>", 2, (2.0, 1.0)),
        ("Ranking: Answer 2 > Answer 1", 2, (2.0, 1.0)),
        ("排名：2、1", 2, (2.0, 1.0)),
        ("排名：2 ＞ 1 ＞ 3", 3, (2.0, 1.0, 3.0)),
        ("<think>Ranking: 1 > 2</think>Ranking: 2 > 1", 2, (2.0, 1.0)),
        ("Ranking: 1 > 2\nNo:\nRanking: 2 > 1", 2, (2.0, 1.0)),
        ("Ranking: 2 > 1", 3, None),
        ("Ranking: 2 > 1 > 2", 3, None),
        ("Ranking: 1 > 2 > 4", 3, None),
        ("Ranking: 2 1", 2, None),
        ("Ranking: 2 > 1, because 1 rambles", 2, None),
        ("Ranking:", 2, None),
        ("2 > 1", 2, None),
        ("", 2, None),
    ],
)
def test_rankings(text: str, num: int, ranks: tuple[float, ...] | None) -> None:
    assert parse_ranking(text, num) == ranks


@given(st.permutations(range(1, 7)), st.lists(st.sampled_from(">="), min_size=5, max_size=5))
def test_a_ranking_says_who_is_better(order: list[int], steps: list[str]) -> None:
    words = "".join(f"{number} {step} " for number, step in zip(order, [*steps, ""], strict=True))
    ranks = parse_ranking(f"Reason 1 > 2.\nRanking: {words}", 6)
    assert ranks is not None and sum(ranks) == 21
    for (left, right), step in zip(pairwise(order), steps, strict=True):
        better, equal = ranks[left - 1] < ranks[right - 1], ranks[left - 1] == ranks[right - 1]
        assert better if step == ">" else equal


PIECES = ["Ranking", ":", "1", "2", "3", ">", "=", ",", "<", " ", "\n"]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_rankings_of_any_text_never_crash(text: str) -> None:
    ranks = parse_ranking(text, 3)
    assert ranks is None or sum(ranks) == 6


def test_long_rankings_are_read_in_no_time() -> None:
    assert parse_ranking("Ranking: " + "1 > " * 50_000, 3) is None
    assert parse_ranking("ranking" * 20_000, 3) is None
