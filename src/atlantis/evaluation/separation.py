"""How far a scheme's weights tell right labels from wrong ones, measured on held-out rows.

Every held-out trusted row is scored twice, with its true label and with a wrong one drawn as the
training labels are distributed. No true label of a training row is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlantis.evaluation.stage import true_label
from atlantis.numerics.statistics import paired_bootstrap_counts, percentile_interval
from atlantis.records import Example

_NUM_REPLICATES = 1000
_RIGHT, _WRONG = "right-", "wrong-"


def probe_rows(
    heldout: Sequence[Example],
    train: Sequence[Example],
    completions: Mapping[str, str],
    *,
    seed: int,
) -> list[Example]:
    """Held-out rows with their true label, then the same rows with a wrong one.

    Args:
        heldout: Trusted rows; a row whose true label is the only training label is left out.
        train: Training rows, for how often each label is given.
        completions: How each label stands after a prompt.
        seed: Seed of the wrong labels.
    """
    rng = np.random.default_rng(seed)
    given = [str(row.label) for row in train]
    right: list[Example] = []
    wrong: list[Example] = []
    for row in heldout:
        others = [label for label in given if label != true_label(row)]
        if others:
            drawn = others[int(rng.integers(len(others)))]
            right.append(_labelled(row, _RIGHT, true_label(row), completions))
            wrong.append(_labelled(row, _WRONG, drawn, completions))
    return right + wrong


def separation(
    rows: Sequence[Example], log_weights: Mapping[str, float], *, within_label: bool, seed: int
) -> dict[str, Any] | None:
    """Probability that a right label outweighs a wrong one: the area under the ROC curve.

    Args:
        rows: What `probe_rows` returned.
        log_weights: Log-weight of each row by id. A held-out row is left out, right and wrong,
            where either has none.
        within_label: Compare only rows of the same label, as weights do that are normalised
            within labels.
        seed: Seed of the bootstrap over held-out rows.

    Returns:
        ``mean``, the 95 % interval ``low`` and ``high``, and ``n`` held-out rows that are left;
        None where there is no pair to compare.
    """
    right, wrong = _scored_halves(rows, log_weights)
    higher = np.array([log_weights[row.example_id] for row in right])[:, None]
    lower = np.array([log_weights[row.example_id] for row in wrong])[None, :]
    wins = (higher > lower) + 0.5 * (higher == lower)
    counted = np.ones_like(wins)
    if within_label:
        counted = np.array([[float(r.label == w.label) for w in wrong] for r in right])
    if not counted.any():
        return None
    chunks = paired_bootstrap_counts(len(right), _NUM_REPLICATES, np.random.default_rng(seed))
    replicates = np.concatenate([_shares(counts, wins, counted) for counts in chunks])
    mean = float((wins * counted).sum() / counted.sum())
    interval = percentile_interval(mean, replicates[~np.isnan(replicates)], level=0.95)
    return {"mean": mean, "low": interval.low, "high": interval.high, "n": len(right)}


def _scored_halves(
    rows: Sequence[Example], log_weights: Mapping[str, float]
) -> tuple[list[Example], list[Example]]:
    """Rows with the right label, and the same ones with a wrong label, that both have a weight."""
    half = len(rows) // 2
    pairs = [
        (right, wrong)
        for right, wrong in zip(rows[:half], rows[half:], strict=True)
        if right.example_id in log_weights and wrong.example_id in log_weights
    ]
    return [right for right, _ in pairs], [wrong for _, wrong in pairs]


def _shares(
    counts: NDArray[np.int64], wins: NDArray[np.float64], counted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of won pairs in each replicate; NaN where a replicate has no pair."""
    won = ((counts @ (wins * counted)) * counts).sum(1)
    pairs = ((counts @ counted) * counts).sum(1)
    return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _labelled(row: Example, prefix: str, label: str, completions: Mapping[str, str]) -> Example:
    return replace(
        row, example_id=prefix + row.example_id, label=label, completion=completions[label]
    )
