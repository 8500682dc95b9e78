"""Texts without what makes no difference between them: case, and width of characters."""

from __future__ import annotations

import re
import unicodedata

RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070\u2071\u2074-\u207f]+")
"""Digits and signs of exponents."""


def folded(text: str) -> str:
    """The text in lower case and NFKC, in which an exponent is still one.

    >>> folded("２³ = ８"), folded("10⁻¹²")
    ('2^3 = 8', '10^−12')
    """
    return unicodedata.normalize("NFKC", RAISED.sub(r"^\g<0>", text)).casefold()
