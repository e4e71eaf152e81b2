"""Sums and means of token log-probabilities against exact summation."""

import math
from fractions import Fraction

import numpy as np
import pytest

from atlantis.numerics.logprobs import mean_logprob, perplexity, sequence_logprob


def test_the_sum_of_float32_values_is_exact_to_float64():
    values = -np.random.default_rng(0).exponential(size=50_000).astype(np.float32)
    exact = math.fsum(float(v) for v in values)
    # Pairwise summation of 5e4 terms in float64; in float32 the error would be near 1e-7.
    assert sequence_logprob(values) == pytest.approx(exact, rel=1e-13)


def test_an_empty_completion_is_the_empty_product():
    assert sequence_logprob(np.array([], dtype=np.float32)) == 0.0


def test_an_impossible_token_makes_the_sequence_impossible():
    assert sequence_logprob(np.array([-1.0, -np.inf])) == -math.inf


def test_means_divide_by_each_length():
    found = mean_logprob(np.array([-3.0, -10.0, -0.5]), np.array([3, 4, 1]))
    expected = [Fraction(-3, 3), Fraction(-10, 4), Fraction(-1, 2)]
    assert [Fraction(v) for v in found] == expected


@pytest.mark.parametrize("length", [0, -2])
def test_a_mean_over_nothing_is_refused(length):
    with pytest.raises(ValueError, match="without tokens has no mean"):
        mean_logprob(np.array([-1.0, -2.0]), np.array([2, length]))


def test_perplexity_of_uniform_predictions_is_the_number_of_choices():
    means = mean_logprob(np.array([-7 * math.log(50), -math.log(4)]), np.array([7, 1]))
    np.testing.assert_allclose(perplexity(means), [50.0, 4.0], rtol=1e-12)
