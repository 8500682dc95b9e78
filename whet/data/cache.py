"""Where this machine keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """`$WHET_CACHE`, else ~/.cache/whet; None where there is no home."""
    try:
        return Path(os.environ.get("WHET_CACHE") or "~/.cache/whet").expanduser()
    except RuntimeError:
        return None
