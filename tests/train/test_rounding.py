"""fp32 as two halves, and rounding that is right on average."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.train import rounding


def split(wide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    narrow, remainder = torch.empty_like(wide, dtype=torch.bfloat16), torch.empty_like(wide, dtype=torch.int16)
    rounding.split(wide, narrow, remainder, torch.empty_like(wide, dtype=torch.int32))
    return narrow, remainder


def join(narrow: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    wide = torch.empty_like(narrow, dtype=torch.float32)
    rounding.join(narrow, remainder, wide)
    return wide


def round_at_random(wide: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    narrow = torch.empty_like(wide, dtype=torch.bfloat16)
    rounding.round_at_random(wide, narrow, torch.empty_like(wide, dtype=torch.int32), generator)
    return narrow


def numbers(count: int) -> torch.Tensor:
    """fp32 numbers of every size, both signs, zeros, ties, and denormal ones."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(count, generator=generator) * torch.logspace(-40, 38, count).float().clamp(max=1e37)
    return torch.cat([spread, torch.tensor([0.0, -0.0, 1.0 + 2**-8, -1.0 - 2**-8, 1.0 + 3 * 2**-8, 1e-42])])


def test_halves_are_the_nearest_bf16_and_the_rest() -> None:
    """1 + 2^-8 lies in the middle between 1 and 1 + 2^-7, goes away from zero, and misses -2^15 steps of 2^-23."""
    narrow, remainder = split(torch.tensor([1.0 + 2**-8, 1.0 + 2**-9, -(1.0 + 2**-8), 3.0]))
    assert narrow.tolist() == [1.0 + 2**-7, 1.0, -(1.0 + 2**-7), 3.0]
    assert remainder.tolist() == [-(2**15), 2**14, -(2**15), 0]
    wide = numbers(20_000)
    narrow, _ = split(wide)
    nearest = wide.bfloat16()
    ties = (wide.view(torch.int32) & 0xFFFF) == 1 << 15
    assert torch.equal(narrow[~ties], nearest[~ties])
    assert ((narrow.double() - wide.double()).abs() == (nearest.double() - wide.double()).abs()).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 0x7F7F7FFF), st.booleans())
def test_joined_halves_are_the_same_bits(magnitude: int, negative: bool) -> None:
    bits = torch.tensor([magnitude - (1 << 31) if negative else magnitude], dtype=torch.int32)
    assert torch.equal(join(*split(bits.view(torch.float32))).view(torch.int32), bits)


def test_many_joined_halves_are_the_same_bits() -> None:
    wide = numbers(20_000)
    assert torch.equal(join(*split(wide)).view(torch.int32), wide.view(torch.int32))


def test_rounding_at_random_takes_a_neighbour_and_the_mean_is_right() -> None:
    """A quarter of the way up is rounded up a quarter of the time: n draws are within 5 standard deviations."""
    n = 200_000
    generator = torch.Generator().manual_seed(1)
    for value, low, high, share in (
        (1.0 + 2**-9, 1.0, 1.0 + 2**-7, 0.25),
        (-(2.0 + 3 * 2**-8), -2.0, -(2.0 + 2**-6), 0.75),
        (3e-5, None, None, None),
    ):
        rounded = round_at_random(torch.full((n,), value), generator).double()
        step = (rounded.max() - rounded.min()).item()
        assert abs(rounded.mean().item() - value) < 5 * step / 2 / n**0.5
        assert len(rounded.unique()) == 2
        if share is not None:
            assert set(rounded.tolist()) == {low, high}
            assert abs((rounded == high).double().mean().item() - share) < 5 * 0.5 / n**0.5


def test_what_bf16_can_hold_stays() -> None:
    wide = numbers(1_001).bfloat16().float()
    for seed in range(5):
        rounded = round_at_random(wide, torch.Generator().manual_seed(seed))
        assert torch.equal(rounded.view(torch.int16), wide.bfloat16().view(torch.int16))


def test_random_bits_are_uniform_and_the_generators() -> None:
    """All 16 bits are drawn, for every position of the four in a draw; the same state gives the same bits."""
    wide = torch.zeros(40_003) + 1.0
    first = round_at_random(wide.double().add(2**-7 / 2).float(), torch.Generator().manual_seed(7))
    again = round_at_random(wide.double().add(2**-7 / 2).float(), torch.Generator().manual_seed(7))
    assert torch.equal(first, again)
    up = (first > 1.0).double()
    for place in range(4):
        assert abs(up[place::4].mean().item() - 0.5) < 0.03
    almost = round_at_random(wide + 2**-7 * (1 - 2**-14), torch.Generator().manual_seed(7))
    assert 0 <= (almost == 1.0).sum() < 20


def test_updates_below_half_a_step_add_up() -> None:
    """500 updates of a hundredth of a bf16 step: rounding to nearest loses them all, at random none on average."""
    step, update = 2**-7, 2**-7 / 100
    generator = torch.Generator().manual_seed(2)
    nearest, at_random = torch.ones(4_000).bfloat16(), torch.ones(4_000).bfloat16()
    for _ in range(500):
        nearest = (nearest.float() + update).bfloat16()
        at_random = round_at_random(at_random.float() + update, generator)
    assert (nearest == 1.0).all()
    # 500 draws of p = 1/100: variance 500 * 0.01 * 0.99 steps^2 a weight.
    assert abs((at_random.double().mean().item() - 1.0) / step - 5.0) < 5 * (4.95 / 4_000) ** 0.5
