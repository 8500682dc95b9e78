"""What tells how a checkpoint's pictures are prepared, copied byte by byte from checkpoint to checkpoint.

Not loaded and saved again: transformers writes other files than it reads, and without torchvision it cannot open all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils import cached_file

FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)  # fmt: skip


def copy_processor(source: str, directory: Path) -> None:
    """Copy those files that the checkpoint `source`, a directory or hub id, has into a directory."""
    for name in FILES:
        try:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        except OSError:  # not a checkpoint, or a hub that cannot be reached and has not been asked for this file before
            continue
        if found is not None and Path(found).resolve() != (directory / name).resolve():
            shutil.copyfile(found, directory / name)
