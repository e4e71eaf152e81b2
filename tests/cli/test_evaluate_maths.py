"""``atlantis evaluate-maths`` from the command line, its numbers counted again from its samples."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

NUM_SAMPLES = 4
SIZES = {"sums": 12, "more": 7}
SHORT = ("--plain", "--prompt", "{problem} w", "--max-new-tokens", 40, "--num-bootstrap", 200)
SAMPLED = ("--num-samples", NUM_SAMPLES, "--extraction", "last_expression", "--device", "cpu")


def spelled(number):
    """Four numbers in ten spellings each: 3, 3.0, 3.00, ..."""
    return f"{number % 4}" + ("." + "0" * (number // 4) if number > 3 else "")


@pytest.fixture(scope="session")
def talker(tiny_models, tmp_path_factory):
    """A model that says numbers, some of them right, and mostly stops by itself."""
    folder = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(tiny_models / "large", folder)
    path = folder / "tokenizer.json"
    spell = re.compile(r'"w(\d+)"')
    path.write_text(spell.sub(lambda w: f'"{spelled(int(w.group(1)))}"', path.read_text()))
    return folder


@pytest.fixture
def benchmarks(tmp_path):
    for name, size in SIZES.items():
        rows = [
            {"id": f"{name}/{row}", "problem": f"{spelled(row)} yes", "answer": str(row % 4)}
            for row in range(size)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--benchmark", tmp_path / "sums.jsonl", "--benchmark", f"b={tmp_path / 'more.jsonl'}")


@pytest.fixture
def evaluate(atlantis, talker, benchmarks, tmp_path):
    def run(*options, given=benchmarks):
        asked = (*given, "--model", talker, "--out", tmp_path / "out", *SHORT, *SAMPLED)
        return atlantis("evaluate-maths", *asked, *options)

    return run


def recounted(rows, gold):
    """avg@n of one problem from its samples: the last number of what stopped by itself."""
    right = 0
    for row in rows:
        numbers = re.findall(r"[\d.]+", row["completion"])
        right += row["finish_reason"] == "stop" and bool(numbers) and float(numbers[-1]) == gold
    return right / len(rows)


def test_the_numbers_are_those_of_the_samples(evaluate, tmp_path):
    done = evaluate("--json")
    assert done.code == 0, done.err
    line = json.loads(done.out[-1])
    assert (line["out"], line["cached"]) == (str(tmp_path / "out"), False)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"benchmarks": line["benchmarks"], "average": line["average"]} == metrics
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert len(predictions) == NUM_SAMPLES * sum(SIZES.values())
    for name, size in (("sums", 12), ("b", 7)):
        rows = [row for row in predictions if row["benchmark"] == name]
        samples = [rows[i : i + NUM_SAMPLES] for i in range(0, len(rows), NUM_SAMPLES)]
        average = np.mean([recounted(said, i % 4) for i, said in enumerate(samples)])
        cut_off = np.mean([row["finish_reason"] == "length" for row in rows])
        assert 0 < cut_off < 1
        for grader in ("math_verify", "relative_tolerance"):
            found = metrics["benchmarks"][name][grader]
            assert found["verifier"].startswith(grader)
            assert found["num_problems"] == found["metrics"]["avg@4"]["n"] == size
            assert found["metrics"]["avg@4"]["mean"] == pytest.approx(average)
            assert found["metrics"]["truncation_rate"]["mean"] == pytest.approx(cut_off)
            assert set(found["metrics"]) >= {"pass@1", "pass@4", "maj@4", "no_answer_rate"}
            status = {(r["finish_reason"], r[f"{grader}_status"]) for r in rows}
            assert ("length", "truncated") in status
            assert ("stop", "wrong") in status
    averages = metrics["average"]["math_verify"]["avg@4"]
    both = [
        metrics["benchmarks"][b]["math_verify"]["metrics"]["avg@4"]["mean"] for b in ("sums", "b")
    ]
    assert averages == pytest.approx(sum(both) / 2)
    assert max(both) > 0


def test_every_problem_has_a_row_for_each_grader(evaluate, tmp_path):
    assert evaluate("--grader", "relative_tolerance", "--limit", 3).code == 0
    rows = pq.read_table(tmp_path / "out" / "problems.parquet").to_pylist()
    ids = [f"sums/{i}" for i in range(3)] + [f"more/{i}" for i in range(3)]
    assert [row["example_id"] for row in rows] == ids
    assert {row["grader"] for row in rows} == {"relative_tolerance"}
    assert {row["num_samples"] for row in rows} == {NUM_SAMPLES}
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    for row in rows:
        said = [p for p in predictions if p["example_id"] == row["example_id"]]
        assert row["num_cut_off"] == sum(p["finish_reason"] == "length" for p in said)
        statuses = [p["relative_tolerance_status"] for p in said]
        assert row["num_correct"] == statuses.count("correct")
        assert row["num_no_answer"] == statuses.count("no_answer")


def test_the_terminal_has_a_table_for_each_grader(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shown = evaluate().out
    titles = [line for line in shown if line.startswith(("math_verify ", "relative_tolerance "))]
    assert len(titles) == 2
    (header, _) = (line for line in shown if "problems" in line)
    for column in (" n ", "avg@4", "pass@4", "maj@4", "cut off", "no answer", "not graded"):
        assert column in header
    assert "pass@1" not in header
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    mean = metrics["average"]["math_verify"]["avg@4"]
    assert sum(f"{mean:.3f}" in line for line in shown if "mean" in line) >= 1
    assert shown[-1] == str(tmp_path / "out")
    alone = evaluate("--out", tmp_path / "alone", given=("--benchmark", tmp_path / "sums.jsonl"))
    assert alone.code == 0
    assert not any("mean" in line for line in alone.out)


def test_a_rerun_is_cached_and_other_settings_are_refused(evaluate, monkeypatch):
    few = ("--limit", 2, "--grader", "relative_tolerance")
    first = json.loads(evaluate(*few, "--json").out[-1])
    monkeypatch.setattr("atlantis.generation.backends.load_model", lambda *_: pytest.fail("loaded"))
    again = json.loads(evaluate(*few, "--json").out[-1])
    assert again == first | {"cached": True}
    for other in (("--seed", 1), ("--top-p", 0.9), ("--limit", 1)):
        found = evaluate(*few, *other)
        assert (found.code, len(found.err)) == (2, 1), found.err


def test_a_gold_that_cannot_be_graded_is_refused_before_anything_is_loaded(
    evaluate, tmp_path, monkeypatch
):
    monkeypatch.setattr("atlantis.generation.backends.load_model", lambda *_: pytest.fail("loaded"))
    path = tmp_path / "odd.jsonl"
    path.write_text(
        '{"id": "good", "problem": "1", "answer": "1"}\n'
        '{"id": "odd", "problem": "1", "answer": "$,$"}\n'
    )
    found = evaluate(given=("--benchmark", path))
    assert (found.code, len(found.err)) == (2, 1), found.err
    assert "'odd': gold answer '$,$' cannot be graded" in found.err[0]
    assert not (tmp_path / "out").exists()


def test_what_reaches_its_length_is_cut_off(evaluate, tmp_path):
    assert evaluate("--max-new-tokens", 1, "--grader", "relative_tolerance").code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = metrics["benchmarks"]["sums"]["relative_tolerance"]["metrics"]
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    rows = [row for row in predictions if row["benchmark"] == "sums"]
    assert {row["num_tokens"] for row in rows} == {1}
    cut_off = np.mean([row["finish_reason"] == "length" for row in rows])
    assert found["truncation_rate"]["mean"] == pytest.approx(cut_off)
    assert cut_off > 0.5
    assert found["avg@4"]["mean"] == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--temperature", "0"], "use num_samples 1"),
        (["--grader", "judge"], "math_verify"),
        (["--grader", "math_verify", "--grader", "math_verify"], "twice"),
        (["--extraction", "anywhere"], "last_expression"),
        (["--prompt", "solve it"], "{problem} is missing"),
        (["--benchmark", "nowhere.jsonl"], "no such file"),
        (["--benchmark", "=sums.jsonl"], "no name"),
        (["--max-new-tokens", "64"], "more than the model's 64"),
        (["--max-new-tokens", "62"], "more than the model's 64"),
        (["--backend", "server"], "needs --base-url"),
        (["--concurrency", "2"], "--concurrency has no effect"),
        (["--model", "./nowhere"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_code_two(evaluate, tmp_path, options, reason):
    found = evaluate(*options)
    assert (found.code, found.out, len(found.err)) == (2, [], 1), found.err
    assert reason in found.err[0]
    assert not (tmp_path / "out").exists()


def test_a_benchmark_that_stands_there_twice_is_refused(evaluate, benchmarks):
    found = evaluate(given=(*benchmarks, *benchmarks[:2]))
    assert (found.code, len(found.err)) == (2, 1)
    assert "twice: 'sums'" in found.err[0]
