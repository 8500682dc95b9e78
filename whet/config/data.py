"""Where records come from and how they are cut."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from whet.config.base import Section
from whet.config.values import Place, Seed

Format = Literal[
    "auto", "alpaca", "sharegpt", "messages", "prompt_completion", "self_instruct", "openorca", "gsm8k", "preference",
    "hh", "pku", "ultrafeedback", "kto", "ranking", "scored", "weighted", "prompt", "text",
]  # fmt: skip


class Source(Section):
    """One file of a mixture, with its own settings."""

    path: Place
    """File, directory, hub id, or a name in `data.registry`. `@NAME/FILE` is a file an earlier stage wrote."""
    format: Format = "auto"
    """Row format of this file; `auto` takes `data.format`."""
    weight: float = Field(1.0, gt=0)
    """Share in the mixture. Where all weights are equal every row is used once; otherwise the rarer source limits."""
    num_samples: int | None = Field(None, ge=1)
    """Take this many rows, drawn without repetition by `data.seed`."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration name of a hub data set."""


class Data(Section):
    """Rows of files, as records."""

    files: tuple[Place | Source, ...] = ()
    """What to read: JSON, JSONL (also .gz), Parquet, CSV, plain lines, a directory of these, or a hub id."""
    format: Format = "auto"
    """Row format; `auto` looks at the rows and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Your column name for each of ours, e.g. `{prompt: frage, chosen: besser}`."""
    registry: Place | None = None
    """A LLaMA-Factory `dataset_info.json`; names in `files` are looked up there first."""
    system: str | None = None
    """System message for rows that have none."""
    num_samples: int | None = Field(None, ge=1)
    """Use this many rows in all, drawn without repetition by `seed`."""
    max_length: int = Field(1024, ge=8)
    """Longest rendered row in tokens, prompt and response together."""
    on_overlong: Literal["truncate", "drop", "error"] = "truncate"
    """What happens to a longer row. Truncation cuts the end of the response and, where the prompt
    alone is too long, drops the row."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be read or lacks its fields. Dropped rows are listed in the ledger."""
    image_folder: Place | None = None
    """Folder that relative paths of pictures start from; else from that of the data file, or the working directory."""
    max_images: int | None = Field(None, ge=1)
    """Most pictures of a record. Of more, these are kept: the first, the last, and between them evenly spaced ones."""
    eval_files: tuple[Place | Source, ...] = ()
    """Held-out rows for evaluation during training."""
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of `files` set aside where `eval_files` is empty. All rows with the same prompt fall on one side."""
    seed: Seed = 42
    """Order, sampling and split."""

    @field_validator("files", "eval_files", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str | dict) else value
