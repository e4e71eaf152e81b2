"""Expert answers from every format that training data come in, and from maths problems."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlantis.data.demonstrations import read_demonstrations, solved_problems
from atlantis.data.sources import open_source
from atlantis.errors import DataError
from atlantis.records import Conversation, Example

USER = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "It is 4."}
FORMATS = {
    "prompt and completion": {"prompt": "2 + 2?", "completion": " It is 4."},
    "messages": {"messages": [USER, SAID]},
    "prompt and completion as messages": {"prompt": [USER], "completion": [SAID]},
    "Alpaca": {"instruction": "2 + 2?", "input": "", "output": "It is 4."},
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "gpt", "value": "It is 4."},
        ]
    },
}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, answer=None):
    return list(
        read_demonstrations(open_source(str(path), also=[answer or "answer"]), answer=answer)
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_a_prompt_and_an_experts_completion(tmp_path, name):
    path = written(tmp_path / "a.jsonl", FORMATS[name] | {"example_id": "a", "answer": "4"})
    (row,) = read(path)
    assert (row.example_id, row.expert.strip(), row.answer) == ("a", "It is 4.", "4")
    content = row.prompt.content
    if isinstance(content, Conversation):
        assert content.messages == (USER,)
        assert content.learnt == ()
    else:
        assert "2 + 2?" in content
        assert "It is 4." not in content


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_with_its_own_completion_is_the_row_of_the_source(tmp_path, name):
    path = written(tmp_path / "a.jsonl", FORMATS[name] | {"example_id": "a"})
    (row,), (given,) = read(path), list(open_source(str(path)))
    made = row.completed(row.expert)
    if isinstance(given, Example):
        assert (made.prompt, made.completion) == (given.prompt, given.completion)
    else:
        assert (made.messages, made.learnt) == (given.messages, given.learnt)
    assert row.answer is None


def test_a_longer_chat_is_cut_before_its_last_turn(tmp_path):
    system, again = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    last = {"role": "assistant", "content": " Counted. "}
    turns = [system, USER, SAID, again, last]
    (row,) = read(written(tmp_path / "a.jsonl", {"messages": turns, "tools": tools}))
    assert row.prompt.content.messages == tuple(turns[:-1])
    assert row.prompt.content.tools == tuple(tools)
    assert row.expert == " Counted. "
    assert row.completed(" Anew. ").messages[-1] == {"role": "assistant", "content": "Anew."}


@pytest.mark.parametrize(
    "turns",
    [
        [USER, SAID, {"role": "user", "content": "Thanks."}],
        [SAID],
        [USER],
    ],
)
def test_a_chat_that_does_not_end_with_the_assistant_is_refused(tmp_path, turns):
    path = written(tmp_path / "a.jsonl", {"messages": [USER, SAID]}, {"messages": turns})
    with pytest.raises(DataError, match=r"a\.jsonl:2: ") as refused:
        read(path)
    assert "\n" not in str(refused.value)


def test_a_last_turn_that_is_a_call_of_a_tool_is_no_completion(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    path = written(tmp_path / "a.jsonl", {"messages": [USER, called]})
    with pytest.raises(DataError, match="the assistant's last turn"):
        read(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(27, "27"), (27.0, "27"), (0.5, "0.5"), (-3, "-3"), (r"\frac12", r"\frac12")],
)
def test_numbers_are_answers_as_one_writes_them(tmp_path, value, text):
    path = written(tmp_path / "a.jsonl", FORMATS["messages"] | {"answer": value})
    assert read(path)[0].answer == text
    pq.write_table(
        pa.table({"prompt": ["x"], "completion": ["y"], "answer": [value]}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet")[0].answer == text


@pytest.mark.parametrize("value", ["", "  ", True, ["4"], math.nan])
def test_an_answer_that_is_none_is_refused(tmp_path, value):
    if isinstance(value, float):  # where a table has a hole
        path = tmp_path / "a.parquet"
        columns = {"prompt": ["x"], "completion": ["y"], "answer": [value]}
        pq.write_table(pa.table(columns), path)
    else:
        path = written(tmp_path / "a.jsonl", FORMATS["messages"] | {"answer": value})
    with pytest.raises(DataError, match="answer"):
        read(path)


def test_the_column_of_answers_may_be_named(tmp_path):
    row = FORMATS["prompt and completion"]
    path = written(tmp_path / "a.jsonl", row | {"gold": 4, "answer": 5})
    assert read(path, answer="gold")[0].answer == "4"
    assert read(path)[0].answer == "5"
    table = pa.table({"prompt": ["x", "y"], "completion": ["1", "2"], "gold": ["4", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.parquet", "b.jsonl"):
        written(tmp_path / "b.jsonl", row | {"gold": "4"}, row | {"example_id": "n", "gold": None})
        with pytest.raises(DataError, match="gold"):
            read(tmp_path / name, answer="gold")
    with pytest.raises(DataError, match="'nowhere' is missing"):
        read(path, answer="nowhere")


def test_a_row_without_the_usual_column_has_no_answer(tmp_path):
    row = FORMATS["prompt and completion"]
    path = written(tmp_path / "a.jsonl", row | {"answer": 4}, row | {"prompt": "3 + 3?"})
    assert [found.answer for found in read(path)] == ["4", None]


@pytest.mark.parametrize("as_chat", [False, True])
def test_maths_problems_with_solutions_are_demonstrations(tmp_path, as_chat):
    path = written(
        tmp_path / "m.jsonl",
        {"unique_id": "a/1", "problem": "2+2?", "answer": 4, "solution": " So \\boxed{4}.\n"},
        {"question": "3+3?", "answer": "We count: 6.\n#### 6"},
    )
    first, second = solved_problems(path, prompt="Solve {problem} now", as_chat=as_chat)
    content = first.prompt.content
    text = content.messages[0]["content"] if as_chat else content
    assert (first.example_id, text, first.answer) == ("a/1", "Solve 2+2? now", "4")
    assert first.expert == ("" if as_chat else " ") + "So \\boxed{4}."
    assert (second.answer, second.expert.strip()) == ("6", "We count: 6.\n#### 6")


def test_a_maths_problem_without_a_solution_is_refused_by_name(tmp_path):
    path = written(tmp_path / "m.jsonl", {"id": "bare", "problem": "2+2?", "answer": 4})
    with pytest.raises(DataError, match="'bare' has no solution"):
        list(solved_problems(path, prompt="{problem}"))
