"""prompts: which prompts the stages behind it work on. Those of files, or new ones made by the model.

    prompts.jsonl             the prompts, with the columns of their rows; what `@NAME/prompts.jsonl` means
    prompts.json              how many were read, made and refused, for which reason; the proof of the exclusion
    evaluation.sha256  taken.sha256      fingerprints of both sets, sorted: `comm -12` of the two is empty
    made/000000.jsonl ...     what the model said, a batch a file (what a killed stage goes on from)
    data.json                 the ledger of the rows read
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from whet.config.data import Data
from whet.config.prompts import SelfInstruct
from whet.config.stage import PromptsStage
from whet.data.ledger import Ledger
from whet.data.picture_files import identity
from whet.data.places import pictures_in
from whet.data.render import Renderer
from whet.data.sources import read_records
from whet.errors import RunError
from whet.experience.choose import REASONS, Chooser
from whet.experience.collect import CHUNK_BATCHES, sampling_of
from whet.experience.diversity import diversity
from whet.experience.instruct import draw, parse, question, read_instruct_template
from whet.experience.rows import prompt_row
from whet.experience.sampled import line_of
from whet.experience.store import RolloutStore
from whet.rewards.transcript import transcript
from whet.rollout.build import Answering, Served, open_engine
from whet.runs.files import replacing, write_json, write_text
from whet.runs.sinks import Progress
from whet.schema.artifacts import StageResult
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Request
from whet.stages.context import Context
from whet.stages.rendering import renderer_of

Row = dict[str, Any]
REQUESTS_PER_PROMPT = 10


def run(stage: PromptsStage, context: Context) -> StageResult:
    """Choose or make, write, prove. Raises RunError where no prompt is left."""
    chooser = Chooser(stage.source)
    files = exclude_evaluations(stage, context, chooser)
    if stage.seen.files:
        for prompt in read_prompts_of(stage.seen, context)[0]:
            chooser.saw(text_of(prompt), pictures_of(prompt))
    given, ledger = read_prompts_of(stage.data, context)
    maker = Maker(stage, context, chooser, given) if isinstance(stage.source, SelfInstruct) else None
    rows = maker.rows() if maker is not None else given_rows(stage, chooser, given)
    write_rows(context.paths.file("prompts.jsonl"), rows)
    write_json(context.paths.data, ledger.to_json())
    account: Row = {"read": len(given)}
    if maker is not None:
        account |= {"asked": maker.asked, "made": maker.made, "not_needed": maker.spare}
    account |= {"refused": dict(chooser.refused), "examples": chooser.examples, "excluded": chooser.account(files)}
    write_json(context.paths.file("prompts.json"), account)
    write_text(context.paths.file("evaluation.sha256"), "".join(f"{name}\n" for name in sorted(chooser.evaluation)))
    write_text(context.paths.file("taken.sha256"), "".join(f"{name}\n" for name in sorted(chooser.taken)))
    tell(stage, chooser)
    if not chooser.taken:
        raise RunError(
            "no prompts left", found=describe(chooser), fix=f"read {context.paths.file('prompts.json')}, give more"
        )
    metrics = {"num_prompts": len(chooser.taken), "num_read": len(given), "num_refused": chooser.refused.total()}
    metrics |= {f"refused/{reason}": num for reason, num in chooser.refused.items()}
    metrics |= {"num_excluded": len(chooser.evaluation), "near_evaluation": chooser.near_evaluation}
    if maker is not None:
        metrics |= {"num_made": maker.made, "num_asked": maker.asked}
    return StageResult(metrics={**metrics, **diversity(list(chooser.taken.values()))})


def exclude_evaluations(stage: PromptsStage, context: Context, chooser: Chooser) -> list[str]:
    """Hand over the prompts of evaluations; returns the names of their files."""
    for data in stage.exclude or ():
        for prompt in read_prompts_of(data, context)[0]:
            chooser.exclude(text_of(prompt), pictures_of(prompt))
    return [file if isinstance(file, str) else file.path for data in stage.exclude or () for file in data.files]


def read_prompts_of(data: Data, context: Context) -> tuple[list[Prompt], Ledger]:
    records, ledger = read_records(data, ("prompt",), folders=context.folders)
    return [record for record in records if isinstance(record, Prompt)], ledger


def text_of(prompt: Prompt) -> str:
    return transcript(prompt.messages)


def pictures_of(prompt: Prompt) -> list[str]:
    """What the prompt shows: the same words about another picture are another question."""
    return [identity(source) for source in pictures_in(prompt.messages)]


def given_rows(stage: PromptsStage, chooser: Chooser, given: Sequence[Prompt]) -> Iterator[Row]:
    """The prompts of the files, in their order, until there are enough."""
    for prompt in given:
        if stage.num is not None and len(chooser.taken) >= stage.num:
            return
        if chooser.offer(text_of(prompt), pictures_of(prompt)):
            yield prompt_row(prompt)


class Maker:
    """Asks the model for prompts until there are enough, or it has been asked often enough."""

    def __init__(self, stage: PromptsStage, context: Context, chooser: Chooser, given: Sequence[Prompt]) -> None:
        assert isinstance(stage.source, SelfInstruct) and stage.num is not None, "checked when the plan was read"
        self.config, self.num = stage.source, stage.num
        self.made = self.asked = self.spare = 0
        self._stage, self._context, self._chooser = stage, context, chooser
        self._given = [text_of(prompt) for prompt in given]
        self._template = read_instruct_template(stage.source.template)
        for prompt in given:
            chooser.saw(text_of(prompt), pictures_of(prompt))

    def rows(self) -> Iterator[Row]:
        """New prompts, a batch of requests at a time. What a batch shows the model depends on the batches before it
        alone, and each has a file of its own: a killed stage reads those it has and goes on with the next."""
        config, context = self.config, self._context
        renderer = renderer_of(context.start, context.model)
        limit = config.max_requests or REQUESTS_PER_PROMPT * self.num
        at_once = max(1, CHUNK_BATCHES * config.rollout.batch_size // config.rollout.group_size)
        answering = Answering.by(renderer, batch_size=config.rollout.batch_size)
        served = Served(ref=context.start, model=context.model, folder=context.paths.root)
        made = list[str]()
        with (
            closing(open_engine(config.rollout.engine, served, answering)) as engine,
            Progress(self._stage.name, self.num) as progress,
        ):
            while len(made) < self.num and self.asked < limit:
                store = RolloutStore(context.paths.file(f"made/{self.asked:06d}.jsonl"))
                numbers = range(self.asked, min(self.asked + at_once, limit))
                requests = [request for number in numbers for request in self._requests(number, made, renderer)]
                self.asked += len(numbers)
                for completion in list(store.stream(engine, requests, chunk=len(requests))):
                    for text in parse(completion.text, whole=completion.finish_reason == "stop"):
                        self.made += 1
                        if len(made) == self.num:
                            self.spare += 1
                        elif self._chooser.offer(text):
                            made.append(text)
                            progress.update(1)
                            yield {"prompt": text, "made_by": completion.key}
        if len(made) < self.num:
            print(f"{self._stage.name}: {len(made)} of {self.num} prompts after {limit} requests (source.max_requests)")

    def _requests(self, number: int, made: Sequence[str], renderer: Renderer) -> Iterator[Request]:
        text = question(self._template, draw(self._given, made, self.config, number=number))
        asked = renderer.ask((Message("user", text),))
        for sample in range(self.config.rollout.group_size):
            yield asked.request(f"made/{number}#{sample}", sampling_of(self.config.rollout), self.config.rollout.seed)


def write_rows(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as they come; the file has its name once it is whole."""
    with replacing(path) as handle:
        for row in rows:
            handle.write(line_of(row))


def describe(chooser: Chooser) -> str:
    """`400 prompts (12: was seen before; 3: is asked in an evaluation)`."""
    reasons = "; ".join(f"{num}: {REASONS[reason]}" for reason, num in chooser.refused.most_common())
    return f"{len(chooser.taken)} prompts{f' ({reasons})' if reasons else ''}"


def tell(stage: PromptsStage, chooser: Chooser) -> None:
    print(f"{stage.name}: {describe(chooser)}")
    if chooser.evaluation:
        print(f"{stage.name}: none of them is among the {len(chooser.evaluation)} that evaluations ask")
    if chooser.near_evaluation:
        print(f"{stage.name}: {chooser.near_evaluation} are near one that an evaluation asks (ROUGE-L 0.7 or more)")
