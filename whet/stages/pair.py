"""pair: right answers of one model against wrong ones of another, to the same prompts.

    preference.jsonl   prompt, chosen, rejected, and where both came from: what `dpo` reads
    pairs.json         how many pairs of how many prompts, and the answers that are in none, with their lines
"""

from __future__ import annotations

from whet.config.data import Data
from whet.config.stage import PairStage
from whet.experience.pairing import pair
from whet.runs.files import write_json
from whet.schema.artifacts import StageResult
from whet.stages.context import Context


def run(stage: PairStage, context: Context) -> StageResult:
    """Join and write. Raises DataError where no prompt is on both sides."""
    out = context.paths.file("preference.jsonl")
    out.unlink(missing_ok=True)  # of a run that was killed behind it
    sides = Data(files=stage.chosen), Data(files=stage.rejected)
    found = pair(*sides, out, num=stage.pairs_per_prompt, folders=context.folders)
    write_json(context.paths.file("pairs.json"), found.to_json())
    print(f"{stage.name}: {found.describe()}")
    return StageResult(metrics={
        "num_pairs": found.pairs, "num_prompts": found.prompts, "num_chosen_alone": found.chosen_alone,
        "num_rejected_alone": found.rejected_alone, "num_same_text": found.same_text,
        "num_other_label": found.other_label,
    })  # fmt: skip
