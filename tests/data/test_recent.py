"""A memory that forgets what was asked for least recently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whet.data.recent import Recent


@given(most=st.integers(1, 5), asked=st.lists(st.integers(0, 8), max_size=40))
def test_the_last_ones_are_kept(most: int, asked: list[int]) -> None:
    recent: Recent[int, str] = Recent(most)
    for place, key in enumerate(asked):
        kept = list(dict.fromkeys(reversed(asked[:place])))[:most]
        assert recent.get(key) == (str(key) if key in kept else None)
        recent.put(key, str(key))
        assert len(recent) <= most
