"""whet: sharpen a language model on its own judgement, on human preferences, or on rules that can be checked.

    import whet
    plan = whet.Plan.load("plan.yaml", ["train.epochs=2"])
    summary = whet.run(plan)

Importing whet loads neither torch nor pydantic; what a call needs is imported by the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.config.load import dump_plan, load_plan
    from whet.config.plan import Plan

__version__ = "0.1.0"
__all__ = ["Plan", "__version__", "dump_plan", "load_plan", "run"]


def run(plan: Plan, *, fresh: bool = False, until: str | None = None) -> dict[str, Any]:
    """Run a plan, skipping what is done; return the content of its `summary.json`.

    `fresh` empties a run directory that another plan used; `until` names the last stage to run. Raises
    `whet.errors.UserError` where the input cannot be used.
    """
    from whet.stages.pipeline import run_plan

    return run_plan(plan, fresh=fresh, until=until)


def __getattr__(name: str) -> Any:
    """Import `Plan`, `load_plan` and `dump_plan` when first asked for."""
    if name == "Plan":
        from whet.config.plan import Plan

        return Plan
    if name in ("load_plan", "dump_plan"):
        from whet.config import load

        return getattr(load, name)
    raise AttributeError(f"module 'whet' has no attribute {name!r}")
