"""Drawings of weights: one or several model families on the same rows (Figures 2 and 4)."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from atlantis.report.artifacts import FloatArray
from atlantis.report.charts import (
    BLUE,
    HEIGHT,
    MUTED,
    WIDTH,
    Chart,
    inline_data,
    series_color,
)
from atlantis.report.densities import SHOWN

_NUM_CELLS = 40


def distribution_chart(densities: Mapping[str, Any]) -> Chart:
    """Densities of weights on a linear and on a logarithmic axis, side by side.

    Args:
        densities: What `atlantis.report.densities` gives.
    """
    titles, x = densities["titles"], densities["axis"]
    left = _lines(densities["linear"], titles, alt.Scale(zero=False), x, "density")
    right = _lines(densities["log"], titles, alt.Scale(type="log"), x, "density of its log10")
    return alt.hconcat(left, right)


def joint_chart(first: FloatArray, second: FloatArray, *, titles: tuple[str, str]) -> Chart:
    """How many rows have which pair of weights (finite log-weights), on logarithmic axes."""
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
    side = HEIGHT + 60
    return alt.layer(density, vertical, across).properties(width=side, height=side)


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


def _edges(values: FloatArray) -> FloatArray:
    low, high = np.quantile(values, SHOWN)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _NUM_CELLS + 1)
