"""Artifacts of a finished experiment -> report.html and report.json. Reads files, never a model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from atlantis.disk import write_text
from atlantis.report import tables
from atlantis.report.artifacts import (
    ScoreTable,
    TrainTable,
    WeightTable,
    read_json,
    read_scores,
    read_train,
    read_weights,
)
from atlantis.report.audit import detection_section, extreme_examples, suspicions
from atlantis.report.definitions import definitions
from atlantis.report.densities import arm_densities
from atlantis.report.distributions import (
    histogram,
    lorenz_curves,
    weight_by_label,
    weight_by_length,
)
from atlantis.report.page import render
from atlantis.report.verdict import verdict
from atlantis.report.words import arm_title

VERSION = 2
"""Raised when a change of the code changes reports."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Where the artifacts lie. Every mapping may be empty; what is absent is left out."""

    name: str
    recipe: dict[str, Any]
    """The resolved settings, as JSON."""
    comparison: Path
    """The evaluation of all arms, with intervals and paired differences."""
    checks: Mapping[int, Path]
    """Seed -> the check before training."""
    train: Path
    """Parquet: example_id, prompt, completion, label; gold_label and text where known."""
    weights: Mapping[str, Mapping[int, Path]]
    """Arm -> seed -> weights Parquet, with the diagnostics as JSON beside it."""
    scores: Mapping[str, Mapping[int, Path]]
    """``large``, ``small``, ``reference`` -> seed -> score store."""
    runs: Mapping[str, Mapping[int, Path]]
    """Arm -> seed -> run.json of the training."""
    notes: tuple[str, ...] = ()
    """What was dropped from the data, in words."""
    headline_arm: str = "atlantis"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """What `run` wrote."""

    html: Path
    json: Path


def run(inputs: ReportInputs, out: Path) -> ReportFiles:
    """Write ``report.html`` and ``report.json`` into the folder ``out``.

    The same artifacts give the same bytes. Each file is replaced in one step, so that a kill leaves
    the old or the new one.

    Raises:
        DataError: An artifact is missing or malformed.
    """
    document = build(inputs)
    out.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(html=out / "report.html", json=out / "report.json")
    write_text(files.html, render(document))
    write_text(
        files.json, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return files


def build(inputs: ReportInputs) -> dict[str, Any]:
    """Everything that the report shows, as JSON: numbers in full, and as shown."""
    comparison = read_json(inputs.comparison)
    train = read_train(inputs.train)
    ids = train.example_ids
    weights = _read_all(inputs.weights, lambda path: read_weights(path, ids))
    scores = _read_all(inputs.scores, lambda path: read_scores(path, ids))
    runs = _read_all(inputs.runs, read_json)
    checks = {seed: read_json(path) for seed, path in inputs.checks.items()}
    arm = inputs.headline_arm if inputs.headline_arm in weights else next(iter(weights), None)
    tables_of_arm = weights[arm] if arm else {}
    diagnostics = next(iter(tables_of_arm.values())).diagnostics if tables_of_arm else None
    results = tables.results_section(comparison, inputs.headline_arm)
    return {
        "format": VERSION,
        "name": inputs.name,
        "verdict": verdict(comparison, inputs.headline_arm),
        "run": tables.run_section(
            inputs.recipe, train, comparison=comparison, diagnostics=diagnostics, runs=runs
        ),
        "results": results,
        "checks": tables.check_rows(checks),
        "weights": _weights_section(train, weights, scores, arm=arm) if arm else None,
        "detection": detection_section(
            train, suspicions(_covering(weights, arm), scores), level=comparison["level"]
        ),
        "examples": extreme_examples(train, tables_of_arm) if arm else None,
        "training": tables.training_rows(runs),
        "recipe": inputs.recipe,
        "notes": list(inputs.notes),
        "definitions": definitions([metric["key"] for metric in results["metrics"]]),
    }


def _read_all(
    paths: Mapping[str, Mapping[int, Path]], read: Callable[[Path], _T]
) -> dict[str, dict[int, _T]]:
    """Read every file, seeds in order; an arm without files is left out."""
    return {
        name: {seed: read(path) for seed, path in sorted(by_seed.items())}
        for name, by_seed in paths.items()
        if by_seed
    }


def _weights_section(
    train: TrainTable,
    weights: Mapping[str, Mapping[int, WeightTable]],
    scores: Mapping[str, Mapping[int, ScoreTable]],
    *,
    arm: str,
) -> dict[str, Any]:
    tables_of_arm = weights[arm]
    lengths = next((scores[role] for role in ("reference", "small", "large") if role in scores), {})
    rows = tables.diagnostic_rows(weights)
    return {
        "arm": arm,
        "title": arm_title(arm),
        "num_seeds": len(tables_of_arm),
        "histogram": histogram(train, tables_of_arm),
        "densities": arm_densities(weights),
        "by_label": weight_by_label(train, tables_of_arm),
        "lorenz": lorenz_curves(weights),
        "by_length": weight_by_length(tables_of_arm, lengths),
        "columns": tables.diagnostic_columns(),
        "diagnostics": rows,
    }


def _covering(
    weights: Mapping[str, Mapping[int, WeightTable]], arm: str | None
) -> dict[str, Mapping[int, WeightTable]]:
    """The arms that weigh every row that ``arm`` weighs, so that they rank the same rows."""
    if arm is None:
        return {}

    def rows(name: str) -> set[int]:
        return {
            row
            for table in weights[name].values()
            for row, status in enumerate(table.status)
            if status == "not weighted"
        }

    missing = rows(arm)
    others = [name for name in weights if name != arm and rows(name) <= missing]
    return {name: weights[name] for name in (arm, *others)}
