"""Records of the earlier stages -> rows of the report's tables."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from atlantis.errors import DataError
from atlantis.report.artifacts import TrainTable, WeightTable
from atlantis.report.distributions import label_kinds, loss_curve
from atlantis.report.verdict import outcome
from atlantis.report.words import (
    arm_title,
    counted,
    estimate,
    metric_title,
    percent,
    significant,
)

_RECIPE_FACTS = {
    "Large model (trained)": "models.large",
    "Small model": "models.small",
    "Reference model": "reference.model",
    "Reference tuned on": "reference.train_on",
    "Training data": "data.train",
    "Trusted data": "data.trusted",
    "Test data": "data.test",
    "Loss": "training.loss",
    "Loss normaliser": "training.loss_normaliser",
    "Learning rate": "training.learning_rate",
}
"""What the page says about a recipe: title -> where in the recipe it stands."""
_DIAGNOSTICS = (
    ("effective_sample_size", "ESS"),
    ("ess_fraction", "ESS/N"),
    ("kappa", "kappa"),
    ("largest_share", "largest share"),
    ("top_1_percent_share", "share of top 1 %"),
    ("pareto_k", "Pareto k"),
    ("spearman_length", "Spearman, length"),
    ("clipped_low_fraction", "clipped low"),
    ("clipped_high_fraction", "clipped high"),
)
_CHECK_KEYS = {
    "verdict",
    "sentence",
    "reference_accuracy",
    "small_accuracy",
    "label_accuracy_estimate",
    "separation",
}


def results_section(comparison: Mapping[str, Any], headline_arm: str) -> dict[str, Any]:
    """The result table: every arm with its metrics, differences and unparsed share."""
    metrics = _metrics(comparison)
    return {
        **{
            key: comparison.get(key)
            for key in (
                "headline",
                "num_test",
                "seeds",
                "num_replicates",
                "level",
                "interval",
                "negative",
                "labels",
            )
        },
        "headline_title": metric_title(comparison["headline"]),
        "metrics": [{"key": metric, "title": metric_title(metric)} for metric in metrics],
        "baseline": comparison.get("baseline"),
        "control": comparison.get("control"),
        "headline_arm": headline_arm,
        "rows": [_result_row(arm, entry, metrics) for arm, entry in comparison["arms"].items()],
    }


def _metrics(comparison: Mapping[str, Any]) -> list[str]:
    """All metrics of the comparison, the headline first."""
    if not comparison["arms"]:
        raise DataError("the comparison holds no arms; evaluate at least one")
    headline = comparison["headline"]
    named = {metric: None for entry in comparison["arms"].values() for metric in entry["metrics"]}
    return [headline, *(metric for metric in named if metric != headline)]


def _result_row(arm: str, entry: Mapping[str, Any], metrics: list[str]) -> dict[str, Any]:
    values = {
        metric: value | {"shown": estimate(value["mean"], value["low"], value["high"])}
        for metric in metrics
        if (value := entry["metrics"].get(metric)) is not None
    }
    unparsed = entry.get("unparsed")
    return {
        "arm": arm,
        "title": arm_title(arm),
        "metrics": values,
        "versus_baseline": _differences(entry.get("versus_baseline")),
        "versus_control": _differences(entry.get("versus_control")),
        "unparsed": None
        if not unparsed
        else {"per_seed": unparsed, "shown": percent(sum(unparsed) / len(unparsed))},
    }


def _differences(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        metric: value
        | {
            "outcome": outcome(value),
            "shown": estimate(value["difference"], value["low"], value["high"], signed=True),
        }
        for metric, value in entry.items()
    }


def terminal_table(comparison: Mapping[str, Any]) -> Table:
    """The headline metric of every arm, for the command line."""
    headline = comparison["headline"]
    section = results_section(comparison, headline_arm="")
    seeds = counted(len(comparison["seeds"]), "seed")
    table = Table(
        title=f"{section['headline_title']}, mean [{percent(comparison['level'])} interval], "
        f"{seeds}, n = {comparison['num_test']:,}"
    )
    against = {
        "versus_baseline": comparison.get("baseline"),
        "versus_control": comparison.get("control"),
    }
    columns = {key: arm for key, arm in against.items() if arm in comparison["arms"]}
    table.add_column("arm")
    table.add_column(section["headline_title"], justify="right")
    for arm in columns.values():
        table.add_column(f"versus {arm_title(str(arm))}", justify="right")
    table.add_column("unparsed", justify="right")
    for row in section["rows"]:
        cells = [(row[key] or {}).get(headline, {}).get("shown", "") for key in columns]
        unparsed = row["unparsed"]["shown"] if row["unparsed"] else ""
        texts = (row["title"], row["metrics"][headline]["shown"], *cells, unparsed)
        # Text, not str: "[0.35, 0.46]" is an interval, not markup.
        table.add_row(*(Text(text) for text in texts))
    return table


def run_section(
    recipe: Mapping[str, Any],
    train: TrainTable,
    *,
    comparison: Mapping[str, Any],
    diagnostics: Mapping[str, Any] | None,
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]],
) -> list[dict[str, str]]:
    """What was run, in titles and values: from the recipe where it says so, else from the files."""
    facts = {
        title: text
        for title, place in _RECIPE_FACTS.items()
        if (text := _fact(recipe, place)) is not None
    }
    if "Reference model" in facts:
        facts.pop("Reference tuned on", None)
    facts["Training rows"] = _train_words(train)
    facts["Test examples"] = f"{comparison['num_test']:,}"
    facts["Seeds"] = ", ".join(str(seed) for seed in comparison["seeds"])
    if diagnostics and diagnostics.get("scheme"):
        facts["Weights"] = _words(diagnostics["scheme"])
    if steps := _steps_words(runs):
        facts["Optimizer steps"] = steps
    return [{"title": title, "text": text} for title, text in facts.items()]


def _fact(recipe: Mapping[str, Any], place: str) -> str | None:
    value: Any = recipe
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else _words(value)


def _words(value: Any) -> str:
    """A JSON value in one line; a mapping's empty entries say nothing and are left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items() if v not in (None, []))
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _train_words(train: TrainTable) -> str:
    kinds = Counter(label_kinds(train))
    known = kinds["right"] + kinds["wrong"]
    rows = f"{len(train.example_ids):,}"
    if not known:
        return f"{rows}, right labels unknown"
    where = "" if known == len(train.example_ids) else f" of the {known:,} with a known right label"
    return f"{rows}, {kinds['wrong']:,} labels wrong{where} ({percent(kinds['wrong'] / known)})"


def _steps_words(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Steps per training run; arms that took the same number stand together."""
    arms_of: dict[str, list[str]] = {}
    for arm, by_seed in runs.items():
        steps = sorted({run["num_steps"] for run in by_seed.values() if "num_steps" in run})
        if steps:
            span = "–".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1])))
            arms_of.setdefault(span, []).append(arm_title(arm))
    if len(arms_of) == 1:
        return next(iter(arms_of))
    return "; ".join(f"{span} ({', '.join(arms)})" for span, arms in arms_of.items())


def check_rows(checks: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The check before training, one row per seed, with whatever further numbers it gave."""
    rows: list[dict[str, Any]] = []
    for seed, check in sorted(checks.items()):
        share = check.get("label_accuracy_estimate")
        rows.append(
            {
                "seed": seed,
                "verdict": check["verdict"],
                "sentence": check["sentence"],
                "reference_accuracy": _accuracy(check.get("reference_accuracy")),
                "small_accuracy": _accuracy(check.get("small_accuracy")),
                "separation": _accuracy(check.get("separation")),
                "label_accuracy_estimate": share,
                "label_accuracy_shown": "–" if share is None else percent(share),
                "further": {
                    key: value
                    for key, value in check.items()
                    if key not in _CHECK_KEYS and isinstance(value, str | int | float)
                },
            }
        )
    return rows


def _accuracy(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {**value, "shown": estimate(value["mean"], value["low"], value["high"])}


def diagnostic_rows(weights: Mapping[str, Mapping[int, WeightTable]]) -> list[dict[str, Any]]:
    """One row per arm and seed: the diagnostics as trained, and ESS/N before clipping."""
    return [
        _diagnostic_row(arm, seed, table.diagnostics)
        for arm, tables in weights.items()
        for seed, table in sorted(tables.items())
    ]


def _diagnostic_row(arm: str, seed: int, diagnostics: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: diagnostics.get(key) for key, _ in _DIAGNOSTICS}
    values["ess_fraction_before_clipping"] = (diagnostics.get("before_clipping") or {}).get(
        "ess_fraction"
    )
    status = diagnostics.get("status_counts") or {}
    return {
        "arm": arm,
        "title": arm_title(arm),
        "seed": seed,
        "values": values,
        "shown": {
            key: "–" if value is None else significant(value) for key, value in values.items()
        },
        "status_counts": status,
        "not_ok": ", ".join(f"{n:,} {name}" for name, n in status.items() if name != "ok" and n),
        "warnings": list(diagnostics.get("warnings") or ()),
    }


def diagnostic_columns() -> list[dict[str, str]]:
    """Keys and titles of the diagnostics table."""
    last = ("ess_fraction_before_clipping", "ESS/N before clipping")
    return [{"key": key, "title": title} for key, title in (*_DIAGNOSTICS, last)]


def training_rows(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The loss curve of every arm, mean over seeds."""
    return [
        {
            "arm": arm,
            "title": arm_title(arm),
            "num_seeds": len(by_seed),
            "points": loss_curve([run.get("loss") or [] for run in by_seed.values()]),
        }
        for arm, by_seed in runs.items()
    ]
