"""Diagnostics of weights: rational arithmetic, closed forms, known tails, other libraries."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from atlantis.numerics.diagnostics import (
    effective_sample_size,
    largest_share,
    pareto_k,
    rank_correlation,
    top_share,
)


def logs(weights: list[int]) -> np.ndarray:
    with np.errstate(divide="ignore"):  # log 0 = -inf is the encoding of a zero weight
        return np.log(np.array(weights, dtype=np.float64))


WEIGHTS = [[1], [1, 1, 1, 1], [1, 2, 3], [0, 0, 5], [1, 10**6, 10**9], list(range(200))]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_effective_sample_size_equals_rational_arithmetic(weights):
    exact = Fraction(sum(weights) ** 2, sum(w * w for w in weights))
    # A handful of float64 roundings in exp, log and the sums.
    assert effective_sample_size(logs(weights)) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_equal_rational_arithmetic(weights):
    total = sum(weights)
    assert largest_share(logs(weights)) == pytest.approx(
        float(Fraction(max(weights), total)), rel=1e-12
    )
    for fraction in (0.01, 0.1, 1.0):
        count = max(1, math.ceil(fraction * len(weights)))
        exact = Fraction(sum(sorted(weights, reverse=True)[:count]), total)
        assert top_share(logs(weights), fraction=fraction) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("spread", [0.25, 0.5, 1.0])
def test_lognormal_weights_reach_their_closed_form(spread):
    # log w ~ N(0, s^2): E[w]^2 / E[w^2] = exp(-s^2), where ESS / n converges to.
    num_examples, rng = 200_000, np.random.default_rng(0)
    found = [
        effective_sample_size(rng.normal(scale=spread, size=num_examples)) / num_examples
        for _ in range(4)
    ]
    # Delta method: the variance of the ratio is exp(-2 s^2) (exp(4 s^2) - 4 exp(s^2) + 3) / n plus
    # smaller terms; five standard deviations of the mean of four.
    deviation = math.exp(-(spread**2)) * math.sqrt(math.exp(4 * spread**2) / num_examples / 4)
    assert np.mean(found) == pytest.approx(math.exp(-(spread**2)), abs=5 * deviation)


def test_effective_sample_size_ignores_order_and_scale():
    log_weights = np.random.default_rng(1).normal(scale=4.0, size=500)
    expected = effective_sample_size(log_weights)
    for changed in (log_weights[::-1].copy(), log_weights - 2000.0, log_weights + 700.0):
        assert effective_sample_size(changed) == pytest.approx(expected, rel=1e-10)


def test_effective_sample_size_of_copies_is_that_many_times_larger():
    log_weights = np.random.default_rng(2).normal(scale=2.0, size=100)
    assert effective_sample_size(np.tile(log_weights, 7)) == pytest.approx(
        7 * effective_sample_size(log_weights), rel=1e-12
    )


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        ([], "no weights"),
        ([0.0, np.nan], "finite or -inf"),
        ([0.0, np.inf], "finite or -inf"),
        ([-np.inf, -np.inf], "all 2 weights are zero"),
    ],
)
@pytest.mark.parametrize("measure", [effective_sample_size, largest_share, top_share])
def test_weights_that_are_none_are_refused(measure, log_weights, message):
    with pytest.raises(ValueError, match=message):
        measure(np.array(log_weights, dtype=np.float64))


@pytest.mark.parametrize("shape", [0.3, 0.5, 0.7, 1.0, 1.5])
def test_pareto_k_finds_the_shape_of_known_tails(shape):
    # Pareto weights with tail index 1 / k. The tail is 3 sqrt(n) = 424 weights and the maximum-
    # likelihood deviation (1 + k) / sqrt(424); the mean over eight draws, five of its deviations,
    # and 0.06 for the pull of the weakly informative prior towards 0.5.
    draws = [
        pareto_k(np.log1p(np.random.default_rng(seed).pareto(1 / shape, size=20_000)))
        for seed in range(8)
    ]
    assert np.mean(draws) == pytest.approx(shape, abs=5 * (1 + shape) / math.sqrt(424 * 8) + 0.06)


def test_pareto_k_is_near_a_maximum_likelihood_fit_of_the_same_tail():
    weights = np.random.default_rng(3).pareto(1 / 0.6, size=20_000) + 1.0
    tail = np.sort(weights)[-425:]
    shape, _, _ = stats.genpareto.fit(tail[1:] - tail[0], floc=0.0)
    # Two estimators of one parameter from 424 values: half a standard deviation apart at most.
    assert pareto_k(np.log(weights)) == pytest.approx(shape, abs=0.04)


def test_pareto_k_orders_light_and_heavy_tails():
    rng = np.random.default_rng(4)
    light, heavy = rng.uniform(size=4000), rng.pareto(0.8, size=4000)
    assert pareto_k(np.log(light)) < 0.2
    assert pareto_k(np.log(heavy)) > 0.8


def test_pareto_k_looks_at_the_largest_weights_not_the_smallest():
    # Bounded above, heavy below: with the sign wrong, 1 / w has tail shape 2.
    log_weights = -np.log1p(np.random.default_rng(5).pareto(0.5, size=4000))
    assert pareto_k(log_weights) < 0.3


def test_pareto_k_passes_over_zero_weights():
    log_weights = np.random.default_rng(6).normal(size=500)
    with_zeros = np.concatenate([log_weights, np.full(100, -np.inf)])
    assert pareto_k(with_zeros) == pareto_k(log_weights)


@pytest.mark.parametrize(
    "log_weights",
    [np.zeros(500), np.arange(24.0), np.concatenate([np.full(500, -np.inf), np.arange(10.0)])],
)
def test_where_no_tail_can_be_fitted_there_is_no_pareto_k(log_weights):
    assert pareto_k(log_weights) is None


def test_rank_correlation_is_pearson_of_the_ranks_with_ties():
    first = np.array([3.0, 1.0, 1.0, 2.0, 9.0])
    second = np.array([10, 20, 30, 20, 5])
    ranks = [stats.rankdata(first), stats.rankdata(second)]
    assert rank_correlation(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)


def test_a_constant_side_has_no_rank_correlation():
    assert rank_correlation(np.ones(5), np.arange(5)) is None
    assert rank_correlation(np.arange(5.0), np.ones(5)) is None
    assert rank_correlation(np.array([1.0]), np.array([2])) is None
