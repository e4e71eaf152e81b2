"""Resampling: how far would a number move if the data had been drawn again?

Pure NumPy; the random generator is passed in.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Interval(NamedTuple):
    """A number and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def paired_bootstrap_counts(
    num_items: int,
    num_replicates: int,
    rng: np.random.Generator,
    *,
    max_cells: int = 1_000_000,
) -> Iterator[Int[np.ndarray, "replicate item"]]:
    """How often each item is drawn in each bootstrap replicate, in chunks of replicates.

    A replicate draws ``num_items`` items with replacement, so each row sums to ``num_items``.
    Applying one row to everything that was measured on the same items makes the comparison
    paired: what is common to two systems cancels in their difference.

    Args:
        num_items: Number of items in the data.
        num_replicates: Number of rows over all chunks together.
        rng: Consumed in the order of the replicates: the size of a chunk changes no count.
        max_cells: Upper bound of the cells of a chunk (a chunk has at least one row).

    Raises:
        ValueError: There are no items or no replicates.

    References:
        Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 6.
    """
    if num_items < 1 or num_replicates < 1:
        raise ValueError(f"cannot draw {num_replicates} replicates of {num_items} items")
    return _count_chunks(num_items, num_replicates, rng, max(1, max_cells // num_items))


def _count_chunks(
    num_items: int, num_replicates: int, rng: np.random.Generator, chunk_size: int
) -> Iterator[Int[np.ndarray, "replicate item"]]:
    for start in range(0, num_replicates, chunk_size):
        size = min(chunk_size, num_replicates - start)
        drawn = rng.integers(num_items, size=(size, num_items))
        cells = drawn + num_items * np.arange(size)[:, None]
        counts = np.bincount(cells.ravel(), minlength=size * num_items)
        yield counts.reshape(size, num_items)


def percentile_interval(
    estimate: float, replicates: Float[np.ndarray, " replicate"], *, level: float
) -> Interval:
    r"""The percentile bootstrap interval: the central ``level`` of the replicates.

    With :math:`\alpha = 1 - \text{level}`, its bounds are the :math:`\alpha/2` and
    :math:`1 - \alpha/2` quantiles of the replicates, linearly interpolated. It need not be
    symmetric about the estimate, nor contain it.

    Raises:
        ValueError: The level is not between 0 and 1, or a replicate is not finite.

    References:
        Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level} is not between 0 and 1")
    if not replicates.size or not np.isfinite(replicates).all():
        raise ValueError("the replicates must be finite numbers, at least one")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high))
