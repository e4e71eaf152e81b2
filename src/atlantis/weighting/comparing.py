"""Two sets of weights for the same rows: do they say the same?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlantis.errors import WeightError
from atlantis.numerics.diagnostics import rank_correlation
from atlantis.numerics.statistics import Interval, paired_bootstrap_counts, percentile_interval
from atlantis.weighting.weights import Weights

Floats = NDArray[np.float64]
TOP_SHARES = (0.05, 0.1, 0.2, 0.5)


class Pair(NamedTuple):
    """Log-weights of the rows that both have, before mean one where that is known."""

    first: Floats
    second: Floats
    num_left_out: int
    """Rows that only one of them could weigh."""
    is_raw: bool
    """Whether a log-weight of 0 is a ratio of 1, or else the mean weight."""


def paired(first: Weights, second: Weights) -> Pair:
    """Join two sets of weights by id.

    Raises:
        WeightError: They are of other rows, or no row has a weight in both.
    """
    if sorted(first.example_id) != sorted(second.example_id):
        missing = set(first.example_id) ^ set(second.example_id)
        raise WeightError(
            f"the weights are of other rows: example {min(missing)!r} is in one of them only"
        )
    other = dict(zip(second.example_id, second.log_weight, strict=True))
    rows = zip(first.example_id, first.log_weight, strict=True)
    pairs = [(a, other[name]) for name, a in rows]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known:
        raise WeightError("no row has a weight in both")
    shifts = log_normalisers([first, second])
    values = np.array(known) + (0.0 if shifts is None else np.array(shifts))
    return Pair(values[:, 0], values[:, 1], len(pairs) - len(known), shifts is not None)


def log_normalisers(weights: Sequence[Weights]) -> list[float] | None:
    """What takes each one's log-weights back before mean one; None unless known of all."""
    found: list[float] = []
    for each in weights:
        shift = each.diagnostics.get("log_normaliser")
        if shift is None:
            return None
        found.append(float(shift))
    return found


def compare(pair: Pair, *, num_replicates: int = 2000, seed: int = 0) -> dict[str, Any]:
    """How far two sets of weights agree.

    Returns:
        ``spearman``: rank correlation with its bootstrap interval over rows.
        ``top_overlap``: for each share, how much of the heaviest rows of the one are among those of
        the other; chance gives the share itself.
        ``disagreement``: share of rows with a weight above 1 in the one and at most 1 in the other,
        with its interval, and what independent weights with the same shares above 1 would give.
    """
    above = pair.first > 0, pair.second > 0
    differs = above[0] != above[1]
    shares = [float(side.mean()) for side in above]
    rng = np.random.default_rng(seed)
    spearmans: list[float | None] = []
    rates: list[float] = []
    for counts in paired_bootstrap_counts(differs.size, num_replicates, rng):
        rates += (counts @ differs / differs.size).tolist()
        for drawn in counts[: max(0, 200 - len(spearmans))]:
            rows = np.repeat(np.arange(differs.size), drawn)
            spearmans.append(rank_correlation(pair.first[rows], pair.second[rows]))
    found = [value for value in spearmans if value is not None]
    spearman = rank_correlation(pair.first, pair.second)
    return {
        "num_rows": int(differs.size),
        "num_left_out": pair.num_left_out,
        "threshold": "ratio of 1" if pair.is_raw else "mean weight",
        "spearman": None if spearman is None else _interval(spearman, found),
        "top_overlap": {str(share): _overlap(pair, share) for share in TOP_SHARES},
        "share_above_1": shares,
        "disagreement": _interval(float(differs.mean()), rates)
        | {"independent": shares[0] * (1 - shares[1]) + shares[1] * (1 - shares[0])},
    }


def _interval(estimate: float, replicates: Sequence[float]) -> dict[str, float]:
    interval: Interval = percentile_interval(estimate, np.array(replicates), level=0.95)
    return {"estimate": estimate, "low": interval.low, "high": interval.high}


def _overlap(pair: Pair, share: float) -> float:
    """Ties are broken by the order of the rows, the same in both."""
    count = max(1, int(share * pair.first.size))
    heaviest = [set(np.argsort(-side, kind="stable")[:count].tolist()) for side in pair[:2]]
    return len(heaviest[0] & heaviest[1]) / count
