r"""Log-ratios to importance weights.

The order is always the same: combine the models' log-probabilities, divide by a power of the
length, temper, clip or smooth, normalise to mean one. Everything stays in log space and float64
until the end, because products over hundreds of tokens leave the range of a double.

Source: ATLANTIS (ACL 2025), Equations 7 and 8 and Algorithm 1. The length power, tempering and
clipping are ours; with ``alpha = 1`` the weight is the geometric mean of the per-token ratios,
which is what Figures 2 and 4 of the paper show.
"""

import math
from typing import NamedTuple

import numpy as np
from arviz_stats.base.array import array_stats
from jaxtyping import Float, Int, Shaped

from atlantis.numerics.diagnostics import effective_sample_size

_BISECTION_STEPS = 60
"""Halvings of (0, kappa]: past 53 a double no longer moves."""


def combine(
    *,
    large: Float[np.ndarray, " example"] | None,
    reference: Float[np.ndarray, " example"] | None,
    small: Float[np.ndarray, " example"] | None,
    coefficients: tuple[float, float, float],
) -> Float[np.ndarray, " example"]:
    r"""The log-ratio :math:`c_L S_L + c_r S_r + c_S S_S` of one completion per example.

    Args:
        large: Sequence log-probabilities under the large model; None where its coefficient is 0.
        reference: The same under the reference model.
        small: The same under the small base model.
        coefficients: ``(c_large, c_reference, c_small)``.

    Raises:
        ValueError: A model with a coefficient other than 0 has no log-probabilities, or all are 0.
    """
    terms: list[Float[np.ndarray, " example"]] = []
    for name, logprobs, coefficient in zip(
        ("large", "reference", "small"), (large, reference, small), coefficients, strict=True
    ):
        if coefficient == 0:
            continue
        if logprobs is None:
            raise ValueError(
                f"coefficient {coefficient} for the {name} model, which was not scored"
            )
        terms.append(coefficient * logprobs)
    if not terms:
        raise ValueError("all coefficients are 0: every weight would be one")
    return np.sum(terms, axis=0)


def length_power(
    log_ratios: Float[np.ndarray, " example"], lengths: Int[np.ndarray, " example"], *, alpha: float
) -> Float[np.ndarray, " example"]:
    r""":math:`d_i / n_i^\alpha`: alpha 0 keeps the sequence ratio, 1 its mean per token."""
    if (lengths <= 0).any():
        raise ValueError("every length must be at least 1")
    return log_ratios / np.power(lengths.astype(np.float64), alpha)


class Tempered(NamedTuple):
    """Log-weights after tempering, and the exponent that was used."""

    log_weights: Float[np.ndarray, " example"]
    kappa: float


def temper(
    log_weights: Float[np.ndarray, " example"], *, kappa: float, min_ess_fraction: float | None
) -> Tempered:
    r"""Raise the weights to the largest power in :math:`(0, \kappa]` with ESS/N >= the bound.

    ESS falls monotonically as the power grows, so bisection finds it; the power 0 (uniform weights)
    always satisfies the bound. Without a bound the power is ``kappa`` itself.

    Raises:
        ValueError: So many weights are zero that no power reaches the bound.
    """
    if min_ess_fraction is None:
        return Tempered(kappa * log_weights, kappa)
    enough = min_ess_fraction * log_weights.size
    num_zero = int(np.isneginf(log_weights).sum())
    if log_weights.size - num_zero < enough:
        raise ValueError(
            f"{num_zero} of {log_weights.size} weights are zero, so that no tempering reaches an "
            f"effective sample size of {min_ess_fraction:.0%}"
        )

    def holds(power: float) -> bool:
        return effective_sample_size(power * log_weights) >= enough

    if holds(kappa):
        return Tempered(kappa * log_weights, kappa)
    low, high = 0.0, kappa
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Tempered(low * log_weights, low)


class Clipped(NamedTuple):
    """Log-weights after clipping, and the fraction of examples that sat beyond each bound."""

    log_weights: Float[np.ndarray, " example"]
    low_fraction: float
    high_fraction: float


def clip_around_median(log_weights: Float[np.ndarray, " example"], *, factor: float) -> Clipped:
    r"""Keep every weight within ``factor`` times above and below the median weight.

    Works in log space and before normalising, so one huge weight cannot turn the clip into a no-op
    (normalise first and it does: every other weight is then far below the lower bound).
    """
    median, bound = float(np.median(log_weights)), math.log(factor)
    return _clip(log_weights, median - bound, median + bound)


def clip_after_mean_one(
    log_weights: Float[np.ndarray, " example"],
    *,
    low: float,
    high: float,
    masses: Shaped[np.ndarray, " example"],
) -> Clipped:
    """Clip the mean-one weights to the absolute bounds ``[low, high]`` (the 2025 report's way).

    Args:
        log_weights: Natural-log weights, known up to a constant.
        low: Lower bound of a weight after normalising; 0 for none.
        high: Upper bound of a weight after normalising.
        masses: What each example counts in the mean, as in `mean_one`.
    """
    lower = math.log(low) if low > 0 else -math.inf
    return _clip(mean_one(log_weights, masses=masses), lower, math.log(high))


def _clip(log_weights: Float[np.ndarray, " example"], low: float, high: float) -> Clipped:
    return Clipped(
        np.clip(log_weights, low, high),
        float(np.mean(log_weights < low)),
        float(np.mean(log_weights > high)),
    )


def pareto_smooth(log_weights: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
    """Pareto-smoothed importance sampling: the largest weights become order statistics of a fit.

    Raises:
        ValueError: There are fewer than 25 weights, they are constant, or their tail underflows: no
            tail can be fitted.
    """
    # arviz-stats wants log-likelihoods and negates them inside, so log-weights go in with the other
    # sign. Without the minus the worst examples would weigh most, and nothing would say so.
    with np.errstate(all="ignore"):  # what underflows is refused below
        smoothed, _ = array_stats.psislw(-(log_weights - log_weights.max()))
    if np.isnan(smoothed).any():
        raise ValueError("the tail of the weights underflows; temper them first")
    return np.asarray(smoothed, dtype=np.float64)


def mean_one(
    log_weights: Float[np.ndarray, " example"], *, masses: Shaped[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    r"""Shift log-weights so that the mean weight is one: :math:`\sum_i m_i w_i / \sum_i m_i = 1`.

    With the token counts as masses the token-mean loss keeps the scale of plain SFT; with ones the
    example-mean loss does. A log-weight of ``-inf`` is a weight of zero and stays one.

    Raises:
        ValueError: All weights are zero, or one is NaN or ``+inf``.
    """
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        raise ValueError("log-weights must be finite or -inf")
    largest = log_weights.max()
    if np.isneginf(largest):
        raise ValueError("all weights are zero")
    mean = np.average(np.exp(log_weights - largest), weights=masses)
    if mean == 0:
        raise ValueError("all examples with a weight have no mass")
    return log_weights - largest - math.log(mean)


def mean_one_within(
    log_weights: Float[np.ndarray, " example"],
    *,
    masses: Shaped[np.ndarray, " example"],
    groups: Shaped[np.ndarray, " example"],
) -> Float[np.ndarray, " example"]:
    """`mean_one` inside every group, so that weighting does not shift the mix of the groups.

    Raises:
        ValueError: Some group has only zero weights: no factor gives it mean one.
    """
    result = np.empty_like(log_weights)
    for group in np.unique(groups):
        inside = groups == group
        if np.isneginf(log_weights[inside]).all():
            raise ValueError(f"all weights of group {str(group)!r} are zero")
        result[inside] = mean_one(log_weights[inside], masses=masses[inside])
    return result
