"""The report of a recipe about maths problems: what each arm solves, and what was rewritten."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from atlantis.evaluation.maths_comparison import MEAN
from atlantis.report.page import environment
from atlantis.report.words import counted, estimate, percent

VERSION = 1
"""Raised when a change of the code changes the page."""
_GAP_ROWS = {"self": "self-alignment", "guided": "guided", "expert": "expert (fallback)"}


def build(
    *,
    name: str,
    recipe: Mapping[str, Any],
    headline_arm: str,
    comparison: Mapping[str, Any],
    rewriting: Mapping[int, Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything that the page shows, as JSON.

    Args:
        name: The run's.
        recipe: Its settings.
        headline_arm: The arm that the page is about.
        comparison: Of each grader, as `atlantis.evaluation.maths_comparison.compare_maths` has it.
        rewriting: Reports of data rewriting by seed; none where no arm needs it.
        notes: What was left out of the data.
    """
    graders = [grader for grader in comparison if grader != "headline"]
    return {
        "name": name,
        "headline_arm": headline_arm,
        "headline_grader": comparison["headline"],
        "results": [comparison[grader] for grader in graders],
        "rewriting": {str(seed): dict(report) for seed, report in rewriting.items()},
        "notes": list(notes),
        "recipe": dict(recipe),
    }


def render(document: Mapping[str, Any]) -> str:
    """The page of a document that `build` made."""
    template = environment().get_template("maths.html.j2")
    return template.render(
        report=document,
        tables=[results_table(found) for found in document["results"]],
        rewriting=rewriting_table(document["rewriting"]),
        recipe=yaml.safe_dump(document["recipe"], sort_keys=False, allow_unicode=True),
    )


def results_table(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Title, column heads and rows of one grader's comparison."""
    names = [*comparison["num_problems"], *([MEAN] if len(comparison["num_problems"]) > 1 else [])]
    heads = [
        f"{name} (n = {comparison['num_problems'][name]:,})" if name != MEAN else "mean"
        for name in names
    ]
    last = names[-1]
    rows = [
        {
            "arm": arm,
            "cells": [_estimate(found[name]) for name in names],
            "versus": _difference(found[last]["versus_baseline"]),
        }
        for arm, found in comparison["arms"].items()
    ]
    title = (
        f"{comparison['metric']} by {comparison['grader']}, mean "
        f"[{percent(comparison['level'])} interval], {counted(len(comparison['seeds']), 'seed')}"
    )
    versus = f"{heads[-1]}, versus {comparison['baseline']}"
    return {"title": title, "heads": heads, "versus": versus, "rows": rows}


def rewriting_table(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Sources, solve rates and the policy gap, a column for each seed."""
    if not reports:
        return None
    rows = [
        (f"from {title}", [_share(r["sources"][source], r["num_rows"]) for r in reports.values()])
        for source, title in _GAP_ROWS.items()
    ]
    for stage, title in (("self", "samples right, alone"), ("guided", "samples right, guided")):
        counts = [report["stages"][stage] for report in reports.values()]
        rows.append((title, [_share(count["correct"], count["tried"]) for count in counts]))
    gaps = [report["policy_gap"] for report in reports.values()]
    if all(gaps):
        for moment, title in (("before", "expert's completions"), ("after", "those trained on")):
            title = f"policy's log-probability per token, {title}"
            rows.append((title, [_number(gap[moment]) for gap in gaps]))
    return {"seeds": list(reports), "rows": rows}


def terminal_table(comparison: Mapping[str, Any]) -> Table:
    """The first grader's comparison, for the command line."""
    found = results_table(comparison[comparison["headline"]])
    table = Table(title=found["title"])
    table.add_column("arm")
    for head in found["heads"]:
        table.add_column(head, justify="right")
    table.add_column(found["versus"], justify="right")
    for row in found["rows"]:
        # Text, not str: "[0.35, 0.46]" is an interval, not markup.
        table.add_row(*(Text(text) for text in (row["arm"], *row["cells"], row["versus"])))
    return table


def _estimate(value: Mapping[str, Any]) -> str:
    return estimate(value["mean"], value["low"], value["high"])


def _difference(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{value['difference']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.0%})" if total else "0"
