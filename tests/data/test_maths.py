"""Maths problems from JSONL, whatever their columns are called."""

import json

import pytest

from atlantis.data.maths import MathsProblem, read_maths
from atlantis.errors import DataError


@pytest.fixture
def write(tmp_path):
    def make(*rows):
        path = tmp_path / "set.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"problem": "1+1?", "solution": r"\boxed{3}", "answer": "2", "unique_id": "a/1.json"},
            MathsProblem("a/1.json", "1+1?", "2", r"\boxed{3}"),
        ),
        (
            {"problem": "1+1?", "solution": r"\boxed{3}, no: \boxed{\frac{4}{2}}", "idx": 7},
            MathsProblem("7", "1+1?", r"\frac{4}{2}", r"\boxed{3}, no: \boxed{\frac{4}{2}}"),
        ),
        (
            {"id": 3, "question": "1+1?", "solution": ["Two."], "final_answer": ["$2$"]},
            MathsProblem("3", "1+1?", "$2$", "Two."),
        ),
        (
            {"id": 3, "question": "Roots?", "solution": [], "final_answer": ["$2$", -2]},
            MathsProblem("3", "Roots?", "$2$, -2", None),
        ),
        (
            {"id": 0, "problem": "1+1?", "question": "1+1?", "answer": 2.0},
            MathsProblem("0", "1+1?", "2", None),
        ),
        ({"id": 0, "prompt": "Half?", "gold": 0.5}, MathsProblem("0", "Half?", "0.5", None)),
        ({"example_id": 5, "id": 0, "prompt": "?", "gold": 1}, MathsProblem("5", "?", "1", None)),
        (
            {"id": "g", "question": "1+1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
            MathsProblem("g", "1+1?", "2", "1 + 1 = <<1+1=2>>2\n#### 2"),
        ),
        (
            {"id": "n", "problem": "1+1?", "solution": None, "answer": "025"},
            MathsProblem("n", "1+1?", "025", None),
        ),
    ],
)
def test_columns_are_found_by_name(write, row, problem):
    assert read_maths(write(row)).rows == (problem,)


def test_a_row_without_an_id_gets_one_of_its_content(write):
    rows = read_maths(write({"problem": "a", "answer": 1}, {"problem": "a", "answer": 2})).rows
    again = read_maths(write({"answer": 2, "problem": "a", "level": 3})).rows
    assert len({row.example_id for row in rows}) == 2
    assert again[0].example_id == rows[1].example_id


def test_a_solution_that_boxes_nothing_is_left_out_and_named(write):
    path = write(
        {"problem": "a", "solution": r"\boxed{}"}, {"problem": "b", "solution": r"\boxed{1}"}
    )
    found = read_maths(path)
    assert [row.problem for row in found.rows] == ["b"]
    assert found.dropped == (f"{path}:1: nothing boxed in the solution",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"text": "a", "answer": 1}], r"set.jsonl:1: no problem \(present: text, answer\)"),
        ([{"problem": "a"}], r"set.jsonl:1: no answer \(present: problem\)"),
        ([{"problem": "a", "solution": "no box"}], "nothing boxed"),
        ([{"problem": "a", "answer": " "}], "answer: is empty"),
        ([{"problem": "a", "answer": []}], "empty list"),
        ([{"problem": "a", "answer": True}], "expected a string"),
        ([{"problem": "a", "answer": {"x": 1}}], "expected a string"),
        ([{"problem": " ", "answer": 1}], "problem: is empty"),
        ([{"problem": "a", "answer": "so\n#### "}], "is empty"),
        ([{"id": 1, "problem": "a", "answer": 1}] * 2, r"set.jsonl:2: id '1' already stands"),
    ],
)
def test_a_malformed_row_is_refused_with_its_place(write, rows, message):
    with pytest.raises(DataError, match=message):
        read_maths(write(*rows))


def test_infinite_answers_are_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"problem": "a", "answer": Infinity}\n')
    with pytest.raises(DataError, match="no finite number"):
        read_maths(path)


@pytest.mark.parametrize(
    ("name", "num_rows", "num_dropped", "num_solutions"),
    [
        ("math/math500", 500, 0, 500),
        ("math/minerva_math", 272, 0, 272),
        ("math/olympiadbench", 675, 0, 675),
        ("math/aime24", 30, 0, 30),
        ("math/amc23", 40, 0, 0),
        ("math/math_train", 7498, 2, 7498),
        ("gsm8k/train", 7473, 0, 7473),
        ("gsm8k/test", 1319, 0, 1319),
    ],
)
def test_the_real_sets_are_read_whole(shared_data, name, num_rows, num_dropped, num_solutions):
    found = read_maths(shared_data / f"{name}.jsonl")
    assert (len(found.rows), len(found.dropped)) == (num_rows, num_dropped)
    assert sum(row.solution is not None for row in found.rows) == num_solutions


def test_answers_of_the_real_sets_are_what_the_files_say(shared_data):
    def first(name):
        return read_maths(shared_data / f"math/{name}.jsonl").rows[0].answer

    assert first("amc23") == "27"
    assert first("aime24") == "204"
    assert first("minerva_math") == "1.6"
    assert first("math500") == r"\left( 3, \frac{\pi}{2} \right)"
    assert first("olympiadbench") == "2"
