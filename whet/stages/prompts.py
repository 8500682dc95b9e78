"""The prompts of a stage that generates: read, split, and fit to length, with an account of every row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from whet.config.data import Data
from whet.data.ledger import Ledger
from whet.data.render import PROMPT_OVERLONG, Renderer
from whet.data.sources import read_records, split_records
from whet.errors import DataError
from whet.runs.files import write_json
from whet.schema.records import Origin, Prompt, Record
from whet.stages.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts to work on, those held out, and what became of the rows."""

    prompts: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    ledger: Ledger
    held_ledger: Ledger | None
    """Of `data.eval_files`; None where the held-out prompts are rows of the same files."""

    def without(self, origins: Collection[Origin], reason: str) -> PromptSet:
        """Leave out the prompts of these rows, and count them."""
        for prompts, ledger in ((self.prompts, self.ledger), (self.held_out, self.held_ledger or self.ledger)):
            for prompt in prompts:
                if prompt.origin in origins:
                    ledger.drop(reason, prompt.origin)
        return replace(
            self,
            prompts=tuple(prompt for prompt in self.prompts if prompt.origin not in origins),
            held_out=tuple(prompt for prompt in self.held_out if prompt.origin not in origins),
        )

    def write(self, context: Context) -> None:
        """Write data.json and say what was read."""
        account = self.ledger.to_json() | {"rows": {"train": len(self.prompts), "eval": len(self.held_out)}}
        if self.held_ledger is not None:
            account["eval"] = self.held_ledger.to_json()
        write_json(context.paths.data, account)
        held_out = f"; {len(self.held_out)} held out" if self.held_out else ""
        print(f"{context.stage.name}: {self.ledger.describe()}{held_out}")


def read_prompts(data: Data, context: Context, renderer: Renderer, *, hold_out: bool) -> PromptSet:
    """With `hold_out`, those that the plan sets aside for evaluation are apart.

    Prompts longer than `data.max_length` are dropped (counted), or an error where the plan says so. Raises DataError
    where none is left.
    """
    records, ledger = read_records(data, ("prompt",), folders=context.folders)
    held_out: Sequence[Record] = ()
    held_ledger = None
    if hold_out and data.eval_files:
        held_out, held_ledger = read_records(data, ("prompt",), folders=context.folders, files=data.eval_files)
    elif hold_out and data.eval_fraction:
        records, held_out = split_records(records, data.eval_fraction, data.seed)
    found = PromptSet(
        prompts=_fitting(records, data, renderer, ledger),
        held_out=_fitting(held_out, data, renderer, held_ledger or ledger),
        ledger=ledger,
        held_ledger=held_ledger,
    )
    if not found.prompts:
        raise DataError("no prompts left", field="data.files", found=ledger.describe(), fix="raise data.max_length")
    return found


def _fitting(records: Sequence[Record], data: Data, renderer: Renderer, ledger: Ledger) -> tuple[Prompt, ...]:
    prompts = [record for record in records if isinstance(record, Prompt)]
    assert len(prompts) == len(records), "only prompts were asked for"
    return tuple(prompt for prompt in prompts if fits(prompt, data, renderer, ledger))


def fits(prompt: Prompt, data: Data, renderer: Renderer, ledger: Ledger) -> bool:
    """Whether a prompt can be written for the checkpoint, its pictures included, and is not too long; else it is
    dropped, or raises DataError where the plan says so."""
    try:
        length = len(renderer.prompt(prompt.messages, prompt.tools, origin=prompt.origin))
    except DataError as error:
        if data.on_bad_row == "error":
            raise
        ledger.drop(error.problem, prompt.origin, str(error))
        return False
    if length <= data.max_length:
        return True
    if data.on_overlong == "error":
        raise DataError(
            f"the prompt has {length} tokens, and data.max_length is {data.max_length}",
            file=prompt.origin.file, line=prompt.origin.line,
            fix="raise data.max_length, or set data.on_overlong to drop",
        )  # fmt: skip
    ledger.drop(PROMPT_OVERLONG, prompt.origin)
    return False
