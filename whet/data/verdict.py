"""Verdicts: which of two candidates is better, said in a fixed form (UnifiedReward-Think, 2505.03318).

    <think>Image 1 has three stars where two were asked for ...</think><answer>Image 2 is better</answer>

What the answer tag holds is the verdict; whatever the reasoning says is not. Behind the reasoning stands one answer and
nothing else: a completion that says more there, or never ends its reasoning, has no verdict, and neither has one whose
answer is anything but a verdict.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TIE = 0
"""The candidates are equally good."""
SUBJECTS = ("Image", "Answer", "Video")
_BETTER = re.compile(r"(image|answer|video) ([12]) is better", re.IGNORECASE)
_EQUAL = re.compile(r"(image|answer|video) 1 and \1 2 are equally good", re.IGNORECASE)
_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)


class Verdict(NamedTuple):
    subject: str
    """What is compared: one of SUBJECTS."""
    better: int
    """1, 2, or TIE."""

    @property
    def swapped(self) -> Verdict:
        """The same verdict, with the candidates shown the other way round."""
        return self if self.better == TIE else Verdict(self.subject, 3 - self.better)


def write_verdict(verdict: Verdict) -> str:
    """The words of a verdict: "Image 1 is better"."""
    subject, better = verdict
    return f"{subject} 1 and {subject} 2 are equally good" if better == TIE else f"{subject} {better} is better"


def parse_verdict(text: str) -> Verdict | None:
    """What the words of an answer say. Case, blanks around and a full stop at the end do not matter; nothing else may
    stand there."""
    words = " ".join(text.split()).removesuffix(".")
    if found := _BETTER.fullmatch(words):
        return Verdict(found[1].capitalize(), int(found[2]))
    if found := _EQUAL.fullmatch(words):
        return Verdict(found[1].capitalize(), TIE)
    return None


def read_verdict(completion: str) -> Verdict | None:
    """The verdict of a completion, or None.

    Read is what follows the last </think>, or all where there is none. Only an answer tag with a verdict may stand
    there, and white space around it: an answer inside reasoning that was never ended is none.
    """
    answer = _ANSWER.fullmatch(completion.rpartition("</think>")[2])
    return None if answer is None else parse_verdict(answer[1])
