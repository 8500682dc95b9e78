"""Public data sets, fetched from the hub into files that plans read: sampled, in a plain form, with their origin.

    fetch("openorca", num=5000, seed=42, out=Path("data/openorca_sft.json"))

Rows are streamed where the data set allows it, in an order that the seed decides, and read as `data.files` would read
them: a row that cannot be used is counted with its reason, and another takes its place. `FILE.source.json` says which
commit of which data set the rows are of, and what became of them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.config.data import Format
from whet.data.convert import writer_of
from whet.data.formats import KIND, read_row
from whet.data.preferences import NothingToLearn
from whet.data.reach import free_for_rows
from whet.data.row import Row
from whet.errors import DataError, nearest
from whet.schema.records import Origin, Record, Scored

BUFFER = 10_000
"""Rows among which a streamed data set is shuffled; its shards are shuffled as well."""
EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """A data set by the name people call it."""

    hub: str
    """Its id on the hub."""
    format: Format
    """How its rows are read."""
    form: str
    """How they are written: a target of `whet data convert`, `scored` or `rows` (as they are)."""
    out: str
    """File it is written to where none is named."""
    subset: str | None = None
    data_files: str | None = None
    """The one file of several that is meant."""


SETS: dict[str, HubSet] = {
    "openorca": HubSet(hub="Open-Orca/OpenOrca", format="openorca", form="alpaca", out="data/openorca_sft.json"),
    "pku-saferlhf": HubSet(
        hub="PKU-Alignment/PKU-SafeRLHF", format="pku", form="preference", out="data/pku_safedpo.jsonl"
    ),
    "ultrafeedback": HubSet(
        hub="openbmb/UltraFeedback", format="ultrafeedback", form="scored", out="data/ultrafeedback_grpo.jsonl"
    ),
    "hh-rlhf": HubSet(hub="Anthropic/hh-rlhf", format="hh", form="preference", out="data/hh_rlhf.jsonl"),
    "alpaca": HubSet(hub="tatsu-lab/alpaca", format="alpaca", form="alpaca", out="data/alpaca_en_train.json"),
    "sharegpt": HubSet(
        hub="anon8231489123/ShareGPT_Vicuna_unfiltered", format="sharegpt", form="sharegpt",
        out="data/sharegpt_sft.json", data_files="ShareGPT_V3_unfiltered_cleaned_split.json",
    ),
    "gsm8k": HubSet(hub="openai/gsm8k", format="gsm8k", form="rows", out="data/gsm8k.jsonl", subset="main"),
}  # fmt: skip


@dataclass(slots=True)
class Fetched:
    """What came of it."""

    out: Path
    records: int = 0
    """Rows of the data set that were used."""
    rows: int = 0
    """Rows written: a record with several scored responses is several."""
    skipped: Counter[str] | None = None

    def describe(self) -> str:
        reasons = "; ".join(f"{num}: {reason}" for reason, num in (self.skipped or Counter()).most_common())
        rows = f" as {self.rows} rows" if self.rows != self.records else ""
        return f"{self.out}: {self.records} records{rows}{f' (left out: {reasons})' if reasons else ''}"


def fetch(
    name: str, *, num: int | None, seed: int, out: Path | None = None, split: str = "train",
    revision: str | None = None, source: str | None = None,
) -> Fetched:  # fmt: skip
    """Fetch up to `num` records (None: all, in their order) of the data set called `name` into a file.

    `source` is a local copy in the hub's layout instead. Raises DataError for an unknown name, a hub that cannot be
    reached, a file that exists, or rows of which none could be used.
    """
    known = _known(name)
    if source is not None and not Path(source).is_dir():
        raise DataError("no such folder", field="--from", found=source, fix="name a copy in the hub's layout")
    target = out or Path(known.out)
    free_for_rows(target)
    commit = None if source else revision_of(known.hub, revision)
    rows = stream(known, source=source, split=split, revision=commit, seed=seed if num is not None else None)
    fetched, examples = Fetched(out=target, skipped=Counter()), dict[str, str]()
    _write(target, _converted(known, rows, num, fetched, examples, place=source or known.hub, split=split))
    if not fetched.records:
        target.unlink()
        raise DataError("no usable rows", file=source or known.hub, found=fetched.describe())
    account = {
        "name": name, "hub": known.hub, "source": source, "revision": commit, "subset": known.subset, "split": split,
        "num": num, "seed": seed if num is not None else None, "records": fetched.records, "rows": fetched.rows,
        "left_out": dict(fetched.skipped or {}), "examples": examples,
    }  # fmt: skip
    _write(target.with_name(target.name + ".source.json"), iter([json.dumps(account, ensure_ascii=False, indent=2)]))
    return fetched


def _known(name: str) -> HubSet:
    if name not in SETS:
        near = nearest(name, SETS)
        raise DataError(
            "no such data set", found=repr(name),
            fix=f"did you mean {near}?" if near else f"one of {', '.join(SETS)}; others: `data.files` takes hub ids",
        )  # fmt: skip
    return SETS[name]


def revision_of(hub: str, revision: str | None) -> str:
    """The commit that a data set stands at, or that a branch or tag names."""
    try:
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(hub, revision=revision, timeout=20).sha)
    except Exception as error:
        raise _unreachable(hub, error) from error


def stream(
    known: HubSet, *, source: str | None, split: str, revision: str | None, seed: int | None
) -> Iterator[dict[str, Any]]:
    """Rows of the data set, shuffled by the seed where there is one."""
    try:
        import datasets

        loader, subset, files = _what_to_load(known, source)
        rows = datasets.load_dataset(
            loader, subset, split=split, data_files=files, revision=revision, streaming=True
        )  # fmt: skip
        rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=BUFFER)
        yield from rows
    except Exception as error:
        # `datasets` raises a dozen unrelated types (network, unknown split, broken files), all beyond this program.
        raise (_unreachable(known.hub, error) if source is None else _unreadable(source, error)) from error


def _what_to_load(known: HubSet, source: str | None) -> tuple[str, str | None, str | None]:
    """Place, subset and file, as `datasets` wants them. A local copy has its subsets as folders."""
    if source is None:
        return known.hub, known.subset, known.data_files
    if known.data_files is not None:
        return "json", None, str(Path(source) / known.data_files)
    inside = Path(source) / known.subset if known.subset is not None else Path(source)
    return str(inside if inside.is_dir() else Path(source)), None, None


def _unreachable(place: str, error: Exception) -> DataError:
    return DataError(
        "cannot be had from the hub", file=place, found=_said(error),
        fix="check --split, the network and HF_HUB_OFFLINE (HF_TOKEN for a gated data set), or give a local copy: "
        "--from FOLDER",
    )  # fmt: skip


def _unreadable(folder: str, error: Exception) -> DataError:
    return DataError(
        "cannot be read as a local copy", file=folder, found=_said(error),
        fix="see that it holds the hub's files, and the split that --split names",
    )  # fmt: skip


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _converted(
    known: HubSet, rows: Iterator[dict[str, Any]], num: int | None, fetched: Fetched, examples: dict[str, str], *,
    place: str, split: str,
) -> Iterator[str]:  # fmt: skip
    """The file piece by piece; a JSON file is one list."""
    as_list, write = fetched.out.suffix == ".json", _writer(known)
    assert fetched.skipped is not None
    for line, values in enumerate(rows, start=1):
        if num is not None and fetched.records >= num:
            break
        origin = Origin(file=f"{place}[{split}]{'' if num is None else ', as drawn'}", line=line)
        try:
            records = read_row(Row(dict(values), origin), known.format, KIND[known.format])
            written = [row for record in records for row in write(record, values)]
        except (DataError, NothingToLearn) as error:
            reason = error.problem if isinstance(error, DataError) else str(error)
            fetched.skipped[reason] += 1
            examples.setdefault(reason, str(error))
            continue
        for row in written:
            text = json.dumps(row, ensure_ascii=False, default=str)
            yield (("[\n" if fetched.rows == 0 else ",\n") + text) if as_list else text + "\n"
            fetched.rows += 1
        fetched.records += 1
    if as_list:
        yield "\n]\n" if fetched.rows else "[]\n"


def _writer(known: HubSet) -> Callable[[Record, dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the file from a record and the row it was read from."""
    if known.form == "rows":
        return lambda record, values: [values]
    if known.form == "scored":
        return lambda record, values: scored_rows(record)
    write = writer_of(known.form)
    return lambda record, values: [write(record)]


def scored_rows(record: Record) -> list[dict[str, Any]]:
    """One row a response: prompt, response, reward."""
    assert isinstance(record, Scored), "only scored responses are written this way"
    prompt: Any = record.prompt[-1].text
    if len(record.prompt) > 1:
        prompt = [{"role": message.role, "content": message.text} for message in record.prompt]
    return [
        {"prompt": prompt, "response": response, "reward": value}
        for response, value in zip(record.responses, record.values, strict=True)
    ]


def _write(target: Path, pieces: Iterator[str]) -> None:
    """Written as it comes, under its name once it is whole."""
    temporary = target.with_name(f".{target.name}.tmp{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as handle:
            handle.writelines(pieces)
        temporary.replace(target)
    except OSError as error:
        raise DataError(
            "cannot write", file=str(target), found=error.strerror or str(error), fix="choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
