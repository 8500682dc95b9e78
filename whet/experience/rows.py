"""Scored groups and pairs -> the rows of the files that prepare writes. The field names are the seed pipeline's.

    raw_responses.jsonl   instruction, candidates [{response, score, judge_output}], chosen, chosen_score, rejected, ...
                          and, where answers were compared, judgements [{shown, reply, reading}]
    dpo_training.jsonl    prompt, chosen, rejected, chosen_score, rejected_score
    grpo_training.jsonl   prompt, response, reward
    gspo_training.jsonl   prompt, responses, weights = softmax(score / T)

A prompt of one user message is plain text; any other is its list of messages, so that system and earlier turns reach
training as they reached the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from whet.data.formats import OWN_ANSWER
from whet.experience.pairs import Outcome, Pair, candidates
from whet.rewards.transcript import transcript
from whet.schema.records import Message, Part, Prompt
from whet.schema.rollouts import Completion, Group, Judgement, Score

Row = dict[str, Any]


def raw_row(group: Group, outcome: Outcome | None) -> Row:
    """Everything about a prompt: of several pairs the first. Without one chosen and rejected are null and `dropped`
    says why, unless nobody wanted pairs (None)."""
    row: Row = {
        "instruction": transcript(group.prompt.messages),
        "candidates": [_candidate(c, s) for c, s in zip(group.completions, group.scores, strict=True)],
    }
    match outcome:
        case (Pair(chosen=chosen, rejected=rejected), *others):
            row |= {"chosen": chosen.text, "chosen_score": chosen.score}
            row |= {"rejected": rejected.text, "rejected_score": rejected.score}
            row |= {"num_pairs": 1 + len(others)} if others else {}
        case reason:
            row |= {"chosen": None, "chosen_score": None, "rejected": None, "rejected_score": None}
            row |= {"dropped": reason} if reason is not None else {}
    if compared := [_judgement(one) for one in group.judgements if len(one.shown) > 1]:
        row["judgements"] = compared
    if not _is_plain(group.prompt):
        row |= _prompt(group.prompt, "messages")
    return row | {"key": group.columns["key"], "origin": str(group.prompt.origin)}


def dpo_row(group: Group, pair: Pair) -> Row:
    """Answers are texts where the prompt is one, else lists of one message."""
    plain = _is_plain(group.prompt)

    def answer(text: str) -> object:
        return text if plain else [{"role": "assistant", "content": text}]

    return _prompt(group.prompt, "prompt") | {
        "chosen": answer(pair.chosen.text),
        "rejected": answer(pair.rejected.text),
        "chosen_score": pair.chosen.score,
        "rejected_score": pair.rejected.score,
    }


def grpo_rows(group: Group) -> list[Row]:
    """One row per answer that has words and a score."""
    prompt = _prompt(group.prompt, "prompt")
    return [prompt | {"response": c.text, "reward": c.score} for c in candidates(group)]


def gspo_row(group: Group, temperature: float) -> Row | None:
    """Answers with their share of the probability; None where no answer has a score."""
    usable = candidates(group)
    if not usable:
        return None
    weights = softmax([candidate.score / temperature for candidate in usable])
    return _prompt(group.prompt, "prompt") | {"responses": [c.text for c in usable], "weights": weights}


def prompt_row(prompt: Prompt) -> Row:
    """A prompt alone, with the columns of the row it came from, so that checkers and rewards find theirs."""
    reference = {} if prompt.reference is None else {"reference": prompt.reference}
    answer = {} if prompt.answer is None else {OWN_ANSWER: prompt.answer}
    columns = {name: value for name, value in prompt.columns.items() if name not in ("prompt", "tools")}
    return _prompt(prompt, "prompt") | reference | columns | answer


def softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    shares = [math.exp(value - highest) for value in values]
    return [share / sum(shares) for share in shares]


def _candidate(completion: Completion, score: Score) -> Row:
    """`judge_output` is the judge's reply; several votes stand one after the other."""
    row: Row = {"response": completion.text, "score": score.value, "judge_output": "\n\n---\n\n".join(score.votes)}
    if len(score.votes) > 1:
        row["vote_scores"] = [score.parts.get(f"vote_{vote}") for vote in range(len(score.votes))]
    if completion.finish_reason == "length":
        row["cut"] = True
    return row | ({"error": score.error} if score.error else {})


def _judgement(judgement: Judgement) -> Row:
    """`shown` are places in `candidates`, `reading` what each of them got there."""
    row: Row = {
        "shown": list(judgement.shown),
        "reply": judgement.reply,
        "reading": None if judgement.reading is None else list(judgement.reading),
    }
    return row | ({"error": judgement.error} if judgement.error else {})


def _is_plain(prompt: Prompt) -> bool:
    first, *more = prompt.messages
    return not more and not prompt.tools and first.role == "user" and isinstance(first.content, str)


def _prompt(prompt: Prompt, name: str) -> Row:
    if _is_plain(prompt):
        return {name: prompt.messages[0].text}
    row: Row = {name: [_message(message) for message in prompt.messages]}
    return row | ({"tools": [dict(tool) for tool in prompt.tools]} if prompt.tools else {})


def _message(message: Message) -> Row:
    row: Row = {"role": message.role}
    if isinstance(message.content, str):
        row["content"] = message.content
    else:
        row["content"] = [_part(part) for part in message.content]
    return row | ({"tool_calls": [dict(call) for call in message.tool_calls]} if message.tool_calls else {})


def _part(part: Part) -> Row:
    return {"type": "text", "text": part.value} if part.type == "text" else {"type": "image", "image": part.value}
