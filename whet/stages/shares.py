"""The shares of several ranks: every rank-th prompt each, in a folder of its own, put together by position.

    prompts    a b c d e          rank-0/groups.jsonl  a c e       groups.jsonl  a b c d e
                                  rank-1/groups.jsonl  b d
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

from whet.ranks.group import Ranks
from whet.runs.files import read_json, replacing, write_json, writing

NAME = "ranks.json"
STORES = ("rollouts*.jsonl", "judgements*.jsonl", "probabilities*.jsonl", "judging*.jsonl", "groups.jsonl")
"""What a share is made of."""


def share_folder(root: Path, rank: int, world: int) -> Path:
    """Where a rank keeps its share; a process alone keeps all in the stage's own folder."""
    return root if world == 1 else root / f"rank-{rank}"


def claim_shares(root: Path, ranks: Ranks) -> None:
    """Write down among how many ranks the prompts are dealt out. What another number of them has left is put aside, to
    be recalled by name instead of asked for again."""
    path = root / NAME
    alone = any(any(root.glob(pattern)) for pattern in STORES)  # any of them: a kill may have left some to put aside
    begun = read_json(path)["world"] if path.exists() else 1 if alone else ranks.world
    if begun != ranks.world:
        _put_aside(root)
        print(f"begun by {begun}, goes on with {ranks.world} {'process' if ranks.world == 1 else 'processes'}")
    if begun != ranks.world or ranks.world > 1:
        write_json(path, {"world": ranks.world})


def put_aside(root: Path, *patterns: str) -> Iterator[Path]:
    """The files of these names that other numbers of ranks have left, e.g. `rollouts*.jsonl`."""
    return (path for pattern in patterns for path in root.glob(f"earlier-*/*{pattern}"))


def _put_aside(root: Path) -> None:
    """Move every share's files into one folder. A kill on the way leaves the rest to the next start."""
    target = root / f"earlier-{1 + sum(1 for _ in root.glob('earlier-*'))}"
    with writing(target):
        target.mkdir()
        for folder in (root, *sorted(root.glob("rank-*"))):
            for pattern in STORES:
                for path in sorted(folder.glob(pattern)):
                    path.replace(target / f"{'' if folder == root else folder.name + '-'}{path.name}")


def join_lines(shares: Sequence[Path], whole: Path) -> None:
    """One file of the lines of all, one of each in turn, as they were dealt out."""
    with ExitStack() as stack, replacing(whole) as out:
        files = [stack.enter_context(path.open(encoding="utf-8", newline="\n")) for path in shares]
        for file in cycle(files):
            line = file.readline()
            if not line:
                return
            out.write(line)
