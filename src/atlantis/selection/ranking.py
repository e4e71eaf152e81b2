r"""Ranking rows and cutting the ranking off, as pure functions.

Instruction-following difficulty (IFD) compares what a completion costs after its prompt with what
it costs by itself, over the same token ids:

.. math:: \text{ifd}_\text{ppl} = \exp(\bar\ell(A \mid Q) - \bar\ell(A)) \qquad
          \text{ifd}_\text{loss} = \bar\ell(A \mid Q) / \bar\ell(A)

with the mean negative log-likelihoods per token. One or more means that the prompt does not help.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ifd_perplexity_ratio(nll_given: Floats, nll_alone: Floats) -> Floats:
    """Superfiltering's IFD (2402.00530), from mean negative log-likelihoods per token, ``[row]``.

    Args:
        nll_given: After the prompt.
        nll_alone: Of the same tokens behind a neutral one.
    """
    with np.errstate(over="ignore"):
        return np.exp(nll_given - nll_alone)


def ifd_loss_ratio(nll_given: Floats, nll_alone: Floats) -> Floats:
    """Cherry's IFD (2308.12032), from mean negative log-likelihoods per token, ``[row]``.

    A completion that costs nothing by itself has the ratio infinity, or one if it costs nothing
    after the prompt either.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(nll_given == nll_alone, 1.0, nll_given / nll_alone)


def num_selected(share: float | int, num_rows: int) -> int:
    """How many rows a share or a count is.

    Args:
        share: A fraction below 1 or equal to 1.0, rounded down to whole rows but not to none; or a
            count, an ``int``.
        num_rows: The rows that the share is of.
    """
    if isinstance(share, int):
        return min(share, num_rows)
    exact = Fraction(str(share)) * num_rows  # 0.29 * 100 in binary is less than 29
    return min(num_rows, max(1, int(exact)))


def top(values: Floats, ids: Sequence[str], count: int) -> NDArray[np.intp]:
    """Rows of the highest values, ties in the order of the ids; the order of the rows is nothing.

    Args:
        values: Finite or infinite, not NaN, ``[row]``.
        ids: Of the rows, unique.
        count: How many to take.

    Returns:
        Row numbers, best first.
    """
    if np.isnan(values).any():
        raise ValueError("a value is NaN: leave rows without a value out of the ranking")
    order = np.lexsort((np.array(ids), -values))
    return order[:count]


def random_rows(ids: Sequence[str], count: int, *, seed: int) -> NDArray[np.intp]:
    """Rows drawn without replacement; which ones follows from the ids and the seed alone."""
    by_id = np.argsort(np.array(ids), kind="stable")
    drawn = np.random.default_rng(seed).permutation(len(ids))
    return by_id[drawn[:count]]


def matched_rows(
    groups: NDArray[np.intp], chosen: NDArray[np.intp], ids: Sequence[str], *, seed: int
) -> NDArray[np.intp]:
    """Random rows with as many from each group as another selection has.

    Args:
        groups: Group of each row, such as the decile of its length.
        chosen: Row numbers of the other selection.
        ids: Of the rows.
        seed: Seed of the draw.
    """
    found: list[NDArray[np.intp]] = []
    for group in np.unique(groups[chosen]).tolist():
        members = np.flatnonzero(groups == group)
        count = int((groups[chosen] == group).sum())
        drawn = random_rows([ids[row] for row in members.tolist()], count, seed=seed + group)
        found.append(members[drawn])
    return np.concatenate(found) if found else np.array([], dtype=np.intp)
