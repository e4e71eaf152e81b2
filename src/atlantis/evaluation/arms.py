"""The arms of a run side by side, from what `atlantis.evaluation.stage` wrote for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlantis.disk import read_json, read_table
from atlantis.evaluation.comparison import compare
from atlantis.evaluation.relations import entity_type_baseline
from atlantis.evaluation.stage import true_label
from atlantis.records import Example, LabelSet

ENTITY_TYPES = "entity_types"
"""Pseudo-arm: a table from entity types to relations, where the data have types."""


def compare_arms(
    folders: Mapping[str, Mapping[int, Path]],
    *,
    train: Sequence[Example],
    test: Sequence[Example],
    labels: LabelSet,
    baseline: str,
    control: str | None,
    num_replicates: int,
) -> dict[str, Any]:
    """Compare the predictions of every arm and seed.

    Args:
        folders: Arm -> seed -> folder with ``predictions.parquet`` and ``metrics.json``.
        train: Training rows, for the table of entity types.
        test: Test rows, in the order of the predictions.
        labels: The closed set.
        baseline: The arm that the others are compared with.
        control: The arm that shows what uneven weights alone do, if there is one.
        num_replicates: Bootstrap replicates behind every interval.

    Returns:
        What `atlantis.evaluation.comparison.compare` returns; beside it, for each arm, the metrics
        of greedy decoding and its share of answers that are no label.
    """
    predictions: dict[str, dict[int, list[str | None]]] = {
        arm: {
            seed: read_table(folder / "predictions.parquet")["predicted"].to_pylist()
            for seed, folder in by_seed.items()
        }
        for arm, by_seed in folders.items()
    }
    if all(row.entity_types for row in (*train, *test)):
        table: list[str | None] = list(entity_type_baseline(train, test))
        predictions[ENTITY_TYPES] = dict.fromkeys(predictions[baseline], table)
    result = compare(
        predictions,
        [true_label(row) for row in test],
        labels,
        baseline=baseline,
        control=control,
        num_replicates=num_replicates,
    )
    for arm, by_seed in folders.items():
        metrics = [read_json(folder / "metrics.json") for folder in by_seed.values()]
        generated = [entry["generated"] for entry in metrics if "generated" in entry]
        if generated:
            result["arms"][arm]["unparsed"] = [entry["unparsed"] for entry in generated]
            result["arms"][arm]["generated"] = generated
    return result
