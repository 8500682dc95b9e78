"""Pictures in rows that are cut, packed and collated, by hand: 9 is the placeholder, two stand for a cat, one a dog."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from whet.data.batch import collate_groups, collate_rankings, collate_ratings, collate_tokens
from whet.data.fit import OVERLONG, PROMPT_OVERLONG, fit
from whet.data.ledger import Ledger
from whet.data.pack import pack_groups, pack_rows
from whet.data.places import expanded, held, widened
from whet.data.rendered import Rendered, RenderedGroup
from whet.schema.pictures import Picture

CAT = Picture(source="cat.png", digest="0f" * 32, num_tokens=2, grid=(1, 2))
DOG = Picture(source="dog.png", digest="a1" * 32, num_tokens=1, grid=(1, 1))
CPU = torch.device("cpu")


class Nine:
    """Stands for a reader: its placeholder, and a tensor that says which pictures were asked for."""

    place_id = 9

    def load(self, pictures: list[Picture]) -> dict[str, Tensor]:
        return {"pixel_values": torch.tensor([picture.num_tokens for picture in pictures])}


READER: object = Nine()


def test_placeholders_expand_in_order() -> None:
    assert expanded([1, 9, 2, 9, 3], [CAT, DOG], 9) == [1, 9, 9, 2, 9, 3]
    assert widened([1, 9, 2, 9, 3], [0, 0, 0, 0, 0.5], [CAT, DOG], 9) == [0, 0, 0, 0, 0, 0.5]
    assert held([1, 9, 9, 2], [CAT, DOG], 9) == (CAT,)
    assert held([1, 9, 9, 2, 9], [CAT, DOG], 9) == (CAT, DOG)
    assert held([1, 2], [CAT, DOG], 9) == ()


def test_a_packed_row_knows_where_its_pictures_are() -> None:
    rows = [
        Rendered(ids=(1, 9, 9, 2), weights=(0, 0, 0, 1), pictures=(CAT,)),
        Rendered(ids=(1, 2), weights=(0, 1)),
        Rendered(ids=(9, 3, 9, 9, 2), weights=(0, 0, 0, 0, 1), pictures=(DOG, CAT)),
    ]
    packed, weights = pack_rows(rows, READER)  # type: ignore[arg-type]
    assert packed.media is not None and weights.tolist() == [1, 1, 1]
    assert packed.media.pictures == (CAT, DOG, CAT)
    assert packed.media.places.tolist() == [1, 2, 6, 8, 9]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]
    assert packed.media.load([DOG])["pixel_values"].tolist() == [1]
    assert pack_rows(rows[1:2], READER)[0].media is None  # type: ignore[arg-type]
    assert pack_rows(rows[1:2])[0].media is None
    with pytest.raises(AssertionError, match="come with their reader"):
        pack_rows(rows)


def test_a_placeholder_that_a_model_has_drawn_is_no_picture() -> None:
    groups = [
        RenderedGroup(prompt_ids=(9, 9, 5), response_ids=((9, 2), (7, 2)), pictures=(CAT,)),
        RenderedGroup(prompt_ids=(5,), response_ids=((9,),)),
        RenderedGroup(prompt_ids=(5, 9), response_ids=((1,),), pictures=(DOG,)),
    ]
    packed = pack_groups(groups, READER)  # type: ignore[arg-type]
    assert packed.media is not None
    assert packed.media.places.tolist() == [0, 1, 10] and packed.media.pictures == (CAT, DOG)


def test_every_batch_brings_its_pictures() -> None:
    group = RenderedGroup(prompt_ids=(9, 9, 5), response_ids=((1, 2), (3, 2)), pictures=(CAT,))
    single = replace(group, response_ids=((1, 2),), values=(1.0,))
    row = Rendered(ids=(9, 5, 2), weights=(0, 0, 1), pictures=(DOG,))
    with_reader = {"device": CPU, "reader": READER}
    media = [
        collate_tokens([row], **with_reader).packed.media,  # type: ignore[arg-type]
        collate_groups([group], [0], **with_reader).packed.media,  # type: ignore[arg-type]
        collate_rankings([group], **with_reader).packed.media,  # type: ignore[arg-type]
        collate_ratings([single], [single], [0], max_length=99, **with_reader).mismatched.packed.media,  # type: ignore[arg-type]
    ]
    assert [found.pictures for found in media if found] == [(DOG,), (CAT,), (CAT,), (CAT,)]


def test_no_cut_goes_through_a_picture() -> None:
    """user 9 9, says 4 5, user 9, says 6: whatever the length, what is left ends with trained tokens."""
    row = Rendered(ids=(1, 9, 9, 4, 5, 1, 9, 6), weights=(0, 0, 0, 1, 1, 0, 0, 1), pictures=(CAT, DOG))
    lengths = {}
    for length in range(1, 9):
        ledger = Ledger(kept=1)
        for cut in fit([row], length, "truncate", ledger, place_id=9):
            lengths[length] = len(cut.ids)
            assert sum(picture.num_tokens for picture in cut.pictures) == list(cut.ids).count(9)
        if length not in lengths:
            assert list(ledger.dropped) == [PROMPT_OVERLONG]
    assert lengths == {4: 4, 5: 5, 6: 5, 7: 5, 8: 8}
    (cut,) = fit([row], 6, "truncate", Ledger(kept=1), place_id=9)
    assert cut.pictures == (CAT,)


def test_prompts_with_pictures_are_never_cut() -> None:
    group = RenderedGroup(prompt_ids=(9, 9, 5), response_ids=((1, 2, 3, 4), (7, 2)), pictures=(CAT,))
    (cut,) = fit([group], 5, "truncate", Ledger(kept=1), place_id=9)
    assert cut.response_ids == ((1, 2), (7, 2)) and cut.pictures == (CAT,)
    for policy, reason in (("truncate", PROMPT_OVERLONG), ("drop", OVERLONG)):
        ledger = Ledger(kept=1)
        assert fit([group], 3, policy, ledger, place_id=9) == [] and list(ledger.dropped) == [reason]  # type: ignore[arg-type]
