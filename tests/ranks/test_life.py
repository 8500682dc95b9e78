"""Who is to blame when nothing moves."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from whet.ranks.life import Seen, Sign, Signs, verdict
from whet.ranks.pulse import beat, pulse, waiting

GRADIENTS = "the gradients"


def seen(*, ticked: float, got_on: float, waits_for: str = "", phase: str = "step 3") -> Seen:
    return Seen(Sign(tick=1, beats=1, phase=phase, waits_for=waits_for), ticked, got_on)


def test_one_that_works_and_one_that_waits_for_it_are_well() -> None:
    """However long the wait is: rank 0 evaluates, and gets on."""
    assert verdict([seen(ticked=100, got_on=95), seen(ticked=100, got_on=0, waits_for="rank 0")], 100, 10) == ("", [])


def test_a_process_that_stands_still_is_named_and_not_the_one_that_waits_for_it() -> None:
    why, ranks = verdict([seen(ticked=100, got_on=80, waits_for=GRADIENTS), seen(ticked=80, got_on=80)], 100, 10)
    assert ranks == [1] and why == "rank 1 has given no sign of life for 10 s: step 3"


def test_a_process_that_runs_but_does_not_get_on_is_named() -> None:
    hanging = seen(ticked=100, got_on=80, phase="loading the model")
    why, ranks = verdict([hanging, seen(ticked=100, got_on=80, waits_for=GRADIENTS)], 100, 10)
    assert ranks == [0] and why.endswith("loading the model")


def test_a_process_that_was_stopped_while_it_waited_is_named() -> None:
    both = [seen(ticked=100, got_on=99), seen(ticked=80, got_on=80, waits_for=GRADIENTS)]
    why, ranks = verdict(both, 100, 10)
    assert ranks == [1] and why.endswith("step 3, waiting for the gradients")


def test_ranks_that_wait_for_different_things_end_too() -> None:
    both = [seen(ticked=100, got_on=80, waits_for=GRADIENTS), seen(ticked=100, got_on=85, waits_for="the metrics")]
    why, ranks = verdict(both, 100, 10)
    assert ranks == [0, 1] and "rank 0 for the gradients, rank 1 for the metrics" in why
    assert verdict(both, 92, 10) == ("", [])


def test_signs_are_read_as_they_were_sent_and_the_first_reason_counts() -> None:
    store = HashStore()
    one, two = (Signs(store, rank, 2, "here", 40 + rank) for rank in (0, 1))
    assert one.read()[1].phase == "it has not come yet"
    beat("evaluation")
    with waiting("the others"):
        two.send()
    sign = one.read()[1]
    assert (sign.phase, sign.waits_for, sign.pid, sign.host) == ("evaluation", "the others", 41, "here")
    assert two.end("no rows") and not one.end("something else")
    assert one.said() is None, "nobody ends before the user has been told"
    two.say(2)
    assert one.said() == 2


def test_what_was_lost_in_a_wait_is_remembered() -> None:
    before = pulse.beats
    with pytest.raises(RuntimeError), waiting(GRADIENTS):
        assert pulse.waits_for == GRADIENTS
        raise RuntimeError("Connection closed by peer")
    assert (pulse.lost, pulse.waits_for, pulse.beats) == (GRADIENTS, "", before + 1)
    pulse.lost = ""
