"""Final answers: where they stand, which are equal, and that none can make the comparison hang."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.rewards.made import score, value
from whet.config.rules import Math
from whet.rewards.amounts import alike, amount, lone_number
from whet.rewards.final import boxed, final_answer, final_reference, is_prose, trimmed
from whet.rewards.math import MathReward
from whet.rewards.reward import Unscored


@pytest.fixture(scope="module")
def reward() -> MathReward:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    return MathReward(Math())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{3} but \boxed{4", "3"),
        (r"\boxed{}", None),
        (r"\boxed{9} #### 8", "9"),
        ("first #### 1\nthen #### 1,200 \nand so on 5", "1,200"),
        ("####", None),
        ("It makes $18.", "18"),
        ("It makes **18**!", "18"),
        ("= (18)", "18"),
        (r"= \(18\)", "18"),
        (r"costs \$18", "18"),
        ("which is 1/5", "1/5"),
        (r"is $\frac{1}{5}$.", r"\frac{1}{5}"),
        ("x=-3", "x=-3"),
        ("no number", None),
        ("", None),
        ("所以答案是18。", "18"),
        ("答案：18", "18"),
        ("因此小明一共有18个苹果。", "18"),
        ("答案是18元", "18"),
        ("答案是**18**。", "18"),
        ("答案是（１８）", "18"),
        ("答案是-3", "-3"),
        ("答案是负3", "-3"),
        ("答案是1/5。", "1/5"),
        ("答案是3分之1", "1/3"),
        (r"答案是$\frac{1}{5}$。", r"\frac{1}{5}"),
        ("共5万元", "5万"),
        ("走了3千米", "3"),
        ("是3的平方", "3的平方"),
        ("Answer:18", "18"),
        ("answer is:**18**", "18"),
        ("so it is =18", "18"),
        ("the ratio is 3:4", "3:4"),
        ("比是3：4。", "3:4"),
        ("18" + " " * 9_000, "18"),
        ("It is 5 million.", "5 million"),
        ("#### 18元", "18"),
        (r"\boxed{答案是18}", "18"),
        (r"\boxed{x=3或x=5}", "x=3或x=5"),
        ("36*.5 = <<36*.5=18>>18", "18"),
        (r"The answer is \sqrt{3}*2.", r"\sqrt{3}*2"),
        (r"is \frac{1}{2}*3", r"\frac{1}{2}*3"),
        ("is 2*|x|", "2*|x|"),
        ("is 2*$3", "2*$3"),
        ("5*-3=-15", "5*-3=-15"),
        ("is:*18*", "18"),
        ("|**18**|", "18"),
        ("x**2", "x**2"),
        ("答案是2024年5月1日。", "2024年5月1日"),
        ("答案是3小时5分", "3小时5分"),
        ("3元5角", "3元5角"),
        ("是1又1/2", "1又1/2"),
        ("答案是3和5。", "3和5"),
        ("花了3元5个苹果", "5"),
        ("是根号3", "根号3"),
        ("圆的半径是5米半径", "5"),
    ],
)
def test_where_the_final_answer_stands(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_a_bare_reference_is_an_expression_and_prose_is_not() -> None:
    assert final_reference(r"x + 1") == "x + 1"
    assert final_reference(r"\frac{3}{4}") == r"\frac{3}{4}"
    assert final_reference("$12$") == "12"
    assert final_reference("They pay 3 x 4 = 12 in all.") == "12"
    assert final_reference("3 * 4\n#### 12") == "12"
    assert final_reference("小明有3个苹果，一共18个。") == "18"
    assert final_reference("红色，蓝色") == "红色，蓝色"
    assert final_reference("x大于3，小于5") == "x大于3，小于5"
    with pytest.raises(Unscored, match="no final answer"):
        final_reference("nobody can know")


def test_plain_answers_need_no_library() -> None:
    assert alike("1,200", "$1200.00") is True
    assert alike("−3", "-3") is True
    assert alike("3", "-3") is False
    assert alike("x", "x") is True
    assert alike("1/2", "0.5") is None
    assert trimmed('"18."') == "18" and trimmed("*`$18$`*") == "18"


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("72", "so 72", 1.0),
        ("72", r"\boxed{72.0}", 1.0),
        ("72", "so 73", 0.0),
        ("72", "no idea", 0.0),
        ("72", "", 0.0),
        ("0.5", r"\boxed{\frac{2}{4}}", 1.0),
        (r"\frac{1}{2}", "it is 0.5", 1.0),
        (r"\frac{1}{2}", "it is 1/2", 1.0),
        ("5", "it is 1/5", 0.0),
        ("5", r"it is $\frac{1}{5}$", 0.0),
        (r"x^2 + 2x + 1", r"\boxed{(x+1)^2}", 1.0),
        (r"x^2 + 2x + 1", r"\boxed{(x-1)^2}", 0.0),
        ("x = 5", r"\boxed{5}", 1.0),
        ("5", r"\boxed{x = 5}", 1.0),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", 1.0),
        (r"(1, 2)", r"\boxed{(2, 1)}", 0.0),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", 1.0),
        ("72", r"I guess 72, 73 or 74: \boxed{}", 0.0),
        ("72", r"\boxed{71, 72, 73}", 0.0),
        ("72", r"\boxed{72 or 73}", 0.0),
        ("72", "so <<48+24=72>>72 clips", 1.0),
        ("73", "so <<48+25=73>>72", 0.0),
        ("72", "#### 72 clips", 1.0),
        ("18", "She earns $18/hour.", 1.0),
        ("10", "at 10am", 1.0),
        ("5", "#### 5 million", 0.0),
        ("5", r"\boxed{5x}", 0.0),
        ("5x", r"\boxed{5}", 0.0),
        ("72", r"\boxed{72 \text{ clips}}", 1.0),
        ("72", r"\boxed{\frac{0}{0}}", 0.0),
        ("72", r"\boxed{\infty}", 0.0),
        ("72", r"\boxed{[0, 100]}", 0.0),
        ("72", r"\boxed{x}", 0.0),
        ("1", r"\boxed{\frac{}{}}", 0.0),
        ("18 dollars", r"\boxed{18}", 1.0),
        ("18 dollars", "He has 18 dollars.", 1.0),
        ("18元", r"\boxed{18}", 1.0),
        ("18平方米", r"\boxed{18}", 1.0),
        ("答案是18。", r"\boxed{18}", 1.0),
        ("答案是18。", r"\boxed{19}", 0.0),
        ("18", "€18", 1.0),
        ("18", "£18", 1.0),
        ("18", r"\boxed{¥18}", 1.0),
        ("18", r"\boxed{￥１８}", 1.0),
        ("18", r"\boxed{18元}", 1.0),
        ("18", r"\boxed{18个}", 1.0),
        ("18", r"\boxed{18\text{元}}", 1.0),
        ("50000", r"\boxed{5万元}", 1.0),
        ("5", r"\boxed{5万}", 0.0),
        ("5", "共有5万人。", 0.0),
        ("3", "答案是3的平方", 0.0),
        ("3", r"\boxed{3个半}", 0.0),
        ("3", r"\boxed{3 pi}", 0.0),
        ("3", r"\boxed{3 times x}", 0.0),
        ("3", r"\boxed{3 times}", 1.0),
        ("3", r"\boxed{3 cubed}", 0.0),
        ("3", r"\boxed{3 months}", 1.0),
        ("2", r"\boxed{2 pi r}", 0.0),
        ("2", r"\boxed{2 sqrt}", 0.0),
        ("5", r"\boxed{5 and a half}", 0.0),
        ("5", "It is 5 and a half.", 0.0),
        ("5", "It is 5 million.", 0.0),
        ("5", r"\boxed{5 \text{ million}}", 0.0),
        ("5", r"\boxed{5 dozen}", 0.0),
        (r"2\pi", r"\boxed{2 pi}", 1.0),
        ("1", "\\boxed{" + "9" * 5000 + "}", 0.0),
        ("-15", "5*-3=-15", 1.0),
        ("2", r"The answer is \sqrt{3}*2", 0.0),
        ("3和5", "3和5", 1.0),
        ("3、5", "3、5。", 1.0),
        ("3个或5个", "3个或5个", 1.0),
        ("10点30分", "10点30分", 1.0),
        ("5", "答案是3小时5分", 0.0),
        ("5", "答案是3和5。", 0.0),
        ("36", "36打", 0.0),
        ("3", "3成", 0.0),
        ("3", "#### 3折", 0.0),
        ("72", "72根号", 0.0),
        ("3", r"\boxed{根号3}", 0.0),
        ("5", "5米半", 0.0),
        ("3", "负数3", 0.0),
        ("about 18", "18", 1.0),
        ("约18元", r"\boxed{18}", 1.0),
        ("18", r"\boxed{\approx 18}", 1.0),
        ("May 1", "It is May 1.", 0.0),
    ],
)
def test_equal_or_not(reward: MathReward, reference: str, text: str, expected: float) -> None:
    assert value(reward, text, reference) == expected


def test_where_it_reads(reward: MathReward) -> None:
    inside = MathReward(Math(tag="answer", after="</think>"))
    assert value(inside, "<think>72</think><answer>73</answer>", "72") == 0.0
    assert value(inside, "<think>73</think><answer>72</answer>", "72") == 1.0
    assert value(inside, "72", "72") == 0.0


def test_a_large_power_is_stopped_and_the_next_is_compared() -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    reward = MathReward(Math(timeout=2.0))
    begun = time.perf_counter()
    hard = score(reward, r"\boxed{9^{9^{9^{9}}} + x}", "x + 1")
    assert hard.value in (0.0, None) and time.perf_counter() - begun < 30.0
    if hard.value is None:
        assert hard.error == "the comparison took longer than 2 s"
    assert value(reward, r"\boxed{1 + x}", "x + 1") == 1.0


def test_generated_text_is_never_executed(reward: MathReward, tmp_path: Path) -> None:
    file = tmp_path / "written"
    for attack in (
        f"__import__('pathlib').Path('{file}').touch() or 5",
        f"\\boxed{{__import__('pathlib').Path('{file}').touch()}}",
        f"\\boxed{{\\text{{__import__('os').system('touch {file}')}}}}",
        f"exec(\"open('{file}','w')\")5",
    ):
        score(reward, attack, r"\frac{5}{2}")
    assert not file.exists()


def test_huge_texts_take_no_endless_time(reward: MathReward) -> None:
    begun = time.perf_counter()
    for text in (
        "\\boxed{" * 100_000,
        "{" * 500_000 + "}" * 500_000,
        "a5" * 500_000,
        "#" * 1_000_000,
        "\\" * 1_000_000,
    ):
        assert value(reward, text, "7") == 0.0
        assert boxed(text) is None
    assert time.perf_counter() - begun < 60.0


@pytest.mark.parametrize("text", ["1" * 90_000, "答" * 90_000, "1" + " " * 90_000 + "x", "1年" * 50_000, "1*" * 50_000])
def test_long_runs_are_read_once(text: str) -> None:
    begun = time.perf_counter()
    assert final_answer("#### " + text) is None and final_answer(f"\\boxed{{{text}}}") is None
    for read in (final_answer, final_reference, is_prose, amount, lone_number):
        with contextlib.suppress(Unscored):
            read(text)
    assert time.perf_counter() - begun < 5.0


def test_no_reference_is_no_wrong_answer(reward: MathReward) -> None:
    assert score(reward, "5").value is None
    assert "no final answer" in str(score(reward, "5", "nobody can know").error)
