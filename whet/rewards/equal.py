"""Equality of two expressions by math-verify. Runs in a worker process, which alone imports the package.

Only LaTeX is parsed: the package's other reader hands text to Python's `eval`, and generated text is never executed.
"""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify

# Time is kept by the process that asks; the package warns that it does not keep it.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def equal(reference: str, answer: str) -> float:
    """1.0 where both are the same expression, else 0.0, also where one cannot be read."""
    expected, found = _parsed(reference), _parsed(answer)
    # The order matters: against the reference `x = 5` an answer of 5 is right, and the other way round.
    return float(bool(expected and found) and verify(expected, found, timeout_seconds=None))


def _parsed(expression: str) -> list[object]:
    boxed = f"\\boxed{{{expression}}}"
    parsed: list[object] = parse(
        boxed, extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return parsed
