"""ROUGE and BLEU against hand-counted values and the libraries' own corpus scores, English and Chinese."""

import pytest
import sacrebleu

from whet.stages.measure.overlap import AnyScript, corpus_bleu, rouge_scores
from whet.stages.measure.store import Reply


def answers(*texts):
    keep = {"owner": "m", "task": "t", "key": "k", "digest": "", "num_tokens": 1, "finish_reason": "stop"}
    return [[Reply(text=text, **keep)] for text in texts]


def test_rouge_by_hand():
    # 3 of 4 words and 2 of 3 bigrams in common, both ways
    scores = rouge_scores(answers("the cat sat there"), ["the cat sat down"])
    assert scores[0] == pytest.approx([75.0, 100 * 2 / 3, 75.0])


def test_chinese_is_compared_by_character():
    assert AnyScript().tokenize("答案是 42,ok") == ["答", "案", "是", "42", "ok"]
    scores = rouge_scores(answers("答案是十二"), ["答案是十三"])
    assert scores[0] == pytest.approx([80.0, 75.0, 80.0])


@pytest.mark.parametrize(
    ("texts", "gold", "tokenize"),
    [
        (
            ["the cat sat on the mat today", "there is a small dog in the garden", "birds"],
            ["the cat sat on the mat", "there is a dog in the garden now", "birds sing"],
            "13a",
        ),
        (["今天天气很好我们去公园", "他喜欢看书和听音乐"], ["今天天气不错我们去公园玩", "他喜欢看书听音乐"], "zh"),
    ],
)
def test_bleu_is_sacrebleus_corpus_bleu(texts, gold, tokenize):
    value, low, high = corpus_bleu(answers(*texts), gold, seed=1)
    assert value == pytest.approx(sacrebleu.corpus_bleu(texts, [gold], tokenize=tokenize).score)
    assert low <= value <= high


@pytest.mark.parametrize(
    ("text", "gold"), [("きのうはとてもさむい", "きのうはすごくさむい"), ("오늘은날씨가", "오늘은날씨")]
)
def test_bleu_compares_japanese_and_korean_by_character_too(text, gold):
    value, _, _ = corpus_bleu(answers(text, text), [gold, gold], seed=1)
    assert value == pytest.approx(sacrebleu.corpus_bleu([text] * 2, [[gold] * 2], tokenize="char").score)
