"""The evaluate stage on a tiny random model: values by hand, references kept out, kills survived."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from whet.config.engine import Native
from whet.config.evaluate import ExactTask, JudgementTask, OverlapTask, PerplexityTask, WinRateTask
from whet.config.model import Model
from whet.config.stage import EvaluateStage, SftStage
from whet.data.render import Renderer
from whet.errors import ConfigError, DataError, UserError
from whet.models.load import load_tokenizer
from whet.rollout.native import NativeEngine
from whet.runs.files import read_json, read_jsonl
from whet.runs.layout import StagePaths
from whet.runs.reader import read_stage
from whet.schema.artifacts import ModelRef
from whet.schema.rollouts import Completion
from whet.stages import evaluate
from whet.stages.context import Context
from whet.stages.evaluate import load_subject
from whet.stages.measure.asked import models_asked
from whet.stages.measure.ready import ready_task
from whet.stages.watch import watch

ROWS = [
    {"prompt": f"How much is {n} plus {n + 1}?", "reference": f"GOLD-{2 * n + 1}", "task": "odd" if n % 2 else "even"}
    for n in range(6)
]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def context(checkpoint: Path, folder: Path, stage: EvaluateStage) -> Context:
    ref = ModelRef(path=str(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    models = {"base": ref, "previous": ref}
    model = Model(path=str(checkpoint), device="cpu")
    return Context(model=model, start=ref, models=models, paths=StagePaths(folder), folders={}, stage=stage)


class Scripted:
    """An engine that answers from a list, one entry a request, and counts what it is asked."""

    asked: list[str] = []  # noqa: RUF012
    batched = True
    script = staticmethod(lambda request, prompt: "")
    stop_after: int | None = None

    def __init__(self, model, tokenizer, *, batch_size, end_ids, dtype, pack_frozen, reader, record):
        self.tokenizer = tokenizer

    def generate(self, requests):
        for request in requests:
            if Scripted.stop_after is not None and len(Scripted.asked) == Scripted.stop_after:
                raise KeyboardInterrupt
            Scripted.asked.append(request.key)
            text = Scripted.script(request, self.tokenizer.decode(list(request.prompt_ids)))
            yield Completion(key=request.key, ids=(1, 2), text=text, logprobs=(0.0, 0.0), finish_reason="stop")

    def close(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr("whet.rollout.build.NativeEngine", Scripted)
    Scripted.asked, Scripted.stop_after = [], None
    return Scripted


def value_of(result, metric, stage="base"):
    return next(m for m in result.evaluation if (m.stage, m.metric) == (stage, metric))


def test_accuracy_by_hand_with_groups_and_a_wilson_interval(tiny_checkpoint, tmp_path, prompts, scripted):
    scripted.script = lambda request, prompt: "GOLD-1" if "0 plus 1" in prompt else "GOLD-7 "
    stage = EvaluateStage(
        name="evaluate", models=("base",), tasks=(ExactTask(data={"files": prompts}, by="task"),), num_logged=4
    )
    result = evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    total, even, odd = (value_of(result, metric) for metric in ("accuracy", "accuracy/even", "accuracy/odd"))
    assert (total.value, total.num) == (2 / 6, 6)
    assert (total.low, total.high) == pytest.approx((0.0968, 0.7000), abs=1e-4)
    assert (even.value, odd.value, even.num, odd.num) == (1 / 3, 1 / 3, 3, 3)
    seen = read_stage(StagePaths(tmp_path / "out"))
    assert seen.evaluation == result.evaluation
    assert [row.score for row in seen.samples] == [
        float(row.completion.strip() == row.reference) for row in seen.samples
    ]
    assert seen.data["exact"]["read"] == 6


def test_the_reference_never_reaches_the_model(tiny_checkpoint, tmp_path, prompts, scripted):
    seen = []
    scripted.script = lambda request, prompt: seen.append(prompt) or "GOLD-1"
    tasks = (ExactTask(data={"files": prompts}), OverlapTask(data={"files": prompts}))
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=tasks)
    evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    assert len(seen) == 12
    assert not [prompt for prompt in seen if "GOLD" in prompt]


def test_several_answers_a_prompt_count_prompts(tiny_checkpoint, tmp_path, prompts, scripted):
    scripted.script = lambda request, prompt: "GOLD-1" if request.key.endswith(("#0", "#1")) else "no"
    task = ExactTask(data={"files": prompts}, num_samples=4, temperature=1.0)
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(task,))
    measure = value_of(evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage)), "accuracy")
    assert (measure.value, measure.num, len(scripted.asked)) == (0.5 / 6, 6, 24)


def test_a_kill_loses_nothing_and_asks_nothing_twice(tiny_checkpoint, tmp_path, prompts, scripted):
    scripted.script = lambda request, prompt: prompt[-20:]
    tasks = (ExactTask(data={"files": prompts}, batch_size=1), OverlapTask(data={"files": prompts}, batch_size=1))
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=tasks)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate.run(stage, context(tiny_checkpoint, whole, stage))
    full = list(scripted.asked)
    scripted.asked, scripted.stop_after = [], 5
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(stage, context(tiny_checkpoint, killed, stage))
    with (killed / "replies.jsonl").open("a") as handle:
        handle.write('{"owner": "base", "ta')
    first, scripted.asked, scripted.stop_after = scripted.asked, [], None
    evaluate.run(stage, context(tiny_checkpoint, killed, stage))
    # A round is drawn again as a whole: the kill came in the second round (4, 5), the first is not asked again.
    assert first + scripted.asked[1:] == full
    for name in ("replies.jsonl", "samples.jsonl", "evaluation.json", "data.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_the_real_engine_gives_the_same_bytes_after_a_kill(tiny_checkpoint, tmp_path, prompts, monkeypatch):
    task = ExactTask(data={"files": prompts}, temperature=1.0, num_samples=2, max_new_tokens=6, batch_size=2)
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(task,))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate.run(stage, context(tiny_checkpoint, whole, stage))
    generate, drawn = NativeEngine.generate, []

    def dying(self, requests):
        for completion in generate(self, requests):
            if len(drawn) == 9:
                raise KeyboardInterrupt
            drawn.append(completion)
            yield completion

    monkeypatch.setattr(NativeEngine, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(stage, context(tiny_checkpoint, killed, stage))
    monkeypatch.setattr(NativeEngine, "generate", generate)
    evaluate.run(stage, context(tiny_checkpoint, killed, stage))
    for name in ("replies.jsonl", "samples.jsonl", "evaluation.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_perplexity_is_exp_of_the_token_mean(tiny_checkpoint, tmp_path):
    rows = [
        {"instruction": "What is the capital of France?", "input": "", "output": "Paris."},
        {"instruction": "Write the words.", "input": "", "output": "apple, pear, plum and many others"},
        {"instruction": "How much is 12 plus 30?", "input": "", "output": "42"},
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    stage = EvaluateStage(
        name="evaluate", models=("base",), tasks=(PerplexityTask(data={"files": str(file)}, batch_size=2),)
    )
    ctx = context(tiny_checkpoint, tmp_path / "out", stage)
    measure = value_of(evaluate.run(stage, ctx), "perplexity")

    subject = evaluate.load_subject("base", ctx, Native(), system=None)
    total, count = 0.0, 0
    for record in evaluate.ready_tasks(stage.tasks, folders={})[0].conversations:
        row = Renderer(load_tokenizer(str(tiny_checkpoint))).conversation(record)
        with torch.no_grad():
            logprobs = subject.model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        for t, weight in enumerate(row.weights):
            if weight:
                total -= float(logprobs[t - 1, row.ids[t]])
                count += 1
    assert measure.value == pytest.approx(math.exp(total / count), rel=1e-5)
    assert (measure.low < measure.value < measure.high, measure.num) == (True, 3)


def test_measuring_leaves_the_model_training(tiny_checkpoint, tmp_path, prompts):
    stage = EvaluateStage(name="evaluate")
    subject = evaluate.load_subject("base", context(tiny_checkpoint, tmp_path, stage), Native(), system=None)
    subject.model.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    task = ExactTask(data={"files": prompts}, temperature=1.0, max_new_tokens=4)
    measures, samples = evaluate.measure_task(
        ready_task(task, folders={}),
        model=subject.model,
        tokenizer=subject.tokenizer,
        renderer=subject.renderer,
        label="sft",
    )
    assert subject.model.training
    assert torch.equal(torch.rand(1), expected)
    assert (measures[0].stage, measures[0].task, samples) == ("sft", "exact", [])


def test_models_answer_the_same_logged_prompts_and_previous_gets_its_name(tiny_checkpoint, tmp_path, prompts, scripted):
    scripted.script = lambda request, prompt: "x"
    stage = EvaluateStage(
        name="evaluate", models=("base", "sft", "previous"), tasks=(ExactTask(data={"files": prompts}),), num_logged=3
    )
    ctx = context(tiny_checkpoint, tmp_path / "out", stage)
    other = ModelRef(path=str(tiny_checkpoint) + "/.")
    ctx = Context(
        model=ctx.model, start=other, models={"base": ctx.start, "previous": other, "sft": other}, paths=ctx.paths,
        folders={}, stage=stage,
    )  # fmt: skip
    evaluate.run(stage, ctx)
    samples = read_jsonl(ctx.paths.samples)
    assert list(dict.fromkeys(row["model"] for row in samples)) == ["base", "sft"]
    keys = [[row["key"] for row in samples if row["model"] == name] for name in ("base", "sft")]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 3


@pytest.mark.parametrize(
    ("task", "error", "match"),
    [
        (lambda file: ExactTask(data={"files": file}, by="colour"), DataError, "no column 'colour'"),
        (lambda file: ExactTask(data={"files": file}, num_samples=3), ConfigError, "num_samples"),
        (
            lambda file: WinRateTask(data={"files": file}, num_samples=3, temperature=1.0),
            ConfigError,
            r"tasks\.win_rate\.num_samples: win_rate compares one answer",
        ),
        (
            lambda file: ExactTask(data={"files": file, "max_length": 64}),
            ConfigError,
            r"tasks\.exact\.data\.max_length: a task of type exact asks whole prompts",
        ),
        (
            lambda file: OverlapTask(data={"files": file, "on_overlong": "drop"}),
            ConfigError,
            r"tasks\.overlap\.data\.on_overlong",
        ),
        (lambda file: JudgementTask(data={"files": file, "max_length": 64}), ConfigError, "type judgement asks whole"),
        (lambda file: WinRateTask(data={"files": file}, against="sff"), ConfigError, "no such model"),
        (lambda file: ExactTask(data={"files": file + "x"}), UserError, "prompts.jsonlx"),
    ],
)
def test_mistakes_are_one_clear_line(tiny_checkpoint, tmp_path, prompts, scripted, task, error, match):
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(task(prompts),))
    with pytest.raises(error, match=match) as caught:
        evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "keys", "row", "match"),
    [
        (ExactTask, {"by": "task"}, {"reference": "GOLD-1"}, "no column 'task'"),
        (ExactTask, {}, {}, "no reference"),
        (ExactTask, {"checker": {"type": "numeric"}}, {"reference": "one"}, "the reference has no number"),
        (WinRateTask, {"checker": {"type": "exact"}, "against": "."}, {}, "no reference"),
    ],
)
def test_bad_rows_are_named_before_any_answer(tiny_checkpoint, tmp_path, prompts, scripted, task, keys, row, match):
    with open(prompts, "a") as file:
        file.write(json.dumps({"prompt": "Which?", **row}) + "\n")
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(task(data={"files": prompts}, **keys),))
    with pytest.raises(DataError, match=rf"prompts\.jsonl:7: {match}"):
        evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    assert scripted.asked == []


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ({}, ["dpo"]),
        ({"start": "sft"}, ["sft"]),
        ({"start": "sft", "models": ("sft",)}, ["sft"]),
        ({"models": ("base", "previous")}, ["base", "dpo"]),
    ],
)
def test_start_is_measured_where_models_does_not_say(keys, labels, tiny_checkpoint, tmp_path, prompts, scripted):
    scripted.script = lambda request, prompt: "x"
    stage = EvaluateStage(name="evaluate", tasks=(ExactTask(data={"files": prompts}),), **keys)
    plain = context(tiny_checkpoint, tmp_path / "out", stage)
    sft, dpo = (ModelRef(path=str(tiny_checkpoint) + end) for end in ("/.", "/./."))
    models = {"base": plain.start, "sft": sft, "dpo": dpo, "previous": dpo}
    found = evaluate.run(stage, replace(plain, models=models))
    assert [measure.stage for measure in found.evaluation] == labels


def test_start_and_models_that_differ_are_refused():
    stage = EvaluateStage(name="evaluate", start="sft", models=("base", "sft"))
    with pytest.raises(ConfigError, match=r"evaluate\.start: .*found 'sft', and models base, sft\); leave `start` out"):
        models_asked(stage)


def test_watch_asks_under_each_tasks_own_system_message_and_keeps_tasks_apart(
    tiny_checkpoint, tmp_path, prompts, scripted
):
    """One task asks as a pirate and one plainly; the pirate's answers alone are right. The stage's own message, which
    it trains with, is in neither."""
    asked = []
    scripted.script = lambda request, prompt: asked.append(prompt) or ("yes" if "pirate" in prompt else "no")
    checker = {"type": "contains"}
    rows = [{"prompt": f"How much is {n} plus {n}?", "reference": "yes"} for n in range(3)]
    Path(prompts).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tuple(
        ExactTask(data={"files": prompts, "system": system}, checker=checker) for system in ("You are a pirate.", None)
    )
    stage = SftStage(name="sft", data={"files": prompts, "system": "You are a clerk."}, watch=tasks)
    plain = context(tiny_checkpoint, tmp_path / "out", EvaluateStage(name="evaluate"))
    subject = evaluate.load_subject("base", plain, Native(), system=None)
    found = watch(stage, plain, subject.model, subject.tokenizer)
    assert found == {"watch/exact/accuracy": 1.0, "watch/exact-2/accuracy": 0.0}
    assert len(asked) == 6 and not [prompt for prompt in asked if "clerk" in prompt]


def test_a_model_has_no_match_with_itself(tiny_checkpoint, tmp_path, prompts, scripted, capsys):
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(WinRateTask(data={"files": prompts}),))
    result = evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    assert (result.evaluation, scripted.asked) == ((), [])
    assert "no match with itself" in capsys.readouterr().out


def test_no_task_is_a_mistake(tiny_checkpoint, tmp_path):
    stage = EvaluateStage(name="evaluate")
    with pytest.raises(ConfigError, match="nothing to measure"):
        evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_everything_is_json(tiny_checkpoint, tmp_path, prompts, scripted):
    scripted.script = lambda request, prompt: "x"
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(OverlapTask(data={"files": prompts}),))
    evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
    rows = read_json(tmp_path / "out" / "evaluation.json")
    assert [row["metric"] for row in rows] == ["rouge1", "rouge2", "rougeL", "bleu"]
    json.dumps(rows, allow_nan=False)


def test_another_model_may_be_an_adapter_with_its_template(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter, stage = tmp_path / "adapter", EvaluateStage(name="evaluate", models=("base",))
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_checkpoint)}))
    template = "{% for turn in messages %}# {{ turn.content }}{{ eos_token }}{% endfor %}"
    (adapter / "chat_template.jinja").write_text(template)
    other = load_subject(str(adapter), context(tiny_checkpoint, tmp_path / "out", stage), Native(), system=None)
    assert other.tokenizer.chat_template == template
