"""How far can a set of importance weights be trusted?

Pure NumPy: no models, no files, no randomness. Every function takes log-weights known up to a
constant, because that is all that importance weights are.
"""

import math
from typing import Any

import numpy as np
from arviz_stats.base.array import array_stats
from jaxtyping import Float, Shaped
from scipy import stats

_SMALLEST_TAIL_FIT = 25
"""arviz-stats refuses a Pareto fit to fewer weights than this."""


def effective_sample_size(log_weights: Float[np.ndarray, " example"]) -> float:
    r"""Kish's effective sample size: how many equally weighted examples these are worth.

    With weights :math:`w_i = e^{\ell_i}`,

    .. math:: n_\text{eff} = \Bigl(\sum_i w_i\Bigr)^2 \Big/ \sum_i w_i^2,

    which is :math:`n` when all weights are equal and 1 when one example holds them all. A constant
    added to every log-weight cancels; ``-inf`` is a weight of zero.

    Raises:
        ValueError: There are no weights, one is NaN or ``+inf``, or all are zero.
    """
    weights = _largest_is_one(log_weights)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def largest_share(log_weights: Float[np.ndarray, " example"]) -> float:
    """Share of the total weight that the single heaviest example holds."""
    return float(1.0 / _largest_is_one(log_weights).sum())


def top_share(log_weights: Float[np.ndarray, " example"], *, fraction: float = 0.01) -> float:
    """Share of the total weight held by the heaviest ``fraction`` of examples (at least one)."""
    weights = np.sort(_largest_is_one(log_weights))[::-1]
    return float(weights[: max(1, math.ceil(fraction * weights.size))].sum() / weights.sum())


def pareto_k(log_weights: Float[np.ndarray, " example"]) -> float | None:
    """Shape of the generalised Pareto fit to the largest weights (Vehtari et al., PSIS).

    Under 0.5 the weights have a finite variance, over 0.7 averages with them are unreliable, over 1
    they have no mean. Read the effective sample size first: when nearly all weights vanish the fit
    sees a flat tail and k looks good.

    Returns:
        k-hat, or None where no tail can be fitted: the weights are constant or the largest ones are
        all the same (at a clip bound), or fewer than 25 are above zero.
    """
    positive = log_weights[np.isfinite(log_weights)]
    if positive.size < _SMALLEST_TAIL_FIT or np.ptp(positive) == 0:
        return None
    # The minus: see `atlantis.numerics.importance.pareto_smooth`.
    try:
        with np.errstate(all="ignore"):  # vanished weights underflow inside the fit, as documented
            _, k = array_stats.psislw(-(positive - positive.max()))
    except ValueError:  # "All tail values are the same": clipping has made them so
        return None
    return float(k) if math.isfinite(float(k)) else None


def rank_correlation(
    first: Shaped[np.ndarray, " example"], second: Shaped[np.ndarray, " example"]
) -> float | None:
    """Spearman's rank correlation, or None when one side is constant and has no ranks."""
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    result: Any = stats.spearmanr(first, second)
    return float(result.statistic)


def length_deciles(lengths: Shaped[np.ndarray, " example"]) -> Shaped[np.ndarray, " example"]:
    """Group of each example by its length, from 0; ten at most, fewer where lengths repeat."""
    edges = np.unique(np.quantile(lengths, np.linspace(0.1, 0.9, 9)))
    return np.searchsorted(edges, lengths)


def _largest_is_one(log_weights: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
    """Weights scaled so that the largest is 1: no square overflows, the sum cannot vanish."""
    if log_weights.size == 0:
        raise ValueError("no weights")
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        raise ValueError("log-weights must be finite or -inf; score the examples again")
    if np.isneginf(log_weights).all():
        raise ValueError(f"all {log_weights.size} weights are zero")
    return np.exp(log_weights - log_weights.max())
