"""The work of the check before training: do the headline arm's weights stand a chance?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlantis.evaluation import stage as evaluation
from atlantis.evaluation.chance import ask_reference
from atlantis.evaluation.separation import probe_rows, separation
from atlantis.pipeline.inputs import Inputs
from atlantis.pipeline.scored import scoring_job
from atlantis.records import Example
from atlantis.weighting import stage as weighting
from atlantis.weighting.schemes import WeightingConfig

_CHECKED_TRAINING_ROWS = 1000
"""Training rows that the check asks the reference about."""


def check_weights(
    inputs: Inputs,
    config: WeightingConfig,
    *,
    models: Mapping[str, str],
    diagnostics: Mapping[str, Any],
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """Ask the reference about held-out rows, and report what that says of the weights.

    Args:
        inputs: Data and models of the recipe; there are held-out rows.
        config: How the headline arm weighs.
        models: Name or folder of the model in each role.
        diagnostics: Diagnostics of the headline arm's weights.
        folder: Where scores of the held-out rows are kept.
        seed: Seed of the wrong labels and of the bootstrap.
    """
    found = measure_separation(inputs, config, models=models, folder=folder, seed=seed)
    return _chance(inputs, models, diagnostics, found)


def measure_separation(
    inputs: Inputs,
    config: WeightingConfig,
    *,
    models: Mapping[str, str],
    folder: Path,
    seed: int,
) -> dict[str, Any] | None:
    """How far the weights tell right labels from wrong on held-out rows; None if they cannot."""
    rows = probe_rows(inputs.splits.heldout, inputs.splits.train, inputs.completions, seed=seed)
    if not rows or not config.scheme.models:
        return None
    stores = {
        role: scoring_job(
            rows,
            role,
            models,
            config=inputs.config.scoring,
            loading=inputs.config.models.loading,
        ).run(folder / f"probe-{role}")
        for role in config.scheme.models
    }
    weights = weighting.weigh(
        large=stores.get("large"),
        reference=stores.get("reference"),
        small=stores.get("small"),
        proxy=stores.get("proxy"),
        config=_in_order_only(config),
        labels={row.example_id: str(row.label) for row in rows},
    )
    by_id = zip(weights.example_id, weights.log_weight, strict=True)
    known = {example_id: value for example_id, value in by_id if value is not None}
    return separation(rows, known, within_label=config.compares_within_label, seed=seed)


def _in_order_only(config: WeightingConfig) -> WeightingConfig:
    """Without the steps that keep the order of weights, which few rows could make impossible."""
    return config.model_copy(
        update={"normalise_within": "none", "min_ess_fraction": None, "pareto_smooth": False}
    )


def _chance(
    inputs: Inputs,
    models: Mapping[str, str],
    diagnostics: Mapping[str, Any],
    found: Mapping[str, Any] | None,
) -> dict[str, Any]:
    config, splits = inputs.config, inputs.splits
    step = max(1, len(splits.train) // _CHECKED_TRAINING_ROWS)
    sample = splits.train[::step]
    too_long = set(inputs.too_long(sample, models["small"]))

    def predict(rows: Sequence[Example], model: str) -> dict[str, Any]:
        return evaluation.predict(
            rows,
            splits.labels,
            inputs.completions,
            model,
            config=config.evaluation.model_copy(update={"generate": False}),
            loading=config.models.loading,
            max_length=config.scoring.max_length,
        )

    return ask_reference(
        predict,
        heldout=splits.heldout,
        train=[row for row in sample if row.example_id not in too_long],
        labels=splits.labels,
        reference=models["reference"],
        small=models["small"],
        diagnostics=diagnostics,
        separation=found,
    )
