"""Distributions of weights: one or several model families on the same rows (Figures 2 and 4)."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from atlantis.report.charts import (
    BLUE,
    HEIGHT,
    MUTED,
    WIDTH,
    Chart,
    inline_data,
    series_color,
    svg,
)

Floats = NDArray[np.float64]
_NUM_POINTS = 200
_NUM_CELLS = 40
_SHOWN = (0.005, 0.995)
"""Quantiles between which the axes run: a few weights may be far outside."""


def distribution_figure(log_weights: Mapping[str, Floats], *, axis_title: str) -> str:
    """Densities of weights on a linear and on a logarithmic axis, side by side, as SVG.

    Args:
        log_weights: Finite log-weights by what they are called.
        axis_title: What a weight of 1 is: the ratio, or the mean weight.
    """
    linear = _densities({title: np.exp(values) for title, values in log_weights.items()})
    logarithmic = _densities({t: values / np.log(10) for t, values in log_weights.items()})
    for row in logarithmic:
        row["x"] = 10.0 ** row["x"]
    titles = list(log_weights)
    left = _lines(linear, titles, alt.Scale(zero=False), axis_title, "density")
    right = _lines(logarithmic, titles, alt.Scale(type="log"), axis_title, "density of its log10")
    return svg(alt.hconcat(left, right), standalone=True)


def joint_figure(first: Floats, second: Floats, *, titles: tuple[str, str]) -> str:
    """How many rows have which pair of weights, on logarithmic axes, as SVG."""
    edges = [_edges(values / np.log(10)) for values in (first, second)]
    counts, _, _ = np.histogram2d(first / np.log(10), second / np.log(10), bins=edges)
    cells = [
        {
            "x": 10 ** edges[0][i],
            "x2": 10 ** edges[0][i + 1],
            "y": 10 ** edges[1][j],
            "y2": 10 ** edges[1][j + 1],
            "rows": int(counts[i, j]),
        }
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    log = alt.Scale(type="log", nice=False)
    one = inline_data([{"one": 1}])
    density = (
        alt.Chart(inline_data(cells))
        .mark_rect(color=BLUE)
        .encode(
            x=alt.X("x:Q", scale=log, title=f"weight, {titles[0]}"),
            x2="x2:Q",
            y=alt.Y("y:Q", scale=log, title=f"weight, {titles[1]}"),
            y2="y2:Q",
            opacity=alt.Opacity("rows:Q", scale=alt.Scale(range=[0.08, 1]), legend=None),
        )
    )
    rules = alt.Chart(one)
    vertical = rules.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x=alt.X("one:Q", scale=log))
    across = rules.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y=alt.Y("one:Q", scale=log))
    chart = alt.layer(density, vertical, across).properties(width=HEIGHT + 60, height=HEIGHT + 60)
    return svg(chart, standalone=True)


def _densities(values: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """Points of a kernel density estimate of each, over a common range."""
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, _SHOWN)
    grid = np.linspace(low, high, _NUM_POINTS)
    rows: list[dict[str, Any]] = []
    for title, of in values.items():
        inside = of[(of >= low) & (of <= high)]
        if inside.size < 2 or np.ptp(inside) == 0:  # constant weights have no density
            continue
        heights = gaussian_kde(inside)(grid) * inside.size / of.size
        rows += [
            {"title": title, "x": float(x), "y": float(y)}
            for x, y in zip(grid, heights, strict=True)
        ]
    return rows


def _lines(
    rows: list[dict[str, Any]], titles: list[str], scale: alt.Scale, x: str, y: str
) -> Chart:
    one = alt.Chart(inline_data([{"one": 1}])).mark_rule(color=MUTED, strokeDash=[4, 3])
    lines = alt.Chart(inline_data(rows)).mark_line(strokeWidth=2)
    return alt.layer(
        one.encode(x=alt.X("one:Q", scale=scale)),
        lines.encode(
            x=alt.X("x:Q", title=x, scale=scale),
            y=alt.Y("y:Q", title=y),
            color=series_color(titles),
        ),
    ).properties(width=WIDTH, height=HEIGHT)


def _edges(values: Floats) -> Floats:
    low, high = np.quantile(values, _SHOWN)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _NUM_CELLS + 1)
