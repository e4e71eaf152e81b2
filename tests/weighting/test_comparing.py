"""Two sets of weights side by side, against counts by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from atlantis.errors import WeightError
from atlantis.weighting.comparing import compare, paired
from atlantis.weighting.weights import Weights


def weights(logs, *, ids=None, log_normaliser=0.0):
    names = ids or [f"r{row}" for row in range(len(logs))]
    plain = [None if log is None else float(np.exp(log)) for log in logs]
    status = ["ok" if log is not None else "too_long" for log in logs]
    made = {} if log_normaliser is None else {"log_normaliser": log_normaliser}
    return Weights(names, status, logs, plain, made)


def normal(num_rows, *, correlation=0.0, seed=0):
    draw = np.random.default_rng(seed)
    first, noise = draw.normal(size=(2, num_rows))
    second = correlation * first + np.sqrt(1 - correlation**2) * noise
    return weights(first.tolist()), weights(second.tolist())


def test_figures_equal_counts_by_hand():
    first, second = normal(500, correlation=0.7)
    a, b = np.array(first.log_weight), np.array(second.log_weight)
    found = compare(paired(first, second), num_replicates=300)
    assert found["spearman"]["estimate"] == pytest.approx(spearmanr(a, b).statistic)
    assert found["spearman"]["low"] < 0.7 < found["spearman"]["high"] + 0.05
    expected = np.mean([(x > 0) != (y > 0) for x, y in zip(a, b, strict=True)])
    assert found["disagreement"]["estimate"] == pytest.approx(expected)
    assert found["disagreement"]["low"] < expected < found["disagreement"]["high"]
    tops = [set(np.argsort(-side)[:50].tolist()) for side in (a, b)]
    assert found["top_overlap"]["0.1"] == len(tops[0] & tops[1]) / 50


def test_independent_weights_disagree_as_often_as_chance_says():
    found = compare(paired(*normal(5000)), num_replicates=100)
    independent = found["disagreement"]["independent"]
    assert independent == pytest.approx(0.5, abs=0.01)
    assert found["disagreement"]["low"] < independent < found["disagreement"]["high"]
    assert found["top_overlap"]["0.1"] == pytest.approx(0.1, abs=0.03)


def test_ids_join_whatever_their_order_and_rows_without_a_weight_are_counted():
    first = weights([1.0, 2.0, None], ids=["a", "b", "c"])
    second = weights([5.0, 6.0, 7.0], ids=["c", "b", "a"])
    pair = paired(first, second)
    assert (pair.first.tolist(), pair.second.tolist()) == ([1.0, 2.0], [7.0, 6.0])
    assert pair.num_left_out == 1


@pytest.mark.parametrize(("shift", "threshold"), [(0.5, "ratio of 1"), (None, "mean weight")])
def test_one_is_the_ratio_where_the_file_tells_it(shift, threshold):
    first = weights([-0.2, 0.3], log_normaliser=shift)
    pair = paired(first, first)
    assert pair.first.tolist() == pytest.approx([-0.2 + (shift or 0), 0.3 + (shift or 0)])
    assert compare(pair, num_replicates=100)["threshold"] == threshold


def test_constant_weights_have_no_rank_correlation():
    found = compare(paired(weights([0.0] * 9), normal(9)[0]), num_replicates=100)
    assert found["spearman"] is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (weights([1.0, 2.0]), weights([1.0], ids=["r0"]), "example 'r1' is in one of them only"),
        (weights([None]), weights([1.0]), "no row has a weight in both"),
    ],
)
def test_weights_that_share_no_rows_are_refused(first, second, message):
    with pytest.raises(WeightError, match=message):
        paired(first, second)
