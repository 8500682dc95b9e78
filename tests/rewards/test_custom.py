"""The user's function: what it is given, what it may return, and everything that can go wrong with it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rewards.made import completion, prompt, score, value
from whet.config.rewards import Custom
from whet.errors import ConfigError
from whet.rewards.custom import FunctionReward
from whet.rewards.http import payload
from whet.schema.records import Message, Prompt

FUNCTIONS = """
from __future__ import annotations
import asyncio, os, re, sys, time
from dataclasses import dataclass

@dataclass
class Limit:
    most: int = 3

def every(prompt, completion, **columns):
    return (prompt == 'How much?') * 0.5 + (columns == {'reference': 'r', 'task': 't'}) * 0.5
def named(prompt, completion, task): return task == 't'
def positional(prompt, completion, /, *, task, **_): return float(len(task) <= Limit().most)
def numpy(prompt, completion):
    import numpy
    return numpy.float32(0.5)
def parts(prompt, completion): return {'form': 1, 'length': 0.25}
def total(prompt, completion): return {'score': 0.0, 'form': 1, 'length': 0.25}
def broken(prompt, completion, **columns): raise KeyError('task')
def word(prompt, completion): return 'yes'
def undefined(prompt, completion): return float('nan')
def nothing(prompt, completion): pass
def endless(prompt, completion): return float('inf')
def huge(prompt, completion): return {'a': 1e308, 'b': 1e308}
def both(prompt, completion): return {'a': float('inf'), 'b': -float('inf')}
def half(prompt, completion): return {'form': 1, 'length': None}
def sleeps(prompt, completion):
    if 'sleep' in completion: time.sleep(60)
    return 1.0
def explodes(prompt, completion): return float(bool(re.fullmatch('(a|a)*b', completion)))
def dies(prompt, completion):
    if 'die' in completion: os._exit(3)
    return 1.0
def leaves(prompt, completion): sys.exit(1)
def prints(prompt, completion):
    print('{"end": 0, "value": 7}', flush=True)
    return float(sys.stdin.read() == '')
async def waits(prompt, completion):
    await asyncio.sleep(60 if completion == 'long' else 0.2)
    if completion == 'bad': raise ValueError('bad')
    return {'half': 0.5}
async def blocks(prompt, completion):
    if completion == 'block': time.sleep(60)
    await asyncio.sleep(0.05)
    return 1.0
def runs_a_loop(prompt, completion): return asyncio.run(one())
async def one(): return 1.0
def gives_a_coroutine(prompt, completion): return one()
seen = 0
def counts(prompt, completion):
    global seen
    seen += 1
    return seen
def process(prompt, completion): return os.getpid()
def tells_and_sleeps(prompt, completion):
    print(os.getpid(), flush=True)
    time.sleep(60)
def takes_a_lock(prompt, completion, lock=None): return 1.0
number = 3
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("functions") / "mine.py"
    file.write_text(FUNCTIONS)
    return file


def function(file: Path, name: str, timeout: float = 20.0, concurrency: int = 16) -> FunctionReward:
    return FunctionReward(Custom(path=f"{file}:{name}", timeout=timeout, concurrency=concurrency))


@pytest.mark.parametrize("name", ["every", "named", "positional"])
def test_it_gets_the_columns_it_takes(functions: Path, name: str) -> None:
    columns = {"task": "t", "completion": "a column of this name is not passed"}
    assert score(function(functions, name), "x", "r", **columns).value == 1.0


def test_a_function_in_a_module(functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(functions.parent)
    assert score(FunctionReward(Custom(path="mine:named")), "x", task="u").value == 0.0


def test_modules_beside_the_plan_and_the_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `whet` command looks in its own folder first, and not where it was called."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "own_rewards.py").write_text("def one(prompt, completion): return 1.0\n")
    (tmp_path / "there" / "own_helper.py").write_text("VALUE = 0.5\n")
    (tmp_path / "there" / "file.py").write_text(
        "from own_helper import VALUE\ndef half(prompt, completion): return VALUE\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    assert value(FunctionReward(Custom(path="own_rewards:one")), "x") == 1.0
    assert value(FunctionReward(Custom(path="../there/file.py:half")), "x") == 0.5


def test_the_rows_own_answer_goes_along(functions: Path, tmp_path: Path) -> None:
    """TRL's users write `def f(prompt, completion, answer)` for rows with that column."""
    (tmp_path / "own.py").write_text(
        "def worked(prompt, completion, answer, reference): return float((answer, reference) == ('2+3 = 5', '5'))\n"
    )
    asked = Prompt(messages=(Message("user", "2+3?"),), reference="5", answer="2+3 = 5")
    (scored,) = FunctionReward(Custom(path=f"{tmp_path}/own.py:worked")).score([asked], [completion("5")])
    assert scored.value == 1.0
    (sent,) = payload([(asked, completion("5"))])["columns"]
    assert sent == {"answer": "2+3 = 5", "reference": "5"}
    named = replace(asked, columns={"answer": "of a column"})
    (sent,) = payload([(named, completion("5"))])["columns"]
    assert sent == {"answer": "of a column", "reference": "5"}


def test_what_it_may_return(functions: Path) -> None:
    assert value(function(functions, "numpy"), "x") == 0.5
    summed, whole = score(function(functions, "parts"), "x"), score(function(functions, "total"), "x")
    assert (summed.value, dict(summed.parts)) == (1.25, {"form": 1.0, "length": 0.25})
    assert (whole.value, dict(whole.parts)) == (0.0, {"form": 1.0, "length": 0.25})
    assert value(function(functions, "runs_a_loop"), "x") == value(function(functions, "gives_a_coroutine"), "x") == 1.0


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("broken", "raised KeyError: 'task'"),
        ("named", "raised TypeError: named() missing 1 required positional argument: 'task'"),
        ("word", "must return a number (found 'yes')"),
        ("undefined", "must return a number (found nan)"),
        ("nothing", "must return a number (found None)"),
        ("endless", "must return a number (found inf)"),
        ("huge", "must return a number (found {'a': 1e+308, 'b': 1e+308})"),
        ("both", "must return a number (found {'a': inf, 'b': -inf})"),
        ("half", "must return a number (found {'form': 1, 'length': None})"),
        ("leaves", "ended its process (exit code 1)"),
    ],
)
def test_a_failure_is_no_zero(functions: Path, name: str, error: str) -> None:
    scored = score(function(functions, name), "x")
    assert (scored.value, scored.error) == (None, f"{functions}:{name} {error}")


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("sleeps", "sleep", "took longer than 0.5 s"),
        ("explodes", "a" * 60, "took longer than 0.5 s"),
        ("dies", "die", "ended its process (exit code 3)"),
    ],
)
def test_one_that_hangs_or_dies_takes_no_other_with_it(functions: Path, name: str, bad: str, reason: str) -> None:
    """A regular expression holds Python's lock: no thread, and no signal, would get in between."""
    reward = function(functions, name, timeout=0.5)
    texts = ["aab", bad, "ab", bad, "b"]
    begun = time.perf_counter()
    scores = reward.score([prompt()] * 5, [completion(text) for text in texts])
    assert [scored.value for scored in scores] == [1.0, None, 1.0, None, 1.0]
    assert {scored.error for scored in scores if scored.error} == {f"{functions}:{name} {reason}"}
    assert time.perf_counter() - begun < 30.0


def test_async_calls_wait_together(functions: Path) -> None:
    reward = function(functions, "waits", timeout=2.0, concurrency=20)
    texts = ["x", "bad", "long", *["x"] * 37]
    begun = time.perf_counter()
    scores = reward.score([prompt()] * 40, [completion(text) for text in texts])
    seconds = time.perf_counter() - begun
    assert scores[0].value == 0.5 and dict(scores[0].parts) == {"half": 0.5}
    assert scores[1].error == f"{functions}:waits raised ValueError: bad"
    assert scores[2].error == f"{functions}:waits took longer than 2 s"
    assert all(scored.value == 0.5 for scored in scores[3:])
    assert 2.0 <= seconds < 6.0, "one after another they would take ten seconds"


def test_an_async_call_that_blocks_takes_no_other_with_it(functions: Path) -> None:
    reward = function(functions, "blocks", timeout=0.3)
    scores = reward.score([prompt()] * 4, [completion(text) for text in ("x", "x", "block", "x")])
    assert [scored.value for scored in scores] == [1.0, 1.0, None, 1.0]
    assert scores[2].error == f"{functions}:blocks took longer than 0.3 s"


def test_a_process_killed_between_scores_costs_none(functions: Path) -> None:
    reward = function(functions, "process")
    pid = int(value(reward, "x"))
    os.kill(pid, signal.SIGKILL)
    assert value(reward, "x") not in (None, pid)


def test_what_it_prints_is_no_reply(functions: Path) -> None:
    assert value(function(functions, "prints"), "x") == 1.0


def test_its_module_is_loaded_once(functions: Path) -> None:
    reward = function(functions, "counts")
    scores = reward.score([prompt()] * 3, [completion("x")] * 3)
    assert [scored.value for scored in scores] == [1.0, 2.0, 3.0]
    assert value(reward, "x") == 4.0


def test_many_large_texts_pass(functions: Path) -> None:
    scores = function(functions, "sleeps").score([prompt()] * 300, [completion("x" * 30_000)] * 300)
    assert all(scored.value == 1.0 for scored in scores)


def test_a_column_that_cannot_be_handed_over(functions: Path) -> None:
    scored = score(function(functions, "takes_a_lock"), "x", lock=(number for number in range(3)))
    assert scored.value is None and "cannot be given its columns: TypeError" in str(scored.error)


def test_a_failed_completion_is_not_asked_about(functions: Path) -> None:
    scores = function(functions, "counts").score([prompt()] * 2, [completion("", error="too long"), completion("x")])
    assert [scored.value for scored in scores] == [None, 1.0]


def test_its_process_ends_with_the_reward(functions: Path) -> None:
    reward = function(functions, "process")
    pid = int(value(reward, "x"))
    assert pid != os.getpid()
    os.kill(pid, 0)
    del reward
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
def test_a_killed_parent_leaves_no_process(functions: Path) -> None:
    """Not even one that is in the middle of a call."""
    code = (
        "from whet.rewards.process import Call, Worker\n"
        f"worker = Worker('{functions}:tells_and_sleeps', timeout=60.0, what='it')\n"
        "worker.call([Call(args=('', 'sleep'))])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=environment) as parent:
        assert parent.stderr is not None
        pid = int(parent.stderr.readline())
        os.kill(pid, 0)
        parent.kill()
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists() and not is_zombie(pid):
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists() or is_zombie(pid)


def is_zombie(pid: int) -> bool:
    """Ended, but its new parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_cannot_be_imported(functions: Path, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.py"
    faulty.write_text("def f(:\n")
    leaving = tmp_path / "leaving.py"
    leaving.write_text("import os; os._exit(5)\n")
    cases = {
        "no_colon": "write module:function",
        f"{functions}:missing": "it has: blocks, both, broken, counts, dies, endless",
        f"{functions}:number": "no function 'number'",
        "no_such_module:f": "ModuleNotFoundError",
        f"{functions.parent}/absent.py:f": "no such file",
        f"{faulty}:f": "SyntaxError",
        f"{leaving}:f": "ended its process (exit code 5)",
    }
    for path, message in cases.items():
        with pytest.raises(ConfigError, match=r"reward\.path") as caught:
            FunctionReward(Custom(path=path))
        assert message in str(caught.value)
