"""Log-ratios to weights: against rational arithmetic, plain loops and the definitions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from atlantis.numerics.diagnostics import effective_sample_size, pareto_k
from atlantis.numerics.importance import (
    clip_after_mean_one,
    clip_around_median,
    combine,
    length_power,
    mean_one,
    mean_one_within,
    pareto_smooth,
    temper,
)

LARGE = np.array([-3.25, -40.5, -0.125, -7.0])
REFERENCE = np.array([-1.5, -90.75, -0.5, -2.0])
SMALL = np.array([-2.0, -30.25, -8.0, -2.0])
LENGTHS = np.array([1, 64, 4, 16])  # perfect squares: alpha 0.5 stays rational


def lopsided(n: int, *, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=n)


@pytest.mark.parametrize(
    "coefficients", [(0.0, 1.0, -1.0), (1.0, 1.0, -1.0), (1.0, 0.0, -1.0), (0.5, -2.0, 0.25)]
)
@pytest.mark.parametrize(("alpha", "root"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_scheme_arithmetic_equals_rational_arithmetic(coefficients, alpha, root):
    found = length_power(
        combine(large=LARGE, reference=REFERENCE, small=SMALL, coefficients=coefficients),
        LENGTHS,
        alpha=alpha,
    )
    for i in range(4):
        terms = zip(coefficients, (LARGE[i], REFERENCE[i], SMALL[i]), strict=True)
        total = sum(Fraction(c) * Fraction(s) for c, s in terms)
        exact = total / Fraction(math.isqrt(int(LENGTHS[i]))) ** root
        # All inputs are dyadic and the roots exact: nothing may be rounded.
        assert Fraction(found[i]) == exact


def test_a_model_with_coefficient_zero_need_not_be_scored():
    found = combine(large=None, reference=REFERENCE, small=SMALL, coefficients=(0.0, 1.0, -1.0))
    np.testing.assert_array_equal(found, REFERENCE - SMALL)


def test_a_missing_model_with_a_coefficient_is_refused():
    with pytest.raises(ValueError, match="reference model, which was not scored"):
        combine(large=LARGE, reference=None, small=SMALL, coefficients=(1.0, 1.0, -1.0))


def test_coefficients_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="every weight would be one"):
        combine(large=LARGE, reference=None, small=None, coefficients=(0.0, 0.0, 0.0))


@pytest.mark.parametrize("length", [0, -1])
def test_a_completion_without_length_is_refused(length):
    with pytest.raises(ValueError, match="at least 1"):
        length_power(np.array([-1.0, -2.0]), np.array([3, length]), alpha=1.0)


@pytest.mark.parametrize("bound", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("scale", [3.0, 40.0, 2000.0])
def test_tempering_uses_the_largest_power_that_keeps_the_bound(scale, bound):
    log_weights = lopsided(200, scale=scale) - 2000.0
    found = temper(log_weights, kappa=1.0, min_ess_fraction=bound)
    assert effective_sample_size(found.log_weights) / 200 >= bound
    # A millionth more power is already too much.
    assert effective_sample_size(found.kappa * (1 + 1e-6) * log_weights) / 200 < bound
    np.testing.assert_array_equal(found.log_weights, found.kappa * log_weights)


def test_tempering_leaves_weights_alone_that_keep_the_bound():
    log_weights = lopsided(200, scale=0.1)
    found = temper(log_weights, kappa=1.0, min_ess_fraction=0.5)
    assert found.kappa == 1.0
    np.testing.assert_array_equal(found.log_weights, log_weights)


def test_tempering_never_exceeds_the_asked_power():
    found = temper(lopsided(50, scale=0.01), kappa=0.25, min_ess_fraction=0.01)
    assert found.kappa == 0.25


def test_without_a_bound_the_power_is_the_asked_one():
    log_weights = lopsided(5)
    found = temper(log_weights, kappa=2.5, min_ess_fraction=None)
    assert found.kappa == 2.5
    np.testing.assert_array_equal(found.log_weights, 2.5 * log_weights)


def test_a_bound_out_of_reach_of_zero_weights_is_refused():
    # Zero stays zero under every power: 4 of 10 cannot be worth 8 of 10.
    log_weights = np.array([-np.inf] * 6 + [0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="zero"):
        temper(log_weights, kappa=1.0, min_ess_fraction=0.8)


def test_zero_weights_stay_zero_under_tempering():
    log_weights = np.array([-np.inf, 0.0, 3.0, 6.0, 9.0])
    found = temper(log_weights, kappa=1.0, min_ess_fraction=0.6)
    assert np.isneginf(found.log_weights[0])
    assert effective_sample_size(found.log_weights) / 5 >= 0.6


def test_clipping_around_the_median_is_a_plain_loop_over_weights():
    log_weights = lopsided(101)
    found = clip_around_median(log_weights, factor=3.0)
    median = sorted(math.exp(w) for w in log_weights)[50]
    expected = [min(max(math.exp(w), median / 3.0), median * 3.0) for w in log_weights]
    np.testing.assert_allclose(np.exp(found.log_weights), expected, rtol=1e-12)  # exp and log
    assert found.low_fraction == sum(math.exp(w) < median / 3.0 for w in log_weights) / 101
    assert found.high_fraction == sum(math.exp(w) > median * 3.0 for w in log_weights) / 101
    assert 0.1 < found.low_fraction < 0.5


def test_clipping_around_the_median_does_not_see_a_constant_factor():
    log_weights = lopsided(100)
    base = clip_around_median(log_weights, factor=2.0)
    moved = clip_around_median(log_weights - 2000.0, factor=2.0)
    np.testing.assert_allclose(moved.log_weights + 2000.0, base.log_weights, atol=1e-12)
    assert moved[1:] == base[1:]


def test_clipping_after_mean_one_is_a_plain_loop_over_weights():
    log_weights, masses = lopsided(50, scale=2.5), np.arange(1, 51)
    found = clip_after_mean_one(log_weights, low=0.1, high=5.0, masses=masses)
    weights = [math.exp(w) for w in log_weights]
    mean = sum(m * w for m, w in zip(masses, weights, strict=True)) / masses.sum()
    expected = [min(max(w / mean, 0.1), 5.0) for w in weights]
    np.testing.assert_allclose(np.exp(found.log_weights), expected, rtol=1e-12)
    assert found.low_fraction == sum(w / mean < 0.1 for w in weights) / 50
    assert found.high_fraction == sum(w / mean > 5.0 for w in weights) / 50
    assert found.low_fraction > 0
    assert found.high_fraction > 0


def test_a_lower_bound_of_zero_keeps_zero_weights():
    found = clip_after_mean_one(np.array([-np.inf, 0.0, 1.0]), low=0.0, high=5.0, masses=np.ones(3))
    assert np.isneginf(found.log_weights[0])
    assert found.low_fraction == 0.0


def test_clipping_product_weights_after_mean_one_forgets_all_but_a_few():
    # Products over some 60 tokens: log-weights spread over hundreds of nats. One example holds all
    # the weight, so after mean one nearly everything lies below the lower bound: the clip keeps no
    # order among them. Around the median it does.
    log_weights = lopsided(1000, scale=60.0)
    after = clip_after_mean_one(log_weights, low=0.1, high=5.0, masses=np.ones(1000))
    around = clip_around_median(log_weights, factor=math.exp(60.0))
    assert after.low_fraction > 0.99
    assert len(np.unique(after.log_weights)) < 10
    assert len(np.unique(around.log_weights)) > 600


def test_an_upper_bound_above_the_number_of_examples_never_clips():
    # A mean-one weight is at most n: the other half of the same trap.
    log_weights = lopsided(40, scale=500.0)
    found = clip_after_mean_one(log_weights, low=0.0, high=40.001, masses=np.ones(40))
    assert found.high_fraction == 0.0
    assert effective_sample_size(found.log_weights) == pytest.approx(1.0, abs=1e-9)


def test_smoothed_weights_have_the_order_of_the_raw_ones():
    # Guards the sign: arviz-stats takes log-likelihoods and negates them.
    log_weights = np.log(np.random.default_rng(1).pareto(1.2, size=2000) + 1e-3)
    smoothed = pareto_smooth(log_weights)
    assert np.corrcoef(smoothed, log_weights)[0, 1] > 0.99
    order = np.argsort(log_weights)
    assert (np.diff(smoothed[order]) >= -1e-12).all()


def test_smoothing_changes_the_tail_only():
    log_weights = lopsided(1000)
    smoothed = pareto_smooth(log_weights)
    order = np.argsort(log_weights)
    # PSIS fits the largest min(n / 5, 3 sqrt(n)) = 94.9 -> 95 weights (Vehtari et al., 2024).
    shift = smoothed[order[:-95]] - log_weights[order[:-95]]
    np.testing.assert_allclose(shift, shift[0], atol=1e-12)


def test_smoothing_never_exceeds_the_largest_raw_weight_of_the_tail():
    log_weights = np.log(np.random.default_rng(2).pareto(0.8, size=2000) + 1e-3)
    smoothed = pareto_smooth(log_weights)
    shift = np.median(smoothed - log_weights)
    assert smoothed.max() - shift <= log_weights.max() + 1e-9
    assert effective_sample_size(smoothed) > effective_sample_size(log_weights)


def test_a_tail_that_underflows_is_refused_instead_of_becoming_nan():
    # The fit works on exp(log-weight - largest): here nearly the whole tail is 0 in a double.
    with pytest.raises(ValueError, match="tail"):
        pareto_smooth(lopsided(400, scale=500.0) - 2000.0)


@pytest.mark.parametrize("log_weights", [lopsided(24), np.zeros(100)])
def test_weights_without_a_tail_to_fit_are_refused(log_weights):
    with pytest.raises(ValueError, match="tail"):
        pareto_smooth(log_weights)


@pytest.mark.parametrize("shift", [0.0, -2000.0, 2000.0])
def test_mean_one_holds_for_the_weighted_mean(shift):
    log_weights, masses = lopsided(200) + shift, np.random.default_rng(3).integers(1, 50, 200)
    found = mean_one(log_weights, masses=masses)
    total = math.fsum(m * math.exp(w) for m, w in zip(masses, found, strict=True))
    # 200 exponentials, each of relative error below 1e-12 at |log w| = 2000 (2000 * 2^-52).
    assert total / masses.sum() == pytest.approx(1.0, rel=1e-11)


def test_mean_one_equals_rational_arithmetic():
    weights, masses = [Fraction(1, 4), Fraction(2), Fraction(8), Fraction(0)], [3, 1, 7, 5]
    with np.errstate(divide="ignore"):  # log 0 = -inf is the encoding of a zero weight
        found = mean_one(np.log([float(w) for w in weights]), masses=np.array(masses))
    mean = sum(m * w for m, w in zip(masses, weights, strict=True)) / sum(masses)
    expected = [float(w / mean) for w in weights]
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-14)
    assert np.isneginf(found[3])


def test_token_masses_and_plain_ones_differ_on_ragged_data():
    log_weights, masses = np.array([0.0, 2.0]), np.array([9, 1])
    by_token = np.exp(mean_one(log_weights, masses=masses))
    by_example = np.exp(mean_one(log_weights, masses=np.ones(2)))
    assert by_token @ masses / 10 == pytest.approx(1.0, rel=1e-14)
    assert by_example.mean() == pytest.approx(1.0, rel=1e-14)
    assert by_token[0] / by_example[0] == pytest.approx(
        ((1 + math.e**2) / 2) / ((9 + math.e**2) / 10), rel=1e-14
    )


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        ([0.0, np.nan], "finite or -inf"),
        ([0.0, np.inf], "finite or -inf"),
        ([-np.inf, -np.inf], "all weights are zero"),
    ],
)
def test_weights_without_a_mean_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        mean_one(np.array(log_weights), masses=np.ones(2))


def test_all_weight_on_examples_without_mass_is_refused():
    with pytest.raises(ValueError, match="no mass"):
        mean_one(np.array([0.0, -np.inf]), masses=np.array([0, 3]))


def test_the_mean_is_one_inside_every_group():
    log_weights = lopsided(300)
    masses = np.random.default_rng(4).integers(1, 9, 300)
    groups = np.random.default_rng(5).choice(["a", "b", "rare"], p=[0.7, 0.29, 0.01], size=300)
    found = np.exp(mean_one_within(log_weights, masses=masses, groups=groups))
    for group in ("a", "b", "rare"):
        inside = groups == group
        assert found[inside] @ masses[inside] / masses[inside].sum() == pytest.approx(1.0)
        ratio = found[inside] / np.exp(log_weights[inside])
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_a_group_of_one_gets_weight_one():
    found = mean_one_within(np.array([-700.0, 1.0, 2.0]), masses=np.ones(3), groups=np.arange(3))
    np.testing.assert_array_equal(found, 0.0)


def test_a_group_without_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="group 'a' are zero"):
        mean_one_within(np.array([-np.inf, 1.0]), masses=np.ones(2), groups=np.array(["a", "b"]))


def test_sequence_log_weights_around_minus_two_thousand_survive_every_step():
    # exp(-2000) is 0 in a double; the weights are nevertheless known up to a constant.
    log_weights = lopsided(400, scale=30.0) - 2000.0
    shifted = log_weights + 2000.0
    for step in (
        lambda w: temper(w, kappa=1.0, min_ess_fraction=0.3).log_weights,
        lambda w: clip_around_median(w, factor=4.0).log_weights,
        lambda w: clip_after_mean_one(w, low=0.1, high=5.0, masses=np.ones(400)).log_weights,
    ):
        near = mean_one(step(shifted), masses=np.ones(400))
        far = mean_one(step(log_weights), masses=np.ones(400))
        np.testing.assert_allclose(far, near, atol=1e-8)  # bisection and 2000 * 2^-52
    assert pareto_k(log_weights) == pytest.approx(pareto_k(shifted), abs=1e-8)
