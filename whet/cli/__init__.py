"""The command line. Each command imports what it needs when it runs, so `whet --help` is instant.

A mistake of the user's is one line on stderr and exit code 2; a defect of whet keeps its traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from whet import __version__
from whet.cli.data import MaxPixels, MinPixels, data_app, help_when_alone, vision_section
from whet.cli.estimate import estimate
from whet.cli.export import export_app
from whet.cli.output import for_people, written
from whet.cli.score import score
from whet.cli.words import check_words, existing_run, key_of
from whet.errors import UserError
from whet.ranks.group import Ended, among_ranks, is_first, leave_ranks

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 and the number of the signal."""

app = typer.Typer(
    help="Sharpen a language model on its own judgement, on human preferences, or on rules that can be checked.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.command("estimate")(estimate)
app.command("score")(score)

Args = Annotated[
    list[str] | None, typer.Argument(metavar="[PLAN.yaml] [KEY=VALUE]...", help="Plan file and keys that override it.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; what the run directory holds moves to archive/.")]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `whet` and of `python -m whet`."""
    sys.exit(_main(args))


def _main(args: Sequence[str] | None) -> int:
    # peft imports it where it is installed, and it says which kernels it misses; whet does not use them.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for_people()
    words = [word for word in (sys.argv[1:] if args is None else args) if not _is_launchers(word)]
    try:
        check_words(words)
        with written():
            code = app(words, prog_name="whet", standalone_mode=False)
    except UserError as error:
        return _complain(str(error), 2)
    except Ended as ended:
        return ended.code
    except TyperException as error:
        return _complain(f"{error.format_message().rstrip('.')}; see `whet --help`", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED and not is_first():
        return INTERRUPTED
    if code == INTERRUPTED:  # typer turns Ctrl-C inside a command into this exit code
        return _complain("interrupted; what is written stays, and the same command goes on from there", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _is_launchers(word: str) -> bool:
    """DeepSpeed's launcher puts `--local_rank=N` in front of all words; LOCAL_RANK says the same."""
    return among_ranks() and word.startswith("--local_rank=")


def _complain(text: str, code: int) -> int:
    print("error: " + " ".join(text.split()), file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def _version_or_help(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"whet {__version__}")
        raise typer.Exit
    help_when_alone(context)


@app.command()
def run(args: Args = None, until: Until = None, fresh: Fresh = False) -> None:
    """Run a plan: every stage that is not done yet, in order."""
    plan, overrides = _plan_and_overrides(args)
    if plan is None:
        raise UserError("which plan?", fix="write `whet run PLAN.yaml`, or run one stage, e.g. `whet sft key=value`")
    directory = _run(plan, overrides, None, fresh, until)
    if is_first():
        from whet.report.page import write_report

        print(f"report: {write_report(directory)}")


@app.command()
def sft(args: Args = None, fresh: Fresh = False) -> None:
    """Fine-tune on conversations."""
    _run(*_plan_and_overrides(args), "sft", fresh)


@app.command()
def prompts(args: Args = None, fresh: Fresh = False) -> None:
    """Choose prompts that were not seen before, or let the model make new ones."""
    _run(*_plan_and_overrides(args), "prompts", fresh)


@app.command()
def prepare(args: Args = None, fresh: Fresh = False) -> None:
    """Answer prompts, judge the answers, make pairs of them."""
    _run(*_plan_and_overrides(args), "prepare", fresh)


@app.command()
def reject(args: Args = None, fresh: Fresh = False) -> None:
    """Answer prompts several times, keep right answers apart from wrong ones."""
    _run(*_plan_and_overrides(args), "reject", fresh)


@app.command()
def dpo(args: Args = None, fresh: Fresh = False) -> None:
    """Train on preference pairs."""
    _run(*_plan_and_overrides(args), "dpo", fresh)


@app.command()
def kto(args: Args = None, fresh: Fresh = False) -> None:
    """Train on single answers called good or bad."""
    _run(*_plan_and_overrides(args), "kto", fresh)


@app.command()
def reward(args: Args = None, fresh: Fresh = False) -> None:
    """Train a reward model on pairs or rankings."""
    _run(*_plan_and_overrides(args), "reward", fresh)


@app.command("reward_weighted")
def reward_weighted(args: Args = None, fresh: Fresh = False) -> None:
    """Train on stored answers by their stored rewards."""
    _run(*_plan_and_overrides(args), "reward_weighted", fresh)


@app.command("soft_preference")
def soft_preference(args: Args = None, fresh: Fresh = False) -> None:
    """Train on all stored answers of a prompt, each by its share."""
    _run(*_plan_and_overrides(args), "soft_preference", fresh)


@app.command()
def grpo(args: Args = None, fresh: Fresh = False) -> None:
    """Online RL against the other samples of a prompt (GRPO, DAPO, RLOO and their kin)."""
    _run(*_plan_and_overrides(args), "grpo", fresh)


@app.command()
def gspo(args: Args = None, fresh: Fresh = False) -> None:
    """Online RL with one importance ratio a response (GSPO)."""
    _run(*_plan_and_overrides(args), "gspo", fresh)


@app.command()
def ppo(args: Args = None, fresh: Fresh = False) -> None:
    """Online RL with a value function (PPO)."""
    _run(*_plan_and_overrides(args), "ppo", fresh)


@app.command("online_dpo")
def online_dpo(args: Args = None, fresh: Fresh = False) -> None:
    """Train on pairs of the model's own completions, made as it learns."""
    _run(*_plan_and_overrides(args), "online_dpo", fresh)


@app.command("judge_examples")
def judge_examples(args: Args = None, fresh: Fresh = False) -> None:
    """Judge answers that people have scored: agreement, and examples that teach to judge."""
    _run(*_plan_and_overrides(args), "judge_examples", fresh)


@app.command("pair")
def pair(args: Args = None, fresh: Fresh = False) -> None:
    """Make preferences of one model's right answers and another's wrong ones."""
    _run(*_plan_and_overrides(args), "pair", fresh)


@app.command()
def evaluate(args: Args = None, fresh: Fresh = False) -> None:
    """Measure models on held-out tasks."""
    _run(*_plan_and_overrides(args), "evaluate", fresh)


@app.command()
def merge(args: Args = None, fresh: Fresh = False) -> None:
    """Fold an adapter into the weights and check the result."""
    _run(*_plan_and_overrides(args), "merge", fresh)


@app.command("judge-template")
def judge_template(
    name: Annotated[str, typer.Argument(help="additive, score_first, pairwise, listwise or meta.")],
    file: Annotated[Path | None, typer.Argument(help="Where to write it; left out, it is printed.")] = None,
) -> None:
    """A judge's template that ships, to be changed and named in a plan."""
    from whet.rewards.template import write_template

    write_template(name, file)


@app.command()
def status(run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")]) -> None:
    """Show where a run stands."""
    from whet.report.status import print_status

    print_status(existing_run(run))


@app.command()
def report(run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")]) -> None:
    """Write a run's report: one self-contained HTML page."""
    from whet.report.page import write_report

    print(write_report(existing_run(run)))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint, adapter, stage's folder or hub id.")],
    adapter: Annotated[str | None, typer.Option(help="Adapter directory.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with and without the adapter.")] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Draw among the likeliest tokens only.")] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed and words, same answers.")] = 42,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    save: Annotated[Path, typer.Option(help="File that /save adds a training row to.")] = Path("chat.jsonl"),
    server: Annotated[str | None, typer.Option(metavar="URL", help="Ask the model of this name at a server.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the server's key.")] = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Talk to a model.

    `exit` or `quit` leaves, `/reset` forgets, `/system TEXT` sets the system message, `/image PATH` shows a picture
    with the next message, `/save` adds a training row, `/help` lists the commands."""
    if precision not in ("auto", "bf16", "fp16", "fp32"):
        raise UserError("must be one of auto, bf16, fp16, fp32", field="--precision", found=repr(precision))
    if token_env is not None and server is None:
        raise UserError("is the key of a server", field="--token-env", fix="add --server URL, or leave it out")
    from whet.config.values import TEMPERATURES, is_temperature

    if not is_temperature(temperature):
        raise UserError(TEMPERATURES, field="--temperature", found=str(temperature))
    from whet.stages.chat import chat as talk

    talk(
        model, adapter=adapter, system=system, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens,
        seed=seed, compare=compare, precision=precision, save=save, server=server, token_env=token_env,
        vision=vision_section(min_pixels, max_pixels),
    )  # fmt: skip


@app.command()
def explain(key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="e.g. train.epochs")] = None) -> None:
    """Say what a key of the plan means; without a key, list all."""
    from whet.config.explain import explain as text_for

    print(text_for(key_of(key)))


@app.command()
def demo(
    args: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of data, training and sampling.")] = 0,
    run: Annotated[Path | None, typer.Option(help="Run directory; by default runs/demo, or runs/demo-SEED.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Self-rewarding over and over: this many rounds.")] = None,
    vision: Annotated[bool, typer.Option("--vision", help="A judge of pictures that reasons.")] = False,
) -> None:
    """Watch the whole loop on a small model that ships with whet."""
    if vision and rounds is not None:
        raise UserError("one demo at a time", field="--rounds", fix="leave out --vision or --rounds")
    for word in args or ():
        if (key := word.partition("=")[0].strip()) in ("run", "seed"):  # its inputs are made before there is a plan
            raise UserError("is an option of the demo", field=key, found=repr(word), fix=f"--{key} VALUE")
    name = "runs/demo-vision" if vision else "runs/demo" if rounds is None else "runs/demo-rounds"
    folder = run or Path(name if seed == 0 else f"{name}-{seed}")
    if vision:
        from whet.demo.vision import run_vision

        run_vision(folder, seed, tuple(args or ()))
    elif rounds is None:
        from whet.demo.plan import run_demo

        run_demo(folder, seed, tuple(args or ()))
    else:
        from whet.demo.rounds import run_rounds

        run_rounds(folder, seed, rounds, tuple(args or ()))


def _plan_and_overrides(args: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """A plan file in front, if there is one, and the overrides."""
    words = list(args or ())
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return words[0], words[1:]
    return None, words


def _run(
    plan: str | None, overrides: Sequence[str], kind: str | None, fresh: bool, until: str | None = None
) -> Path:
    """Run a plan; returns its run directory."""
    from whet.config.launch import Ray
    from whet.config.load import load_plan

    resolved = load_plan(plan, overrides, kind=kind)
    if isinstance(resolved.launch, Ray):
        from whet.launch.ray import run_on_ray

        run_on_ray(resolved, resolved.launch, fresh=fresh, until=until)
        return Path(resolved.run)
    if resolved.launch.processes > 1 and not among_ranks():
        from whet.launch.local import start_ranks

        options = [*(["--fresh"] if fresh else []), *(["--until", until] if until else [])]
        words = [kind or "run", *options, *([plan] if plan else []), *overrides]
        raise typer.Exit(start_ranks(words, resolved.launch.processes))
    from whet.stages.pipeline import run_plan

    run_plan(resolved, fresh=fresh, until=until)
    leave_ranks()
    return Path(resolved.run)
