"""Numbers of the report -> charts as inline SVG: no script, light colours, dark ones by style.

Vega-Lite draws with the light colours of `PALETTE`; `dark_style` repaints them where the reader
prefers a dark screen. Hovering shows a mark's values (an SVG title).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert as vlc

from atlantis.report.words import OUTCOME_WORDS

PALETTE = {
    "#1d2733": "#e6eaf0",  # ink
    "#5b6775": "#a3aebb",  # muted
    "#e3e7ec": "#2c3540",  # grid
    "#b9c2cc": "#4d5966",  # axis
    "#1f5fa8": "#7db3f5",  # blue
    "#c2540a": "#f5a35c",  # orange
    "#2e7d4f": "#6fcf97",  # green
    "#7a4fa3": "#c39be8",  # purple
    "#0f7c86": "#5cc8d2",  # teal
    "#b3363d": "#f28b8f",  # red
    "#7b6a4d": "#cdb892",  # brown
}
"""Light colour -> the one that replaces it on a dark screen."""
_INK, _MUTED, _GRID, _AXIS, *_SERIES = PALETTE
_BLUE, _ORANGE, _GREEN, _, _, _RED, _ = _SERIES
_OUTCOME_COLORS = {"better": _GREEN, "worse": _RED, "no difference shown": _MUTED}
_KIND_TITLES = {"right": "label right", "wrong": "label wrong", "unknown": "right label unknown"}
_KIND_COLORS = dict(zip(_KIND_TITLES.values(), (_BLUE, _ORANGE, _MUTED), strict=True))
_WIDTH, _HEIGHT, _ROW = 360, 230, 24
_Chart = alt.Chart | alt.LayerChart | alt.FacetChart
_SELF_CLOSED = re.compile(r'<(path|rect|line)( [^<>]*?aria-label="([^"]*)"[^<>]*?)/>')
_NAMESPACES = re.compile(r' xmlns(?::xlink)?="[^"]*"')
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def figures(document: Mapping[str, Any]) -> dict[str, str]:
    """Every chart for which the document has numbers: name -> SVG."""
    weights, results = document["weights"] or {}, document["results"]
    drawn: dict[str, _Chart | None] = {
        "scores": _scores(results),
        "versus_baseline": _differences(results, "versus_baseline"),
        "versus_control": _differences(results, "versus_control"),
        "histogram": _histogram(weights.get("histogram")),
        "by_label": _by_label(weights.get("by_label")),
        "lorenz": _lorenz(weights.get("lorenz")),
        "by_length": _by_length(weights.get("by_length")),
        "loss": _loss(document["training"]),
    }
    return {name: _svg(chart) for name, chart in drawn.items() if chart is not None}


def dark_style() -> str:
    """Style rules that repaint the charts for a dark screen."""
    return "\n".join(
        f'figure svg [{attribute}="{light}"]{{{attribute}:{dark}}}'
        for light, dark in PALETTE.items()
        for attribute in ("fill", "stroke")
    )


def _svg(chart: _Chart) -> str:
    styled = chart.configure(
        background="transparent",
        font="Arial, Liberation Sans, Helvetica, sans-serif",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=_INK,
            titleColor=_MUTED,
            gridColor=_GRID,
            domainColor=_AXIS,
            tickColor=_AXIS,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelLimit=230,
            titlePadding=8,
        ),
        legend=alt.LegendConfig(
            labelColor=_INK,
            titleColor=_MUTED,
            labelFontSize=12,
            orient="top",
            title=None,
            labelLimit=400,
            columns=1,
            symbolStrokeWidth=3,
            rowPadding=3,
        ),
    )
    # Without clipped marks there are no ids, which vl-convert numbers through the process's life:
    # the second chart of the same numbers would have other ones.
    return _inline(vlc.vegalite_to_svg(styled.to_json(), vl_version=_VEGA_LITE))


def _inline(svg: str) -> str:
    """Make an SVG fit to stand in a page: no namespaces, and the value of a mark on hover."""
    return _SELF_CLOSED.sub(r"<\1\2><title>\3</title></\1>", _NAMESPACES.sub("", svg))


def _data(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows])


def _meaning_color(field: str, colors: Mapping[str, str], present: Iterable[str]) -> alt.Color:
    domain = list(dict.fromkeys(present))
    scale = alt.Scale(domain=domain, range=[colors[name] for name in domain])
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(columns=3))


def _series_color(titles: Sequence[str]) -> alt.Color:
    colors = [_SERIES[place % len(_SERIES)] for place in range(len(titles))]
    return alt.Color(
        "title:N",
        scale=alt.Scale(domain=list(titles), range=colors),
        legend=alt.Legend(symbolType="stroke") if len(titles) > 1 else None,
    )


def _by_row(rows: Sequence[Mapping[str, Any]], key: str = "title") -> alt.Y:
    return alt.Y(
        f"{key}:N",
        sort=[row[key] for row in rows],
        title=None,
        axis=alt.Axis(grid=False, ticks=False, domain=False, labelPadding=8),
    )


def _scores(results: Mapping[str, Any]) -> _Chart:
    """Mean, interval and the single seeds of the headline metric, one line per arm."""
    metric = results["headline"]
    rows = [{"title": row["title"], **row["metrics"][metric]} for row in results["rows"]]
    seeds = [{"title": row["title"], "seed": value} for row in rows for value in row["per_seed"]]
    y, scale = _by_row(rows), alt.Scale(zero=False, nice=True)
    base = alt.Chart(_data(rows))
    rule = base.mark_rule(color=_BLUE, strokeWidth=3, opacity=0.45).encode(
        y=y,
        x=alt.X("low:Q", scale=scale, title=results["headline_title"]),
        x2="high:Q",
        description="shown:N",
    )
    dots = (
        alt.Chart(_data(seeds))
        .mark_point(color=_INK, size=34, strokeWidth=1.3)
        .encode(y=y, x=alt.X("seed:Q", scale=scale, title=results["headline_title"]))
    )
    means = base.mark_point(color=_BLUE, fill=_BLUE, size=70, opacity=1).encode(
        y=y, x=alt.X("mean:Q", scale=scale), description="shown:N"
    )
    return alt.layer(rule, means, dots).properties(width=_WIDTH + 240, height=_ROW * len(rows) + 10)


def _differences(results: Mapping[str, Any], versus: str) -> _Chart | None:
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
    y, base = _by_row(rows), alt.Chart(_data(rows))
    title = f"difference in {results['headline_title']}"
    zero = alt.Chart(_data([{"zero": 0}])).mark_rule(color=_MUTED, strokeDash=[4, 3])
    rules = base.mark_rule(strokeWidth=3, opacity=0.55).encode(
        y=y, x=alt.X("low:Q", title=title), x2="high:Q", color=color, description="shown:N"
    )
    dots = base.mark_circle(size=80, opacity=1).encode(
        y=y, x=alt.X("difference:Q", title=title), color=color, description="shown:N"
    )
    return alt.layer(zero.encode(x="zero:Q"), rules, dots).properties(
        width=_WIDTH - 60, height=_ROW * len(rows) + 10
    )


def _histogram(section: Mapping[str, Any] | None) -> _Chart | None:
    if section is None:
        return None
    rows = [dict(row) | {"kind": _KIND_TITLES[row["kind"]]} for row in section["bins"]]
    color = _meaning_color("kind", _KIND_COLORS, [row["kind"] for row in rows])
    return (
        alt.Chart(_data([row for row in rows if row["count"]]))
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
        .properties(width=_WIDTH, height=_HEIGHT)
    )


def _by_label(rows: Sequence[Mapping[str, Any]] | None) -> _Chart | None:
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: (-row["mean"], row["label"]))
    labelled = [dict(row) | {"text": f"{row['shown']}  (n {row['n']:,})"} for row in ordered]
    y, base = _by_row(labelled, "label"), alt.Chart(_data(labelled))
    scale = alt.Scale(domainMin=0, domainMax=max(1.0, ordered[0]["mean"]) * 1.04, nice=False)
    x = alt.X("mean:Q", title="mean weight", scale=scale)
    one = alt.Chart(_data([{"one": 1}])).mark_rule(color=_MUTED, strokeDash=[4, 3])
    width = _WIDTH - 110
    bars = base.mark_bar(color=_BLUE, opacity=0.8, height=11).encode(y=y, x=x)
    texts = base.mark_text(align="left", dx=8, color=_INK, fontSize=11)
    return alt.layer(
        bars,
        one.encode(x=alt.X("one:Q", scale=scale)),
        texts.encode(y=y, x=alt.value(width), text="text:N"),
    ).properties(width=width, height=18 * len(labelled))


def _lorenz(curves: Sequence[Mapping[str, Any]] | None) -> _Chart | None:
    if not curves:
        return None
    rows = [{"title": c["title"], "x": x, "y": y} for c in curves for x, y in c["points"]]
    axis, scale = alt.Axis(format="%"), alt.Scale(domain=[0, 1])
    equal = alt.Chart(_data([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    x = alt.X("x:Q", title="share of examples, lightest first", axis=axis, scale=scale)
    y = alt.Y("y:Q", title="share of all weight", axis=axis, scale=scale)
    color = _series_color([curve["title"] for curve in curves])
    return alt.layer(
        equal.mark_line(color=_MUTED, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
        alt.Chart(_data(rows)).mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
    ).properties(width=_WIDTH, height=_HEIGHT)


def _by_length(rows: Sequence[Mapping[str, Any]] | None) -> _Chart | None:
    if not rows:
        return None
    base = alt.Chart(_data(rows))
    x = alt.X(
        "title:N",
        sort=[row["title"] for row in rows],
        title="completion length in tokens",
        axis=alt.Axis(labelAngle=0),
    )
    title = "weight: mean, and middle half"
    bands = base.mark_bar(color=_BLUE, opacity=0.3, width={"band": 0.5})
    means = base.mark_point(color=_BLUE, fill=_BLUE, size=60, opacity=1)
    return alt.layer(
        bands.encode(x=x, y=alt.Y("lower_quartile:Q", title=title), y2="upper_quartile:Q"),
        means.encode(x=x, y=alt.Y("mean:Q", title=title)),
    ).properties(width=_WIDTH, height=_HEIGHT)


def _loss(curves: Sequence[Mapping[str, Any]]) -> _Chart | None:
    rows = [
        {"title": curve["title"], "step": step, "loss": loss}
        for curve in curves
        for step, loss in curve["points"]
    ]
    if not rows:
        return None
    return (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("step:Q", title="optimizer step", axis=alt.Axis(grid=False)),
            y=alt.Y("loss:Q", title="training loss (seed mean)", scale=alt.Scale(zero=False)),
            color=_series_color([curve["title"] for curve in curves if curve["points"]]),
        )
        .properties(width=_WIDTH + 240, height=_HEIGHT)
    )
