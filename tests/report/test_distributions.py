"""The numbers behind the pictures, against closed forms."""

import numpy as np
import pytest

from atlantis.report.artifacts import ScoreTable, TrainTable, WeightTable
from atlantis.report.distributions import (
    histogram,
    lorenz_curves,
    loss_curve,
    weight_by_label,
    weight_by_length,
)


def weights(values):
    values = np.array(values, dtype=float)
    logs = np.log(values, where=values > 0, out=np.where(np.isnan(values), np.nan, -np.inf))
    return WeightTable(tuple("ok" for _ in values), logs, values, {})


def train(labels, golds):
    ids = tuple(str(i) for i in range(len(labels)))
    return TrainTable(ids, tuple(labels), tuple(golds), ids)


def test_the_histogram_counts_every_finite_weight_once_and_zero_weights_apart():
    rows = train("aabb", ["a", "b", "b", None])
    found = histogram(rows, {0: weights([1, 2, 0, 4]), 1: weights([1, np.nan, 0.5, 4])})
    assert found is not None
    counts = {
        k: sum(b["count"] for b in found["bins"] if b["kind"] == k)
        for k in ("right", "wrong", "unknown")
    }
    assert counts == {"right": 1.5, "wrong": 0.5, "unknown": 1.0}
    assert found["num_zero_weight"] == 0.5


def test_constant_weights_make_one_bar():
    found = histogram(train("aa", "aa"), {0: weights([1, 1])})
    assert found is not None
    assert [(bin_["low"], bin_["high"], bin_["count"]) for bin_ in found["bins"]] == [
        (-0.5, 0.5, 2)
    ]


def test_mean_weight_per_class_skips_rows_without_weight():
    rows = train("aab", ["a", "b", None])
    a, b = weight_by_label(rows, {0: weights([1, np.nan, 3]), 1: weights([1, 2, 5])})
    assert (a["n"], a["mean"], a["per_seed"], a["wrong_fraction"]) == (2, 1.25, [1, 1.5], 0.5)
    assert (b["n"], b["mean"], b["per_seed"], b["wrong_fraction"]) == (1, 4, [3, 5], None)


def test_equal_weights_are_the_diagonal_and_a_permutation_shares_its_curve():
    curves = lorenz_curves(
        {
            "uniform": {0: weights([2, 2, 2])},
            "atlantis": {0: weights([1, 2, 3])},
            "shuffled": {0: weights([3, 1, 2])},
        }
    )
    assert [curve["arms"] for curve in curves] == [["uniform"], ["atlantis", "shuffled"]]
    assert all(x == pytest.approx(y, abs=1e-6) for x, y in curves[0]["points"])


def test_a_lorenz_curve_holds_the_share_of_the_lightest_half():
    [curve] = lorenz_curves({"a": {0: weights([3, 1, 4, 2])}})
    assert dict(map(tuple, curve["points"]))[0.5] == pytest.approx(3 / 10)


def test_weight_by_length_needs_two_lengths_and_groups_many():
    def lengths(values):
        return {0: ScoreTable(np.zeros(len(values)), np.array(values, dtype=float))}

    assert weight_by_length({0: weights([1, 2])}, lengths([4, 4])) == []
    short, long = weight_by_length({0: weights([1, 2, 3])}, lengths([4, 7, 7]))
    assert (short["title"], short["n"], short["mean"]) == ("4", 1, 1)
    assert (long["title"], long["n"], long["mean"]) == ("7", 2, 2.5)
    many = weight_by_length({0: weights(np.ones(100))}, lengths(np.arange(100)))
    assert sum(row["n"] for row in many) == 100
    assert {row["n"] for row in many} <= {9, 10, 11}


def test_a_loss_curve_is_the_seed_mean_at_shared_steps():
    assert loss_curve([[[5, 1.0], [10, 0.5]], [[5, 3.0], [10, 1.5], [15, 9.0]]]) == [
        [5, 2],
        [10, 1],
    ]
    thinned = loss_curve([[[step, float(step)] for step in range(600)]], most=60)
    assert len(thinned) == 60
    assert thinned[0] == [4.5, 4.5]
    assert loss_curve([]) == []
