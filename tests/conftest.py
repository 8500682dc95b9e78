"""What every test may ask for: the real example files, and a small checkpoint with its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: one thread makes float sums repeatable and leaves the other core alone, and no test
# may reach a model hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run, and none that fails because the machine is busy.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parents[1]

TINY_TEXTS = (
    "What is the capital of France? The capital of France is Paris.",
    "Write the words apple, pear and plum in alphabetical order: apple, pear, plum.",
    "How much is 12 plus 30? 12 plus 30 is 42. Score: 5",
    '{"name": "whet", "answer": [1, 2, 3]}',
    "Die Antwort lautet: zwölf. 答案是十二。",
)


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token cache of the tests' own: none reads what an earlier run left, none writes into the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout: recipes, examples and documents are read from here."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real example files: `WHET_REAL_DATA`, else the example folder beside the checkout."""
    folder = Path(os.environ.get("WHET_REAL_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real example data not found: {folder} (set WHET_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 checkpoint of two small layers, with a byte-level tokenizer and a ChatML template."""
    from whet.models.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    return build_tiny(folder, TINY_TEXTS, vocab_size=384, hidden_size=32, seed=0)


@pytest.fixture(scope="session")
def tiny_vlm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL checkpoint, one small layer and one in its tower; patches of 14 pixels, four a token."""
    from whet.models.tiny_vlm import Tower, build_tiny_vlm

    folder = tmp_path_factory.mktemp("tiny-vlm") / "checkpoint"
    tower = Tower(depth=1, hidden_size=16, intermediate_size=32)
    return build_tiny_vlm(folder, TINY_TEXTS, vocab_size=400, hidden_size=32, num_layers=1, tower=tower)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the test inside an empty directory, so that `runs/` is made there."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
