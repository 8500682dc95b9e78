"""On the playground every objective prefers what is right on prompts it has not seen: the real stage, start to end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import whet
from whet.config.data import Data
from whet.config.model import Model
from whet.data.batch import collate_groups
from whet.data.render import Renderer, render_records
from whet.data.sources import read_records
from whet.demo.family import Constraints
from whet.demo.playground import attempt, check, prompts
from whet.models.load import load_model, load_tokenizer
from whet.models.scoring import TokenScorer
from whet.schema.artifacts import ModelRef
from whet.train.learners import response_logprobs

BASE = str(Path(whet.__file__).parent / "demo" / "base")
NUM, HELD_OUT = 192, 160

OBJECTIVES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    name: ("dpo", {"type": name, **more}, {})
    for name, more in [
        ("sigmoid", {}), ("cdpo", {}), ("robust", {"beta": 0.1}), ("hinge", {"beta": 0.1}), ("exo", {}), ("ipo", {}),
        ("sigmoid_norm", {}), ("nca", {"beta": 0.1}), ("bco", {"beta": 0.1}), ("sppo", {}), ("aot", {}),
        ("apo_zero", {}), ("kto_pair", {}), ("simpo", {}), ("orpo", {}), ("cpo", {}), ("mixture", {}),
        ("pai", {"means": "kto_pair"}),
    ]
}  # fmt: skip
OBJECTIVES |= {
    "sigmoid, forward KL": ("dpo", {"type": "sigmoid", "divergence": "forward_kl"}, {}),
    "sigmoid, Jensen-Shannon": ("dpo", {"type": "sigmoid", "divergence": "js"}, {}),
    "sigmoid and NLL": ("dpo", {"type": "sigmoid", "nll_weight": 1.0}, {}),
    # Falls towards a wrong valley from where policy and reference agree; steps have to be noisy enough to leave it.
    "discopop": ("dpo", {"type": "discopop", "beta": 0.5}, {"learning_rate": 3e-3, "epochs": 2}),
    # Pushes both responses down, the rejected one further: what it does to a model whose own answers are no better
    # than the data shows only after a while.
    "apo_down": ("dpo", {"type": "apo_down", "beta": 1.0}, {"epochs": 4}),
    "kto": ("kto", {"type": "kto"}, {}),
    "apo_zero_unpaired": ("kto", {"type": "apo_zero_unpaired"}, {}),
    "reward_weighted": ("reward_weighted", {"baseline": "group", "normalise": "length"}, {}),
    "soft_preference": ("soft_preference", {"temperature": 0.2}, {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same answers as pairs, as ratings and as rewards; and pairs about tasks of another split."""
    folder = tmp_path_factory.mktemp("learning")
    pairs = list(made("train", NUM))
    rows = {
        "dpo": pairs,
        "kto": [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in pairs
            for side in ("chosen", "rejected")
        ],
        "reward_weighted": [
            {"prompt": p["prompt"], "responses": [p["chosen"], p["rejected"]], "rewards": [1.0, 0.0]} for p in pairs
        ],
        "held_out": list(made("heldout", HELD_OUT)),
    }
    rows["soft_preference"] = rows["reward_weighted"]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: folder / f"{name}.jsonl" for name in rows}


def made(split: Any, num: int) -> Iterator[dict[str, str]]:
    """Pairs of a right and a wrong answer, told apart by the exact checker."""
    rng = Random(f"pairs {split}")
    for row in prompts(split, num, seed=7):
        constraints: Constraints = row["constraints"]
        about = {"task": row["task"], "constraints": constraints}
        right = attempt(rng, row, slip=0.0, ramble=0.0)
        wrong = attempt(rng, row)
        while check(row["prompt"], wrong, **about):
            wrong = attempt(rng, row)
        assert check(row["prompt"], right, **about)
        yield {"prompt": row["prompt"], "chosen": right, "rejected": wrong}


@pytest.fixture(scope="module")
def held_out_margin(files: dict[str, Path]) -> Any:
    """From a model to [HELD_OUT] log-prob of the right answer less that of the wrong one."""
    tokenizer = load_tokenizer(BASE)
    records, ledger = read_records(Data(files=(str(files["held_out"]),)), ("preference",))
    rows: list[Any] = list(render_records(Renderer(tokenizer), records, "error", ledger))

    def margin(ref: ModelRef) -> torch.Tensor:
        scorer = TokenScorer(load_model(ref, Model(path=BASE, device="cpu"), dtype=torch.float32))
        with torch.no_grad():
            both = response_logprobs(scorer, collate_groups(rows, range(len(rows)), device=torch.device("cpu")))
        return both.view(-1, 2).diff(dim=1)[:, 0].neg()

    return margin


@pytest.fixture(scope="module")
def start(held_out_margin: Any) -> torch.Tensor:
    """The margins before anything is learnt."""
    margin: torch.Tensor = held_out_margin(ModelRef(path=BASE))
    return margin


@pytest.mark.filterwarnings("ignore:objective.type")
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_held_out_preference_accuracy_rises(name: str, files, held_out_margin, start, tmp_path: Path) -> None:
    kind, objective, train = OBJECTIVES[name]
    summary = whet.run(
        whet.Plan.load({
            "run": str(tmp_path / "run"),
            "model": {"path": BASE, "device": "cpu", "lora": {"rank": 8, "alpha": 16}},
            "stages": [{
                "kind": kind, "data": {"files": [str(files[kind])], "max_length": 256}, "objective": objective,
                "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32", **train},
            }],
        })
    )  # fmt: skip
    assert summary["stages"][0]["status"] == "done"
    model = ModelRef(path=BASE, adapter=str(tmp_path / "run" / "stages" / f"01-{kind}" / "adapter"))
    end = held_out_margin(model)
    # Against its start a model orders half the pairs rightly by chance; three standard errors more are no chance.
    preferred = (end > start).float().mean().item()
    assert preferred > 0.5 + 3 * math.sqrt(0.25 / HELD_OUT), f"{preferred:.3f}"
    assert (end > 0).float().mean() >= (start > 0).float().mean()
