"""A finished run, its page, and a browser to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Browser
from tests.report.playground import build_run
from whet.report.page import write_report


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run, written once: looking at it changes nothing."""
    return write_report(build_run(tmp_path_factory.mktemp("page") / "playground"))


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "playground")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium installed: the report is not looked at")
    opened = Browser(executable, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
