"""ROUGE and BLEU against references, 0 to 100, by rouge-score and sacrebleu.

rouge-score's own tokenizer keeps ASCII letters and digits only, so that two Chinese texts always score 0. Here a word
is a run of letters or digits of any script, and each Chinese, Japanese or Korean character is a word of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

from whet.config.evaluate import OverlapTask
from whet.data.words import CJK, words
from whet.schema.artifacts import Measure
from whet.stages.measure.answers import Measured, answer_all, references, sample_rows
from whet.stages.measure.interval import Interval, bootstrap
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import Reply, ReplyStore
from whet.stages.measure.subject import Subject

ROUGE = ("rouge1", "rouge2", "rougeL")
BLEU_ORDER = 4


class AnyScript(Tokenizer):  # type: ignore[misc]
    """Lower-cased words of any script; CJK by character."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def measure_overlap(
    ready: ReadyTask, task: OverlapTask, subject: Subject, store: ReplyStore, num_logged: int
) -> Measured:
    """`rouge1`, `rouge2`, `rougeL` (mean F1 over prompts) and corpus `bleu`; intervals by bootstrap over prompts."""
    gold = references(ready)
    answers = answer_all(ready, task, subject, store)
    rouge = rouge_scores(answers, gold)  # [prompts, 3]
    with_count = np.column_stack([rouge, np.ones(len(gold))])
    measures = {
        name: bootstrap(with_count, lambda row, k=k: float(row[k] / row[-1]), seed=task.seed)  # type: ignore[misc]
        for k, name in enumerate(ROUGE)
    }
    measures["bleu"] = corpus_bleu(answers, gold, seed=task.seed)
    return Measured(
        measures=[
            Measure(stage=subject.label, task=ready.name, metric=name, value=value, low=low, high=high, num=len(gold))
            for name, (value, low, high) in measures.items()
        ],
        samples=sample_rows(ready, subject.label, answers, [None] * len(gold), num_logged),
        ledger=ready.ledger,
    )


def rouge_scores(answers: Sequence[Sequence[Reply]], gold: Sequence[str]) -> NDArray[np.float64]:
    """F1 times 100 of each prompt, averaged over its answers: [prompts, len(ROUGE)]."""
    scorer = RougeScorer(list(ROUGE), tokenizer=AnyScript())
    scored = [
        np.mean([[scorer.score(reference, reply.text)[name].fmeasure for name in ROUGE] for reply in replies], axis=0)
        for replies, reference in zip(answers, gold, strict=True)
    ]
    return 100 * np.asarray(scored, dtype=np.float64)


def corpus_bleu(answers: Sequence[Sequence[Reply]], gold: Sequence[str], *, seed: int) -> Interval:
    """Corpus BLEU: n-gram matches and lengths add up over sentences, so a resample is a weighted sum of them."""
    by_character = any(re.search(f"[{CJK}]", text) for text in gold)
    bleu = BLEU(tokenize="zh" if by_character else "13a", effective_order=True)
    written = _spaced if by_character else str
    counts = np.zeros((len(gold), 2 * BLEU_ORDER + 2))
    for row, replies, reference in zip(counts, answers, gold, strict=True):
        for reply in replies:
            sentence = bleu.sentence_score(written(reply.text), [written(reference)])
            row += [*sentence.counts, *sentence.totals, sentence.sys_len, sentence.ref_len]
    return bootstrap(counts, _bleu, seed=seed)


def _spaced(text: str) -> str:
    """Kana and Hangul as words of one character each, which the Chinese tokenizer leaves together."""
    return re.sub(f"([{CJK}])", r" \1 ", text)


def _bleu(row: NDArray[np.float64]) -> float:
    matches, totals = [int(x) for x in row[:BLEU_ORDER]], [int(x) for x in row[BLEU_ORDER : 2 * BLEU_ORDER]]
    score = BLEU.compute_bleu(matches, totals, int(row[-2]), int(row[-1]), smooth_method="exp")
    return float(score.score)
