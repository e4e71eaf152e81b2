"""Samples against the softmax, and their random numbers against each other."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from atlantis.errors import ModelError
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.streams import TokenSampler, draw, short_seed, stream_seed

LOGITS = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.7, -3.0, 1.69, 0.2])
ROWS = 20_000


def softmax(logits, temperature):
    """The plain definition, in float64."""
    values = np.exp(logits.double().numpy() / temperature)
    return values / values.sum()


def drawn(config, *, seed=0, logits=LOGITS):
    """One token of each row, with streams of ``ROWS`` attempts."""
    seeds = [stream_seed(seed, "example", attempt) for attempt in range(ROWS)]
    sampler = TokenSampler(seeds, config, num_given=3, device=torch.device("cpu"))
    left = sampler(torch.zeros(ROWS, 3, dtype=torch.long), logits.expand(ROWS, -1))
    assert (left.isfinite().sum(-1) == 1).all()
    return left.argmax(-1).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_frequent_as_they_are_probable(temperature):
    config = SamplingConfig(max_new_tokens=1, temperature=temperature)
    counts = np.bincount(drawn(config), minlength=len(LOGITS))
    expected = softmax(LOGITS, temperature) * ROWS
    assert chisquare(counts, expected).pvalue > 0.001


@pytest.mark.parametrize("top_p", [0.3, 0.31, 0.6, 0.95, 1.0])
def test_the_nucleus_is_the_smallest_set_with_that_probability(top_p):
    config = SamplingConfig(max_new_tokens=1, temperature=1.0, top_p=top_p)
    probabilities = softmax(LOGITS, 1.0)
    order = np.argsort(-probabilities)
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p - 1e-12)) + 1
    kept = np.zeros(len(order))
    kept[order[:size]] = probabilities[order[:size]]
    counts = np.bincount(drawn(config), minlength=len(order))
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(kept))
    seen = kept > 0
    if size > 1:
        expected = kept[seen] / kept.sum() * ROWS
        assert chisquare(counts[seen], expected).pvalue > 0.001


def test_other_seeds_draw_other_tokens_with_the_same_frequencies():
    config = SamplingConfig(max_new_tokens=1, temperature=1.0)
    first, second = drawn(config), drawn(config, seed=1)
    agreement = (first == second).mean()
    assert agreement == pytest.approx((softmax(LOGITS, 1.0) ** 2).sum(), abs=0.02)


def test_each_step_has_a_number_of_its_own():
    config = SamplingConfig(max_new_tokens=50, temperature=1.0)
    sampler = TokenSampler([1], config, num_given=2, device=torch.device("cpu"))
    steps = [
        int(sampler(torch.zeros(1, 2 + step, dtype=torch.long), LOGITS[None]).argmax())
        for step in range(50)
    ]
    assert len(set(steps)) > 3


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_probability():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]] * 2)
    uniform = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw(logits, uniform, temperature=1.0, top_p=1.0).tolist() == [1, 2]


def test_a_small_temperature_takes_the_most_likely_token():
    uniform = torch.tensor([0.999])
    found = draw(LOGITS[None] * 1e4, uniform.double(), temperature=1e-4, top_p=1.0)
    assert found.tolist() == [0]


def test_probabilities_that_are_not_finite_are_refused():
    for bad in (torch.nan, torch.inf):
        logits = torch.tensor([[0.0, bad]])
        with pytest.raises(ModelError, match="not finite"):
            draw(logits, torch.tensor([0.5]).double(), temperature=1.0, top_p=1.0)


def test_seeds_tell_examples_attempts_and_runs_apart():
    names = [("a", 0), ("a", 1), ("b", 0), ("a\n1", 0), ("", 0), ("\ud800", 0)]
    every = [(seed, *name) for seed in (0, 1, 11) for name in names]
    assert len({stream_seed(*one) for one in every}) == len(every)
    assert all(0 <= short_seed(*one) < 2**31 for one in every)
