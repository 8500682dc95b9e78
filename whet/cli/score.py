"""`whet score`: a reward model's scores for the answers of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from whet.cli.data import NAMED, DataFile, DataKeys, MaxPixels, MinPixels, data_section, vision_section
from whet.cli.output import for_json
from whet.errors import UserError

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def score(
    file: DataFile,
    keys: DataKeys = None,
    model: Annotated[
        str, typer.Option(help="Reward model: checkpoint, adapter directory, or the folder of its stage.")
    ] = "",
    adapter: Annotated[str | None, typer.Option(help="Adapter directory.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines file to write; by default standard output.")] = None,
    with_content: Annotated[
        bool, typer.Option("--with-content", help="Write prompt and responses beside their scores.")
    ] = False,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that go through the model at once.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, npu or xpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    actors: Annotated[int, typer.Option(min=0, help="Share the rows among so many models on a Ray cluster.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="The cluster: auto, or HOST:PORT; by default one of this machine's own.")
    ] = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Score the answers of a file with a reward model.

    One JSON line a row, in order: file, line, and a score for each answer. Of a conversation the last answer is scored.
    """
    if not model:
        raise UserError("which reward model?", field="--model", fix="name its checkpoint, adapter or stage folder")
    _check_choice("--precision", precision, PRECISIONS)
    from whet.config.values import Device

    _check_choice("--device", device, get_args(Device))
    if address is not None and not actors:
        raise UserError("has no meaning without actors", field="--address", fix="add --actors N, or leave it out")
    data = data_section(keys, (*NAMED, "num_samples", "seed"), "every row is scored")
    if out is None:
        for_json()
    from whet.runs.given import resolve
    from whet.stages.score import score_file

    score_file(
        file, resolve(model, adapter), data, out=out, device=device, precision=precision, batch_tokens=batch_tokens,
        with_content=with_content, actors=actors, address=address, vision=vision_section(min_pixels, max_pixels),
    )  # fmt: skip


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"must be one of {', '.join(known)}", field=name, found=repr(value))
