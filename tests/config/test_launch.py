"""Where a plan runs, as it is written."""

from __future__ import annotations

import pytest

from whet.config.launch import Local, Ray
from whet.config.load import load_plan
from whet.errors import ConfigError

PLAN = {"run": "r", "model": {"path": "m"}, "stages": ["merge"]}


def test_this_machine_unless_said() -> None:
    assert load_plan(PLAN).launch == Local()
    assert load_plan(PLAN, ["launch.processes=4"]).launch == Local(processes=4)
    assert load_plan(PLAN | {"launch": "ray"}).launch == Ray()
    assert load_plan(PLAN | {"launch": "ray"}, ["launch.processes=4"]).launch == Ray(processes=4)
    assert load_plan(PLAN, ["launch.type=ray", "launch.address=auto"]).launch == Ray(address="auto")


def test_keys_of_the_other_type_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"launch\.address: unknown key"):
        load_plan(PLAN, ["launch.address=auto"])
    with pytest.raises(ConfigError, match=r"launch\.type: must be one of local, ray \(found 'rya'\)"):
        load_plan(PLAN, ["launch.type=rya"])
