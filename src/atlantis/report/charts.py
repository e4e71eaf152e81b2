"""How charts look: light colours, dark ones by style, SVG without a script.

Vega-Lite draws with the light colours of `PALETTE`; `dark_style` repaints them where the reader
prefers a dark screen. Hovering shows a mark's values (an SVG title).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert as vlc

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
INK, MUTED, _GRID, _AXIS, *SERIES = PALETTE
BLUE, ORANGE, GREEN, _, _, RED, _ = SERIES
WIDTH, HEIGHT = 360, 230
Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart

_SELF_CLOSED = re.compile(r'<(path|rect|line)( [^<>]*?aria-label="([^"]*)"[^<>]*?)/>')
_NAMESPACES = re.compile(r' xmlns(?::xlink)?="[^"]*"')
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def dark_style() -> str:
    """Style rules that repaint the charts for a dark screen."""
    return "\n".join(
        f'figure svg [{attribute}="{light}"]{{{attribute}:{dark}}}'
        for light, dark in PALETTE.items()
        for attribute in ("fill", "stroke")
    )


def svg(chart: Chart, *, standalone: bool = False) -> str:
    """A chart as SVG: to stand in a page, or ``standalone`` in a file of its own."""
    styled = chart.configure(
        background="transparent",
        font="Arial, Liberation Sans, Helvetica, sans-serif",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=INK,
            titleColor=MUTED,
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
            labelColor=INK,
            titleColor=MUTED,
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
    drawn = vlc.vegalite_to_svg(styled.to_json(), vl_version=_VEGA_LITE)
    # In a page: no namespaces. Everywhere: the value of a mark on hover.
    plain = drawn if standalone else _NAMESPACES.sub("", drawn)
    return _SELF_CLOSED.sub(r"<\1\2><title>\3</title></\1>", plain)


def inline_data(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Rows that stand in the chart itself."""
    return alt.InlineData(values=[dict(row) for row in rows])


def series_color(titles: Sequence[str]) -> alt.Color:
    """One colour per title, with a legend where there are several."""
    colors = [SERIES[place % len(SERIES)] for place in range(len(titles))]
    return alt.Color(
        "title:N",
        scale=alt.Scale(domain=list(titles), range=colors),
        legend=alt.Legend(symbolType="stroke") if len(titles) > 1 else None,
    )
