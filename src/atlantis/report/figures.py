"""Numbers of the report -> charts as inline SVG; see `atlantis.report.charts` for how they look."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from atlantis.report.charts import (
    BLUE,
    GREEN,
    HEIGHT,
    INK,
    MUTED,
    ORANGE,
    RED,
    WIDTH,
    Chart,
    inline_data,
    series_color,
    svg,
)
from atlantis.report.weight_figures import distribution_chart
from atlantis.report.words import OUTCOME_WORDS

_OUTCOME_COLORS = {"better": GREEN, "worse": RED, "no difference shown": MUTED}
_KIND_TITLES = {"right": "label right", "wrong": "label wrong", "unknown": "right label unknown"}
_KIND_COLORS = dict(zip(_KIND_TITLES.values(), (BLUE, ORANGE, MUTED), strict=True))
_ROW = 24


def figures(document: Mapping[str, Any]) -> dict[str, str]:
    """Every chart for which the document has numbers: name -> SVG."""
    weights, results = document["weights"] or {}, document["results"]
    drawn: dict[str, Chart | None] = {
        "scores": _scores(results),
        "versus_baseline": _differences(results, "versus_baseline"),
        "versus_control": _differences(results, "versus_control"),
        "histogram": _histogram(weights.get("histogram")),
        "densities": distribution_chart(found) if (found := weights.get("densities")) else None,
        "by_label": _by_label(weights.get("by_label")),
        "lorenz": _lorenz(weights.get("lorenz")),
        "by_length": _by_length(weights.get("by_length")),
        "loss": _loss(document["training"]),
    }
    return {name: svg(chart) for name, chart in drawn.items() if chart is not None}


def _meaning_color(field: str, colors: Mapping[str, str], present: Iterable[str]) -> alt.Color:
    domain = list(dict.fromkeys(present))
    scale = alt.Scale(domain=domain, range=[colors[name] for name in domain])
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(columns=3))


def _by_row(rows: Sequence[Mapping[str, Any]], key: str = "title") -> alt.Y:
    return alt.Y(
        f"{key}:N",
        sort=[row[key] for row in rows],
        title=None,
        axis=alt.Axis(grid=False, ticks=False, domain=False, labelPadding=8),
    )


def _scores(results: Mapping[str, Any]) -> Chart:
    """Mean, interval and the single seeds of the headline metric, one line per arm."""
    metric = results["headline"]
    rows = [{"title": row["title"], **row["metrics"][metric]} for row in results["rows"]]
    seeds = [{"title": row["title"], "seed": value} for row in rows for value in row["per_seed"]]
    y, scale = _by_row(rows), alt.Scale(zero=False, nice=True)
    base = alt.Chart(inline_data(rows))
    rule = base.mark_rule(color=BLUE, strokeWidth=3, opacity=0.45).encode(
        y=y,
        x=alt.X("low:Q", scale=scale, title=results["headline_title"]),
        x2="high:Q",
        description="shown:N",
    )
    dots = (
        alt.Chart(inline_data(seeds))
        .mark_point(color=INK, size=34, strokeWidth=1.3)
        .encode(y=y, x=alt.X("seed:Q", scale=scale, title=results["headline_title"]))
    )
    means = base.mark_point(color=BLUE, fill=BLUE, size=70, opacity=1).encode(
        y=y, x=alt.X("mean:Q", scale=scale), description="shown:N"
    )
    return alt.layer(rule, means, dots).properties(width=WIDTH + 240, height=_ROW * len(rows) + 10)


def _differences(results: Mapping[str, Any], versus: str) -> Chart | None:
    """Paired differences with intervals, coloured by what they show."""
    metric = results["headline"]
    rows = [
        {
            "title": row["title"],
            **row[versus][metric],
            "outcome": OUTCOME_WORDS[row[versus][metric]["outcome"]],
        }
        for row in results["rows"]
        if row[versus] and metric in row[versus]
    ]
    if not rows:
        return None
    color = _meaning_color("outcome", _OUTCOME_COLORS, [row["outcome"] for row in rows])
    y, base = _by_row(rows), alt.Chart(inline_data(rows))
    title = f"difference in {results['headline_title']}"
    zero = alt.Chart(inline_data([{"zero": 0}])).mark_rule(color=MUTED, strokeDash=[4, 3])
    rules = base.mark_rule(strokeWidth=3, opacity=0.55).encode(
        y=y, x=alt.X("low:Q", title=title), x2="high:Q", color=color, description="shown:N"
    )
    dots = base.mark_circle(size=80, opacity=1).encode(
        y=y, x=alt.X("difference:Q", title=title), color=color, description="shown:N"
    )
    return alt.layer(zero.encode(x="zero:Q"), rules, dots).properties(
        width=WIDTH - 60, height=_ROW * len(rows) + 10
    )


def _histogram(section: Mapping[str, Any] | None) -> Chart | None:
    if section is None:
        return None
    rows = [dict(row) | {"kind": _KIND_TITLES[row["kind"]]} for row in section["bins"]]
    color = _meaning_color("kind", _KIND_COLORS, [row["kind"] for row in rows])
    return (
        alt.Chart(inline_data([row for row in rows if row["count"]]))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "low:Q",
                bin="binned",
                title="log weight (natural)",
                axis=alt.Axis(grid=False, tickCount=8),
            ),
            x2="high:Q",
            y=alt.Y("count:Q", title="examples (mean over seeds)", stack="zero"),
            color=color,
            order=alt.Order("kind:N"),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def _by_label(rows: Sequence[Mapping[str, Any]] | None) -> Chart | None:
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: (-row["mean"], row["label"]))
    labelled = [dict(row) | {"text": f"{row['shown']}  (n {row['n']:,})"} for row in ordered]
    y, base = _by_row(labelled, "label"), alt.Chart(inline_data(labelled))
    scale = alt.Scale(domainMin=0, domainMax=max(1.0, ordered[0]["mean"]) * 1.04, nice=False)
    x = alt.X("mean:Q", title="mean weight", scale=scale)
    one = alt.Chart(inline_data([{"one": 1}])).mark_rule(color=MUTED, strokeDash=[4, 3])
    width = WIDTH - 110
    bars = base.mark_bar(color=BLUE, opacity=0.8, height=11).encode(y=y, x=x)
    texts = base.mark_text(align="left", dx=8, color=INK, fontSize=11)
    return alt.layer(
        bars,
        one.encode(x=alt.X("one:Q", scale=scale)),
        texts.encode(y=y, x=alt.value(width), text="text:N"),
    ).properties(width=width, height=18 * len(labelled))


def _lorenz(curves: Sequence[Mapping[str, Any]] | None) -> Chart | None:
    if not curves:
        return None
    rows = [{"title": c["title"], "x": x, "y": y} for c in curves for x, y in c["points"]]
    axis, scale = alt.Axis(format="%"), alt.Scale(domain=[0, 1])
    equal = alt.Chart(inline_data([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    x = alt.X("x:Q", title="share of examples, lightest first", axis=axis, scale=scale)
    y = alt.Y("y:Q", title="share of all weight", axis=axis, scale=scale)
    color = series_color([curve["title"] for curve in curves])
    return alt.layer(
        equal.mark_line(color=MUTED, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
        alt.Chart(inline_data(rows)).mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
    ).properties(width=WIDTH, height=HEIGHT)


def _by_length(rows: Sequence[Mapping[str, Any]] | None) -> Chart | None:
    if not rows:
        return None
    base = alt.Chart(inline_data(rows))
    x = alt.X(
        "title:N",
        sort=[row["title"] for row in rows],
        title="completion length in tokens",
        axis=alt.Axis(labelAngle=0),
    )
    title = "weight: mean, and middle half"
    bands = base.mark_bar(color=BLUE, opacity=0.3, width={"band": 0.5})
    means = base.mark_point(color=BLUE, fill=BLUE, size=60, opacity=1)
    return alt.layer(
        bands.encode(x=x, y=alt.Y("lower_quartile:Q", title=title), y2="upper_quartile:Q"),
        means.encode(x=x, y=alt.Y("mean:Q", title=title)),
    ).properties(width=WIDTH, height=HEIGHT)


def _loss(curves: Sequence[Mapping[str, Any]]) -> Chart | None:
    rows = [
        {"title": curve["title"], "step": step, "loss": loss}
        for curve in curves
        for step, loss in curve["points"]
    ]
    if not rows:
        return None
    return (
        alt.Chart(inline_data(rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("step:Q", title="optimizer step", axis=alt.Axis(grid=False)),
            y=alt.Y("loss:Q", title="training loss (seed mean)", scale=alt.Scale(zero=False)),
            color=series_color([curve["title"] for curve in curves if curve["points"]]),
        )
        .properties(width=WIDTH + 240, height=HEIGHT)
    )
