"""Where this machine keeps what several runs share.

    $WHET_CACHE/tokens      rows as token ids, made again where they are missing
    $WHET_CACHE/pictures    pictures that came inside rows, and what the rows that stages write name

Unpacking the rows anew brings the pictures back, but a finished stage does not do so unless told by `--fresh`.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """`$WHET_CACHE`, else ~/.cache/whet; None where there is no home."""
    try:
        return Path(os.environ.get("WHET_CACHE") or "~/.cache/whet").expanduser()
    except RuntimeError:
        return None
