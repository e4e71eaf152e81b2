"""The report's numbers -> one HTML file. Shows what the document holds and computes nothing new."""

from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from atlantis.report.charts import dark_style
from atlantis.report.figures import figures
from atlantis.report.words import OUTCOME_WORDS, fixed

_CHECK_WORDS = {
    "help": "likely to help",
    "nothing": "likely to do nothing",
    "harm": "likely to harm",
    "unclear": "unclear",
}


def render(document: Mapping[str, Any]) -> str:
    """The page of a report document, as `atlantis.report.stage.build` makes it."""
    return (
        environment()
        .get_template("template.html.j2")
        .render(
            report=document,
            # vl-convert escapes the texts that it draws; a test sends hostile ones through.
            figures={name: Markup(svg) for name, svg in figures(document).items()},
            dark_style=Markup(dark_style()),
            recipe=yaml.safe_dump(document["recipe"], sort_keys=False, allow_unicode=True),
            bars=interval_bars(document["results"]),
            check_words=_CHECK_WORDS,
            outcome_words=OUTCOME_WORDS,
        )
    )


def render_figures(title: str, captioned: Mapping[str, str]) -> str:
    """A page of nothing but charts: SVG by its caption."""
    return (
        environment()
        .get_template("figure.html.j2")
        .render(
            title=title,
            figures=[{"svg": Markup(svg), "caption": text} for text, svg in captioned.items()],
            dark_style=Markup(dark_style()),
        )
    )


def environment() -> Environment:
    """What turns the templates of this package into pages; texts are escaped."""
    made = Environment(
        loader=PackageLoader("atlantis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["tight"] = tight
    return made


def tight(sentence: str) -> str:
    """Keep a number and its sign together at the end of a line."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(
        "n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    )


def interval_bars(results: Mapping[str, Any]) -> dict[str, Any]:
    """Where the headline interval of each arm lies on one common axis, in per cent of its width."""
    values = {row["arm"]: row["metrics"][results["headline"]] for row in results["rows"]}
    left = min(value["low"] for value in values.values())
    right = max(value["high"] for value in values.values())
    width = (right - left) or 1.0

    def place(value: float) -> str:
        return f"{4 + 92 * (value - left) / width:.1f}%"

    rows = {
        arm: {key: place(v[key]) for key in ("low", "mean", "high")} for arm, v in values.items()
    }
    baseline = values.get(results["baseline"])
    return {
        "rows": rows,
        "left": fixed(left, 2),
        "right": fixed(right, 2),
        "baseline": place(baseline["mean"]) if baseline else None,
    }
