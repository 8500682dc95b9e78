"""Rows that are longer than a sliding window: padded, which is said once a model."""

from __future__ import annotations

import pytest

from tests.models.packed import build, pack
from whet.models.scoring import TokenScorer


def test_the_first_row_that_is_longer_is_told_with_the_window(recwarn: pytest.WarningsRecorder) -> None:
    model = build("gemma2, short window")
    first, second = TokenScorer(model), TokenScorer(model)
    first(pack([(3, (5, 4)), (8, ())]))
    assert not recwarn.list, "a row as long as the window does not notice it"
    for scorer in (first, second):
        scorer(pack([(3, (5, 9)), (8, ())]))
        scorer(pack([(20, ())]))
    (said,) = (str(warning.message) for warning in recwarn.list)
    assert "window of Gemma2ForCausalLM are padded, not packed: one has 12 tokens, the window 8" in said
    assert first.backbone.refusal is None
    with pytest.warns(UserWarning, match="sliding window"):
        TokenScorer(build("gemma2, short window"))(pack([(20, ())]))
