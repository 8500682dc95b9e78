"""README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Sequence

from whet import __version__
from whet.config.verl import Verl
from whet.launch.verl.keys import ACTOR, MODEL, ROLLOUT, Settings

VERL = "0.9.1"
"""The version whose keys are written."""

TEXT = """\
# {title}

Written by `whet export verl` (whet {whet}) for verl {verl}. Run it in verl's environment:

    pip install "verl[{engine},verl-core]=={verl}"
    {folder}/run.sh

It needs {gpus} GPU(s): {nodes} node(s) of {per_node}. whet's tests compose and validate folders like this one with
verl's own code on a CPU; no training by verl has been run by whet's authors.

| file | what it is |
|---|---|
| `overrides.txt` | every key of verl's that this stage decides, one a line |
| `run.sh` | `python3 -m verl.trainer.main_ppo` with these overrides; more can follow on its command line |
| `train.parquet`, `val.parquet` | {num_train} prompts to train on, {num_val} held out |
| `reward.py` | verl's reward function: asks whet, in a process of whet's own, what a response is worth |
| `reward.json` | the reward's section of the plan, and the interpreter that has whet installed |
| `checkpoints/` | verl's checkpoints, once it runs |
| `metrics.jsonl` | verl's metrics, a JSON line a step, where `trainer.logger` has `file` |

## In short

| | |
|---|---|
| checkpoint | `{model}` |
| estimator, loss, aggregation | `{estimator}`, `{loss}`, `{aggregation}` |
| clip | {low} below, {high} above |
| prompts of a round, of a step; responses of each | {prompts}, {step}; {samples} |
| reward | {reward} |

## What differs from `whet run`

{notes}

## Afterwards

A checkpoint becomes an ordinary one by verl's own tool:

    python3 -m verl.model_merger merge --backend fsdp \\
      --local_dir {folder}/checkpoints/global_step_N/actor --target_dir merged
"""


def readme(
    settings: Settings, options: Verl, *, title: str, notes: Sequence[str], folder: str, served: str | None,
    num_train: int, num_val: int,
) -> str:  # fmt: skip
    """The text. `served` is the model that verl serves for the reward."""
    every = [
        f"A response without a score is worth {options.unscored:g} and counted in the metric `unscored`: whet leaves "
        "it out of the update, which verl cannot. "
        f"The run stops where more than {options.max_unscored:.0%} of the last responses have none.",
        "Sampling draws other random numbers, and the order of the prompts is another.",
        "Responses are decoded without special tokens before they are scored, as in whet.",
    ]
    return TEXT.format(
        title=title, whet=__version__, verl=VERL, engine=options.engine, folder=folder, gpus=options.num_gpus,
        nodes=options.nnodes, per_node=options.n_gpus_per_node, num_train=num_train, num_val=num_val,
        model=settings[f"{MODEL}.path"], estimator=settings["algorithm.adv_estimator"],
        loss=settings[f"{ACTOR}.policy_loss.loss_mode"], aggregation=settings[f"{ACTOR}.loss_agg_mode"],
        low=settings[f"{ACTOR}.clip_ratio_low"], high=settings[f"{ACTOR}.clip_ratio_high"],
        prompts=settings["data.train_batch_size"], step=settings[f"{ACTOR}.ppo_mini_batch_size"],
        samples=settings[f"{ROLLOUT}.n"],
        reward=f"whet's, with `{served}` served by verl" if served else "whet's, in processes beside verl's",
        notes="\n".join(f"- {note}" for note in (*notes, *every)),
    )  # fmt: skip
