"""Numbers behind the distributions of weights of one or several families (Figures 2 and 4)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import gaussian_kde

from atlantis.report.artifacts import FloatArray, WeightTable
from atlantis.report.words import arm_title

_NUM_POINTS = 200
_MOST_VALUES = 20_000
"""Values of an estimate; of more, evenly spaced order statistics stand for all."""
_LARGEST_LOG = 300.0
"""Ratios above ``exp`` of this have no linear axis."""
SHOWN = (0.005, 0.995)
"""Quantiles between which the axes run: a few weights may be far outside."""


class WeightSample(NamedTuple):
    """Finite log-weights of some rows, and what they are called."""

    title: str
    mean_one: FloatArray
    """As trained."""
    before_mean_one: FloatArray | None
    """A 0 is a ratio of 1; None where that is not known."""


def densities(samples: Sequence[WeightSample]) -> dict[str, Any]:
    """Kernel density estimates of weights and of their decimal logarithms.

    What 1 means is the same for all: a ratio of 1 where every sample tells it (and has a ratio
    that fits a linear axis), else the mean weight.

    Returns:
        ``axis`` says what a weight is, ``titles`` names the samples, ``linear`` and ``log`` have
        the points, ``x`` being the weight in both. A constant sample has no points.
    """
    ratios = [sample.before_mean_one for sample in samples]
    known = [r for r in ratios if r is not None and r.max(initial=0.0) < _LARGEST_LOG]
    is_ratio = len(known) == len(samples)
    logs = known if is_ratio else [sample.mean_one for sample in samples]
    titles = [sample.title for sample in samples]
    log_points = _points(titles, [values / np.log(10) for values in logs])
    return {
        "axis": "ratio" if is_ratio else "weight, mean one",
        "titles": titles,
        "linear": _points(titles, [np.exp(values) for values in logs]),
        "log": [{**point, "x": _rounded(10.0 ** point["x"])} for point in log_points],
    }


def arm_densities(weights: Mapping[str, Mapping[int, WeightTable]]) -> dict[str, Any] | None:
    """`densities` of the arms of an experiment, each over all rows and seeds.

    Arms with the same weights (a permutation changes none) share one line. An arm that selects
    rows, or weighs all alike, has none. None where no arm is left.
    """
    samples: dict[bytes, WeightSample] = {}
    for arm, tables in weights.items():
        if any(np.isneginf(table.log_weights).any() for table in tables.values()):
            continue
        sample = _pooled(arm_title(arm), list(tables.values()))
        if sample.mean_one.size < 2 or np.ptp(sample.mean_one) < 1e-9:
            continue
        # Mean one is per token, and a permutation moves weights to other lengths.
        known = sample.mean_one if sample.before_mean_one is None else sample.before_mean_one
        key = np.sort(known.round(9)).tobytes()
        if key in samples:
            samples[key] = samples[key]._replace(title=f"{samples[key].title} / {sample.title}")
        else:
            samples[key] = sample
    return densities(list(samples.values())) if samples else None


def _pooled(title: str, tables: Sequence[WeightTable]) -> WeightSample:
    logs = [table.log_weights[np.isfinite(table.log_weights)] for table in tables]
    shifts: list[Any] = [table.diagnostics.get("log_normaliser") for table in tables]
    before = None
    if None not in shifts:
        before = np.concatenate([log + shift for log, shift in zip(logs, shifts, strict=True)])
    return WeightSample(title, np.concatenate(logs), before)


def _points(titles: Sequence[str], values: Sequence[FloatArray]) -> list[dict[str, Any]]:
    """Points of a density estimate of each, over a common range."""
    low, high = np.quantile(np.concatenate(values), SHOWN)
    grid = np.linspace(low, high, _NUM_POINTS)
    points: list[dict[str, Any]] = []
    for title, of in zip(titles, values, strict=True):
        inside = np.sort(of[(of >= low) & (of <= high)])
        if inside.size < 2 or np.ptp(inside) < 1e-9:  # constant weights have no density
            continue
        share = inside.size / of.size
        places = np.linspace(0, inside.size - 1, min(inside.size, _MOST_VALUES)).round()
        heights = gaussian_kde(inside[places.astype(np.intp)])(grid) * share
        points += [
            {"title": title, "x": _rounded(x), "y": _rounded(y)}
            for x, y in zip(grid.tolist(), heights.tolist(), strict=True)
        ]
    return points


def _rounded(value: float) -> float:
    """Six digits: the drawing shows no more, and the last bits depend on the machine."""
    return float(f"{value:.6g}")
