"""The reference log-probs of a stage, by the cheapest exact way the plan leaves open."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from whet.config.stage import OfflinePolicyStage, PolicyStage, SftStage
from whet.models.load import compute_dtype, load_model, pick_device
from whet.models.reference import Scores, SecondModel, by_adapter
from whet.models.scoring import TokenScorer
from whet.runs.given import ref_of
from whet.runs.ledger import content_hash
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context
from whet.stages.rows import Rows
from whet.train.parallel import Parallel
from whet.train.reference import Reference, ReferenceCache, cached, measured, reference_key


class References:
    """The reference of one stage. Each of the `columns` numbers of a row is measured once."""

    def __init__(
        self, stage: OfflinePolicyStage, context: Context, rows: Rows, scorer: TokenScorer, parallel: Parallel, *,
        columns: int,
    ) -> None:
        assert not isinstance(stage, SftStage), "SFT has no reference"
        self._config, self._context, self._stage, self._parallel = stage.reference, context, stage, parallel
        self._scores = reference_scores(stage, context, scorer, parallel.device)
        self._measure = measured(self._scores)
        self._cache = self._open(rows, columns) if self._config.cache else None

    def of(self, column: int = 0) -> Reference:
        """Reference log-probs; KTO keeps those of its mismatched responses in a column of their own."""
        if self._cache is None:
            return self._measure
        return cached(self._measure, self._cache, column=column, release=self._release)

    def _release(self) -> None:
        """A second model is given up; an adapter switched off is the model that trains."""
        if isinstance(self._scores, SecondModel):
            self._scores.release()

    def _open(self, rows: Rows, columns: int) -> ReferenceCache:
        model = reference_of(self._stage, self._context)
        hashes = [content_hash(Path(p)) if Path(p).exists() else p for p in (model.path, model.adapter) if p]
        dtype = compute_dtype(self._stage.train.arithmetic, pick_device(self._context.model.device))
        key = reference_key(rows.digest, " ".join(hashes), dtype)
        path, shape = self._context.paths.file("reference.f32"), (len(rows.rows), columns)
        if self._parallel.is_main:
            ReferenceCache(path, key, shape)
        self._parallel.wait()
        return ReferenceCache(path, key, shape, create=False)


def reference_scores(
    stage: PolicyStage, context: Context, scorer: TokenScorer, device: torch.device, *, temperature: float = 1.0
) -> Scores:
    """Adapter off where one trains from the reference; else a second model. Log-probs are those at `temperature`.

    Raises ModelError where `reference.device` is none of this machine's.
    """
    assert not isinstance(stage, SftStage), "SFT has no reference"
    config = stage.reference
    if config.model == "start" and isinstance(scorer.model, PeftModel):
        return by_adapter(scorer, context.start.adapter, temperature=temperature)

    def load(place: torch.device) -> torch.nn.Module:
        there = context.model.model_copy(update={"device": place.type})
        dtype = compute_dtype(stage.train.arithmetic, place)
        model: torch.nn.Module = load_model(reference_of(stage, context), there, dtype=dtype)
        return model

    wanted = device if config.device == "auto" else pick_device(config.device, field="reference.device")
    return SecondModel(load, wanted, fall_back=config.device == "auto", temperature=temperature)


def reference_of(stage: PolicyStage, context: Context) -> ModelRef:
    """The model that the plan names as the reference."""
    assert not isinstance(stage, SftStage), "SFT has no reference"
    name = stage.reference.model
    return context.start if name == "start" else ref_of(name, context.models)
