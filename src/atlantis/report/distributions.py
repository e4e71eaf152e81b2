"""Numbers behind the pictures of the weights: histogram, classes, concentration, length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atlantis.report.artifacts import FloatArray, ScoreTable, TrainTable, WeightTable
from atlantis.report.words import arm_title, percent, significant

_NUM_BINS = 36
_NUM_LORENZ_POINTS = 41
_MOST_LENGTHS = 12


def label_kinds(train: TrainTable) -> tuple[str, ...]:
    """Per example whether its label is ``right``, ``wrong``, or of ``unknown`` correctness."""
    return tuple(
        "unknown" if gold is None else "right" if gold == label else "wrong"
        for label, gold in zip(train.labels, train.gold_labels, strict=True)
    )


def histogram(train: TrainTable, tables: Mapping[int, WeightTable]) -> dict[str, Any] | None:
    """Examples per bin of the log weight, mean over seeds, by correctness of the label.

    Weights of zero have no logarithm and are counted beside the bins. None where no log weight is
    finite.
    """
    log_weights = np.stack([table.log_weights for table in tables.values()])
    finite = np.isfinite(log_weights)
    if not finite.any():
        return None
    edges = _edges(log_weights[finite])
    kinds = np.array(label_kinds(train))
    bins = [
        {"low": float(low), "high": float(high), "kind": kind, "count": float(count)}
        for kind in ("right", "wrong", "unknown")
        if (kinds == kind).any()
        for low, high, count in zip(
            edges[:-1],
            edges[1:],
            _counts(log_weights, finite & (kinds == kind), edges) / len(log_weights),
            strict=True,
        )
    ]
    zero = float(np.isneginf(log_weights).sum() / len(log_weights))
    return {"bins": bins, "num_zero_weight": zero}


def _edges(values: FloatArray) -> FloatArray:
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:  # constant weights, up to rounding: one bar of visible width
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, _NUM_BINS + 1)


def _counts(
    values: FloatArray, keep: npt.NDArray[np.bool_], edges: FloatArray
) -> npt.NDArray[np.int64]:
    return np.histogram(values[keep], bins=edges)[0]


def weight_by_label(train: TrainTable, tables: Mapping[int, WeightTable]) -> list[dict[str, Any]]:
    """Mean weight per class as trained (over rows, then over seeds), and the wrong share."""
    weights = np.stack([table.weights for table in tables.values()])
    kinds = np.array(label_kinds(train))
    labels = np.array(["" if label is None else label for label in train.labels])
    rows: list[dict[str, Any]] = []
    for label in sorted({label for label in train.labels if label is not None}):
        here = labels == label
        per_seed = [_mean(values[here]) for values in weights]
        known = here & (kinds != "unknown")
        if None not in per_seed:
            mean = float(np.mean([value for value in per_seed if value is not None]))
            share = float((kinds[known] == "wrong").mean()) if known.any() else None
            rows.append(
                {
                    "label": label,
                    "n": int(here.sum()),
                    "mean": mean,
                    "per_seed": per_seed,
                    "shown": significant(mean),
                    "wrong_fraction": share,
                    "wrong_shown": "–" if share is None else percent(share),
                }
            )
    return rows


def _mean(values: FloatArray) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


def lorenz_curves(
    weights: Mapping[str, Mapping[int, WeightTable]],
) -> list[dict[str, Any]]:
    """Share of all weight held by the lightest share of examples, mean over seeds, per arm.

    Arms with the same curve (a permutation changes none of it) share one entry.
    """
    curves: dict[tuple[float, ...], list[str]] = {}
    for arm, tables in weights.items():
        by_seed = [_lorenz(table.weights) for table in tables.values()]
        mean = tuple(round(float(share), 6) for share in np.mean(by_seed, axis=0))
        curves.setdefault(mean, []).append(arm)
    grid = np.linspace(0, 1, _NUM_LORENZ_POINTS)
    return [
        {
            "arms": arms,
            "title": " / ".join(arm_title(arm) for arm in arms),
            "points": [[round(float(x), 6), y] for x, y in zip(grid, curve, strict=True)],
        }
        for curve, arms in curves.items()
    ]


def _lorenz(weights: FloatArray) -> FloatArray:
    ordered = np.sort(weights[~np.isnan(weights)])
    cumulative = np.append(0.0, np.cumsum(ordered)) / ordered.sum()
    positions = np.linspace(0, 1, len(cumulative))
    return np.interp(np.linspace(0, 1, _NUM_LORENZ_POINTS), positions, cumulative)


def weight_by_length(
    tables: Mapping[int, WeightTable], scores: Mapping[int, ScoreTable]
) -> list[dict[str, Any]]:
    """Mean and quartiles of the weight by completion length, pooled over seeds.

    One group per length, or ten groups of near equal size where there are many lengths. Empty where
    all completions are equally long or no length is known.
    """
    shared = [seed for seed in tables if seed in scores]
    if not shared:
        return []
    lengths = np.concatenate([scores[seed].num_tokens for seed in shared])
    weights = np.concatenate([tables[seed].weights for seed in shared])
    usable = ~np.isnan(lengths) & ~np.isnan(weights)
    lengths, weights = lengths[usable], weights[usable]
    distinct = np.unique(lengths)
    if len(distinct) < 2:
        return []
    uppers = distinct if len(distinct) <= _MOST_LENGTHS else _decile_bounds(lengths)
    group = np.searchsorted(uppers, lengths)
    return [
        _length_row(lengths[group == g], weights[group == g], num_seeds=len(shared))
        for g in np.unique(group)
    ]


def _decile_bounds(lengths: FloatArray) -> FloatArray:
    return np.unique(np.quantile(lengths, np.linspace(0.1, 1, 10), method="higher"))


def _length_row(lengths: FloatArray, weights: FloatArray, *, num_seeds: int) -> dict[str, Any]:
    low, high = int(lengths.min()), int(lengths.max())
    lower, upper = (float(q) for q in np.quantile(weights, (0.25, 0.75)))
    return {
        "low": low,
        "high": high,
        "title": f"{low}" if low == high else f"{low}–{high}",
        "n": round(weights.size / num_seeds),
        "mean": float(weights.mean()),
        "lower_quartile": lower,
        "upper_quartile": upper,
    }


def loss_curve(losses: Sequence[Sequence[Sequence[float]]], *, most: int = 60) -> list[list[float]]:
    """The mean over seeds of ``[step, loss]``, at the steps that every seed logged.

    More than ``most`` points are averaged in runs of neighbours.
    """
    by_seed = [{int(step): float(loss) for step, loss in curve} for curve in losses]
    steps = sorted(set.intersection(*(set(curve) for curve in by_seed))) if by_seed else []
    means = [float(np.mean([curve[step] for curve in by_seed])) for step in steps]
    width = -(-len(steps) // most) if steps else 1
    return [
        [float(np.mean(steps[start : start + width])), float(np.mean(means[start : start + width]))]
        for start in range(0, len(steps), width)
    ]
