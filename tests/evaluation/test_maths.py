"""Metrics of maths benchmarks against their plain definitions."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.errors import ConfigError, DataError
from atlantis.evaluation.maths import (
    AnsweredProblem,
    majority,
    maths_metrics,
    pass_at_k,
    per_problem_metrics,
    problem_rows,
)
from atlantis.verification.claims import Verdict


def problem(example_id, *verdicts, cut_off=()):
    """A problem from pairs of a status and an answer."""
    reasons = tuple("length" if i in cut_off else "stop" for i in range(len(verdicts)))
    return AnsweredProblem(example_id, tuple(Verdict(s, a, None) for s, a in verdicts), reasons)


RIGHT, WRONG, NONE = ("correct", "1"), ("wrong", "2"), ("no_answer", None)


def from_correctness(table):
    return [
        problem(f"p{i}", *(RIGHT if is_right else WRONG for is_right in row))
        for i, row in enumerate(table)
    ]


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_is_the_share_of_all_draws_of_k_with_a_correct_one(num_samples):
    for num_correct, k in product(range(num_samples + 1), range(1, num_samples + 1)):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        draws = [any(draw) for draw in combinations(samples, k)]
        expected = float(Fraction(sum(draws), len(draws)))
        [found] = pass_at_k(num_samples, np.array([num_correct]), k)
        assert found == pytest.approx(expected, abs=1e-14)


def test_pass_at_k_is_stable_where_binomials_overflow_floats():
    n, c, k = 10_000, 7, 4_000
    missed = Fraction(1)
    for i in range(c):
        missed *= Fraction(n - k - i, n - i)  # none of the c correct ones among the k
    [found] = pass_at_k(n, np.array([c]), k)
    assert found == pytest.approx(float(1 - missed), rel=1e-12)


def test_pass_at_one_is_the_average_and_pass_at_n_is_any(rng_table):
    metrics = per_problem_metrics(from_correctness(rng_table), ks=(1, 16))
    np.testing.assert_allclose(metrics["pass@1"], metrics["avg@16"], rtol=1e-14)
    np.testing.assert_array_equal(metrics["pass@16"], rng_table.any(axis=1))


@pytest.fixture
def rng_table():
    rng = np.random.default_rng(3)
    return rng.random((40, 16)) < rng.random((40, 1))


def test_the_average_is_not_rounded(rng_table):
    found = maths_metrics(from_correctness(rng_table), verifier="v")["metrics"]["avg@16"]
    assert found["mean"] == rng_table.sum() / rng_table.size
    assert found["n"] == 40


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_more_than_there_are_samples_is_refused(k):
    with pytest.raises(ConfigError, match=f"pass@{k} needs at least"):
        pass_at_k(4, np.array([1]), k)


def test_the_majority_counts_spellings_of_one_answer_together():
    verdicts = problem(
        "a", ("wrong", "3"), ("correct", "0.5"), ("wrong", "3"), ("correct", r"\frac12"),
        ("correct", "1/2"), NONE, NONE, NONE, NONE,
    ).verdicts  # fmt: skip
    assert majority(verdicts) == ("0.5", 3, True)


def test_a_tied_majority_goes_to_the_answer_that_came_first():
    assert majority(problem("a", WRONG, RIGHT, RIGHT, WRONG).verdicts) == ("2", 2, False)
    assert majority(problem("a", RIGHT, WRONG, WRONG, RIGHT).verdicts) == ("1", 2, True)
    assert majority(problem("a", NONE, WRONG).verdicts) == ("2", 1, False)


def test_no_answers_have_no_majority():
    assert majority(problem("a", NONE, ("truncated", None)).verdicts) == (None, 0, False)


def test_an_answer_that_was_graded_once_in_time_is_correct():
    verdicts = problem("a", ("timeout", "1"), RIGHT, WRONG).verdicts
    assert majority(verdicts) == ("1", 2, True)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=9))
def test_the_majority_is_what_counting_gives(answers):
    verdicts = [
        Verdict("no_answer" if a is None else "correct" if a == "1" else "wrong", a, None)
        for a in answers
    ]
    given_answers = [a for a in answers if a is not None]
    best = max(given_answers, key=given_answers.count, default=None)  # max keeps the first
    assert majority(verdicts) == (best, answers.count(best) if best else 0, best == "1")


def test_what_was_not_graded_is_counted_apart_and_is_not_correct():
    problems = [
        problem("a", RIGHT, ("truncated", None), ("timeout", "1"), NONE, cut_off=(0, 1)),
        problem("b", WRONG, ("error", "2"), NONE, NONE),
    ]
    metrics = maths_metrics(problems, verifier="v", ks=(1, 2))["metrics"]
    assert {name: metric["mean"] for name, metric in metrics.items()} == {
        "avg@4": 1 / 8,
        "pass@1": 1 / 8,
        "pass@2": 1 / 4,
        "maj@4": 1 / 2,
        "truncation_rate": 2 / 8,
        "no_answer_rate": 3 / 8,
        "timeout_rate": 1 / 8,
        "error_rate": 1 / 8,
    }
    assert problem_rows(problems)[0] == {
        "example_id": "a",
        "num_samples": 4,
        "num_correct": 1,
        "num_cut_off": 2,
        "num_no_answer": 1,
        "num_timeout": 1,
        "num_error": 0,
        "majority_answer": "1",
        "majority_votes": 2,
        "majority_correct": True,
    }


def test_the_interval_draws_problems(rng_table):
    found = maths_metrics(from_correctness(rng_table), verifier="v", num_replicates=4000, seed=1)[
        "metrics"
    ]["avg@16"]
    means = rng_table.mean(axis=1)
    rng = np.random.default_rng(99)
    plain = [rng.choice(means, means.size).mean() for _ in range(4000)]
    # Two bootstraps of 4000 replicates: their quantiles agree to about 2 % of the spread.
    low, high = np.quantile(plain, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.1 * np.std(plain) * 2)


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval():
    table = np.arange(30)[:, None] < np.full((1, 4), 12)  # each problem always or never solved

    def width(t):
        found = maths_metrics(from_correctness(t), verifier="v")["metrics"][f"avg@{t.shape[1]}"]
        return found["high"] - found["low"]

    assert width(np.repeat(table, 16, axis=1)) == width(table)


def test_the_same_arguments_give_the_same_numbers(rng_table):
    problems = from_correctness(rng_table)
    assert maths_metrics(problems, verifier="v") == maths_metrics(problems, verifier="v")
    assert maths_metrics(problems, verifier="v") != maths_metrics(problems, verifier="v", seed=1)


def test_uneven_samples_are_refused():
    with pytest.raises(DataError, match="problem 'b' has 1 verdicts"):
        maths_metrics([problem("a", RIGHT, WRONG), problem("b", RIGHT)], verifier="v")
    with pytest.raises(DataError, match="no problems"):
        maths_metrics([], verifier="v")
