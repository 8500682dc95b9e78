"""An estimate as a table for a terminal. A GB is 10^9 bytes."""

from __future__ import annotations

from collections.abc import Iterator

from whet.estimate.memory import Moment
from whet.estimate.result import StageEstimate
from whet.estimate.setting import Setting

WIDTH = 46
SMALL = 5e6
"""Parts below are not shown one by one."""


def table(estimate: StageEstimate) -> str:
    """One stage, line by line."""
    return "\n".join(_lines(estimate))


def _lines(estimate: StageEstimate) -> Iterator[str]:
    setting, peak = estimate.setting, estimate.memory.peak
    batch = setting.micro_batch
    yield f"{estimate.name} ({estimate.kind}): {setting.shape.name}, {_trained(setting)}; {_where(setting)}"
    activations = "recomputed in the backward pass" if batch.recompute else "kept"
    yield (
        f"  longest {'prompt' if setting.decoding else 'row'} {estimate.longest:,} tokens; largest micro-batch "
        f"{batch.tokens:,} tokens, {batch.targets:,} of them targets, activations {activations}"
    )
    yield ""
    yield f"  {'memory of a rank at its peak, ' + peak.name:{WIDTH}}{'GB':>8}"
    yield from _parts(peak, setting.ranks)
    yield f"  {'together':{WIDTH}}{_gb(peak.bytes):>8}   {_verdict(estimate)}"
    others = [moment for moment in estimate.memory.moments if moment is not peak]
    if others:
        yield "  at other times: " + ", ".join(f"{moment.name} {_gb(moment.bytes)}" for moment in others)
    yield ""
    yield from _time(estimate)
    if estimate.changes:
        yield from _changes(estimate)
    for note in estimate.notes:
        yield f"  note: {note}"


def _trained(setting: Setting) -> str:
    how = {"all": "all weights", "adapter": f"an adapter of rank {setting.rank}", "head": "a head"}[setting.trains]
    if setting.trains == "adapter" and not setting.rank:
        how = "an adapter"
    return f"{_count(setting.shape.parameters)} parameters, {_count(setting.trainable)} train ({how})"


def _where(setting: Setting) -> str:
    device = "CPU" if setting.on_cpu else "GPU"
    if setting.ranks == 1:
        return f"one {device}, {setting.arithmetic}"
    sharded = "each holds all" if setting.sharding == "none" else f"sharded by {setting.sharding}"
    return f"{setting.ranks} {device}s, {sharded}, {setting.arithmetic}"


def _parts(moment: Moment, ranks: int) -> Iterator[str]:
    small = [part for part in moment.parts if part.bytes < SMALL and not part.divided]
    for part in moment.parts:
        if part not in small:
            shared = f"   1/{ranks} of all" if part.divided else ""
            yield f"    {part.name:{WIDTH - 2}}{_gb(part.bytes):>8}{shared}"
    if small:
        yield f"    {'small parts':{WIDTH - 2}}{_gb(sum(part.bytes for part in small)):>8}"


def _verdict(estimate: StageEstimate) -> str:
    return f"{'fits' if estimate.fits else 'DOES NOT FIT'} {_gb(estimate.room)} GB"


def _time(estimate: StageEstimate) -> Iterator[str]:
    work = estimate.work
    if work is None:
        yield "  an epoch: as long as the rows are not there, nobody knows"
        return
    drawn = f", up to {_count(work.generated)} drawn" if work.generated else ""
    flops = f"; {estimate.flops:.2g} FLOPs" if estimate.flops is not None else ""
    yield f"  an epoch: {work.records:,} records, {work.steps:,} steps, {_count(work.tokens)} tokens{drawn}{flops}"
    seconds, probed = estimate.epoch_seconds, estimate.probed
    if probed is not None and seconds is not None:
        yield (
            f"  {_duration(seconds)} at {probed.tokens_per_second:,.0f} tokens/s, as {probed.steps} steps took; "
            f"they held {_gb(probed.peak)} GB"
        )
    elif seconds is not None and estimate.rate is not None:
        yield f"  {_duration(seconds)} at {estimate.rate:.3g} FLOP/s a rank"
    else:
        yield "  for its time measure a few steps (--probe) or say what a rank reaches (--flops 300T)"


def _changes(estimate: StageEstimate) -> Iterator[str]:
    yield "  to make it fit, each on top of the one before:"
    for number, change in enumerate(estimate.changes, start=1):
        yield f"    {number}. {change.keys}   {_gb(change.peak)} GB   {change.cost}"
    if estimate.changes[-1].peak > estimate.room:
        yield "    and still it does not fit: take more memory, more ranks, or a smaller model"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 1e11 else f"{size / 1e9:.0f}"


def _count(number: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"
