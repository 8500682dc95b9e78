import json

import pytest

from whet.errors import RunError
from whet.runs.completions import index_rounds, read_round


def row(number, prompt, sample=0):
    return {
        "step": 4 * number + 1, "round": number, "key": f"{number}/p{prompt}#{sample}", "prompt": "p",
        "completion": "ü c", "num_tokens": 3, "finish_reason": "stop", "reward": 1.0, "parts": {"right": 1.0},
        "advantage": 0.5, "error": None,
    }  # fmt: skip


def written(path, rows, tail=""):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


def test_a_round_is_read_without_the_others(tmp_path):
    path = written(tmp_path / "c.jsonl", [row(0, 0), row(0, 1), row(1, 5, 0), row(1, 5, 1), row(1, 6), row(2, 7)])
    index = index_rounds(path)
    assert list(index) == [0, 1, 2]
    content = path.read_bytes()
    (span,) = index[1]
    assert [json.loads(line)["key"] for line in content[slice(*span)].splitlines()] == ["1/p5#0", "1/p5#1", "1/p6#0"]
    groups = read_round(path, index[1], prompts=2)
    assert [[one.key for one in group] for group in groups] == [["1/p5#0", "1/p5#1"], ["1/p6#0"]]
    assert (groups[0][0].group, groups[0][0].parts) == ("1/p5", {"right": 1.0})
    assert [len(group) for group in read_round(path, index[1], prompts=1)] == [2]


def test_rounds_that_are_mixed_or_begin_otherwise_are_found(tmp_path):
    """Several ranks may write in turn, and somebody may have written the file anew."""
    other = {"key": "1/p3#0", **{name: value for name, value in row(1, 3).items() if name != "key"}}
    path = written(tmp_path / "c.jsonl", [row(0, 0), row(1, 1), row(0, 2), other])
    index = index_rounds(path)
    assert [len(index[number]) for number in (0, 1)] == [2, 2]
    assert [group[0].key for group in read_round(path, index[0], prompts=9)] == ["0/p0#0", "0/p2#0"]
    assert [group[0].key for group in read_round(path, index[1], prompts=9)] == ["1/p1#0", "1/p3#0"]


@pytest.mark.parametrize("broken", ["{", '{"key": 1}', '{"step": 1, "round": 0}'])
def test_a_damaged_line_names_the_file(tmp_path, broken):
    path = tmp_path / "c.jsonl"
    path.write_text(broken + "\n")
    with pytest.raises(RunError, match=r"c\.jsonl: is damaged"):
        for spans in index_rounds(path).values():
            read_round(path, spans, prompts=1)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = written(tmp_path / "c.jsonl", [row(0, 0)], tail='{"step": 5, "round": 1, "ke')
    assert list(index_rounds(path)) == [0]
    assert index_rounds(tmp_path / "absent.jsonl") == {}


@pytest.mark.parametrize(
    ("change", "says"), [({"new": 1}, "does not know .found new"), ({"key": ...}, "found without key")]
)
def test_a_line_with_other_keys_is_one_line(tmp_path, change, says):
    line = {name: value for name, value in (row(0, 0) | change).items() if value is not ...}
    path = written(tmp_path / "c.jsonl", [line])
    with pytest.raises(RunError, match=says):
        read_round(path, index_rounds(path)[0], prompts=1)
