"""`whet data`: look at a file before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whet.cli.output import print_json
from whet.errors import ConfigError, UserError

if TYPE_CHECKING:
    from whet.config.data import Data
    from whet.config.model import Vision

data_app = typer.Typer(help="Look at a data file: check, preview, convert; fetch public ones.", rich_markup_mode=None)


def _named(names: str | list[str] | None) -> str | list[str] | None:
    """The names of files as given. An unset variable in quotes leaves an empty one."""
    if names is not None and "" in ([names] if isinstance(names, str) else names):
        raise UserError("which file? an empty name was given", fix="name a file, a directory or a hub id")
    return names


DataFile = Annotated[str, typer.Argument(metavar="FILE", help="File, directory or hub id.", callback=_named)]
DataKeys = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Data keys, e.g. format=alpaca.")]
Tokenizer = Annotated[str | None, typer.Option("--model", help="Checkpoint whose tokenizer and chat template to use.")]
MinPixels = Annotated[int | None, typer.Option(min=1, help="Pixels of a picture, as a plan's model.vision.min_pixels.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="The same, model.vision.max_pixels.")]

NAMED = ("files", "eval_files", "eval_fraction")
"""Keys without a use where a file is named on the command line."""
RENDERED = ("system", "max_length", "on_overlong")
"""Keys of what is made of rows for a model."""


@data_app.callback(invoke_without_command=True)
def help_when_alone(context: typer.Context) -> None:
    """A command of commands, called alone, says which there are."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@data_app.command("check")
def check(
    file: DataFile, keys: DataKeys = None, model: Tokenizer = None,
    min_pixels: MinPixels = None, max_pixels: MaxPixels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Say what is in a file and which rows are bad.

    Format, counts, lengths, duplicates, bad rows with their lines. Exit code 2 where the file cannot be used.
    """
    from whet.data import doctor

    data = data_section(keys, (*NAMED, "num_samples"), "every row of FILE is read")
    found = doctor.check(file, data, model, _limits(model, min_pixels, max_pixels))
    if as_json:
        print_json(doctor.to_json(found))
    else:
        doctor.print_report(found)
    if not found.usable:
        raise typer.Exit(2)


@data_app.command("preview")
def preview(
    file: DataFile, keys: DataKeys = None, model: Tokenizer = None,
    min_pixels: MinPixels = None, max_pixels: MaxPixels = None,
    num: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write a page with thumbnails instead.")] = None,
) -> None:  # fmt: skip
    """Show rows as rendered, the trained tokens marked, and where pictures stand."""
    from whet.data.doctor import preview as show

    data = data_section(keys, NAMED, "FILE is what is shown")
    show(file, data, model, num, page=html, vision=_limits(model, min_pixels, max_pixels))


@data_app.command("convert")
def convert(
    file: DataFile,
    keys: DataKeys = None,
    to: Annotated[str, typer.Option(help="Format to write.")] = "messages",
    out: Annotated[Path | None, typer.Option(help="File to write.")] = None,
) -> None:
    """Rewrite a file in another format."""
    from whet.data.doctor import convert as rewrite

    if out is None:
        raise UserError("where to?", field="--out", fix="name the file to write, e.g. --out rows.jsonl")
    data = data_section(keys, (*NAMED, *RENDERED), "rows of FILE are written as they are")
    ledger = rewrite(file, data, to, str(out))
    print(f"{out}: {ledger.describe()}")


@data_app.command("pair")
def pair(
    chosen: Annotated[
        str, typer.Argument(metavar="CHOSEN", help="File of right answers, e.g. accepted.jsonl.", callback=_named)
    ],
    rejected: Annotated[
        str, typer.Argument(metavar="REJECTED", help="File of wrong answers, e.g. rejected.jsonl.", callback=_named)
    ],
    out: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Most pairs of one prompt.")] = 1,
    also_chosen: Annotated[
        list[str] | None, typer.Option(help="More right answers, e.g. of the other model.", callback=_named)
    ] = None,
    also_rejected: Annotated[list[str] | None, typer.Option(help="More wrong answers.", callback=_named)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the lines of what is in no pair.")] = False,
) -> None:
    """Make preferences of right answers and of wrong ones to the same prompts.

    One file on each side is the inner join of two models; with the files of both on both sides it is their union.
    """
    from whet.config.data import Data
    from whet.experience.pairing import pair as join

    if out is None:
        raise UserError("where to?", field="--out", fix="name the file to write, e.g. --out pairs.jsonl")
    right, wrong = Data(files=(chosen, *(also_chosen or ()))), Data(files=(rejected, *(also_rejected or ())))
    found = join(right, wrong, out, num=num)
    if as_json:
        print_json(found.to_json())
    else:
        print(f"{out}: {found.describe()}")


@data_app.command("compare")
def compare(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files of two candidates and which is better.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write into.")] = None,
    held_out: Annotated[float, typer.Option(min=0, max=1, help="Share of the items kept for evaluation.")] = 0.1,
    ties: Annotated[str, typer.Option(help="drop or keep items whose candidates are equally good.")] = "drop",
    image_folder: Annotated[str | None, typer.Option(help="Where relative paths of pictures start.")] = None,
    orders: Annotated[str, typer.Option(help="drawn or both: how often a prompt asks about its item.")] = "drawn",
    template: Annotated[str | None, typer.Option(help="File with {question}, {first} and {second}.")] = None,
    seed: Annotated[int, typer.Option(help="Which items are held out, and the order of candidates.")] = 42,
) -> None:
    """Make data for a reasoning judge of two candidates: cold start, prompts, held-out items in both orders."""
    from whet.experience.comparisons import ACCOUNT, Splitting
    from whet.experience.comparisons import compare as split

    if out is None:
        raise UserError("where to?", field="--out", fix="name the folder to write into, e.g. --out data/compared")
    if ties not in ("drop", "keep"):
        raise UserError("must be drop or keep", field="--ties", found=repr(ties))
    if orders not in ("drawn", "both"):
        raise UserError("must be drawn or both", field="--orders", found=repr(orders))
    splitting = Splitting(
        held_out=held_out, ties="keep" if ties == "keep" else "drop", image_folder=image_folder, template=template,
        orders="both" if orders == "both" else "drawn", seed=seed,
    )  # fmt: skip
    print(f"{out}: {split(files, out, splitting).describe()}; the lines are in {ACCOUNT}")


@data_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="openorca, pku-saferlhf, ultrafeedback, hh-rlhf, ...")],
    num: Annotated[int, typer.Option(min=0, help="Records to take, drawn by the seed; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which records are taken.")] = 42,
    out: Annotated[Path | None, typer.Option(help="File to write; by default one in data/.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag; by default the newest commit.")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="FOLDER", help="A local copy instead.")] = None,
) -> None:
    """Fetch a public data set from the hub into a file that plans read."""
    from whet.data.fetch import fetch as get

    fetched = get(name, num=num or None, seed=seed, out=out, split=split, revision=revision, source=source)
    print(fetched.describe())


def data_section(keys: Sequence[str] | None, unused: Sequence[str] = (), why: str = "") -> Data:
    """The `data` section that `key=value` words make. Raises ConfigError for a key without a use, saying why."""
    from whet.config.load import load_data

    data = load_data(list(keys or ()))
    for name in unused:
        if name in data.model_fields_set:
            raise ConfigError(f"has no meaning here: {why}", field=f"data.{name}", fix="leave it out")
    return data


def vision_section(min_pixels: int | None, max_pixels: int | None) -> Vision:
    """The `model.vision` section that the two options make."""
    from whet.config.model import Vision

    return Vision(min_pixels=min_pixels, max_pixels=max_pixels)


def _limits(model: str | None, min_pixels: int | None, max_pixels: int | None) -> Vision:
    """The same, for a checkpoint that must be named."""
    if model is None and (min_pixels or max_pixels):
        field = "--max-pixels" if max_pixels else "--min-pixels"
        raise UserError("has no meaning without a checkpoint", field=field, fix="add --model DIR, or leave it out")
    return vision_section(min_pixels, max_pixels)
