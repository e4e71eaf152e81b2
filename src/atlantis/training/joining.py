"""A weights file joined to a data set, for those who make the trainer themselves."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset

from atlantis.errors import DataError, WeightError
from atlantis.weighting.weights import Weights, read_weights, refuse_other_ids

_log = logging.getLogger(__name__)


def join_weights(
    dataset: Dataset, weights: Weights | str | Path, *, id_column: str = "example_id"
) -> Dataset:
    """The data set with the column ``weight`` that `WeightedSFTTrainer` reads.

    Rows that could not be scored have no weight; they are left out, and counted in the log.

    Args:
        dataset: Training rows in any order, with their ids.
        weights: What `atlantis.weigh` returned, or a file of ``atlantis weigh``.
        id_column: Where the ids are. ``atlantis score`` takes them from ``id`` or ``example_id``,
            or counts the rows where there is neither.

    Returns:
        The rows in their order, with a weight each.

    Raises:
        DataError: The data set has no such column, has a ``weight`` already, or an id twice.
        WeightError: A row has no weight, or a weight has no row.
        StoreError: The file is missing or damaged.
    """
    where = "the weights" if isinstance(weights, Weights) else str(weights)
    found = weights if isinstance(weights, Weights) else read_weights(Path(weights))
    ids = _ids(dataset, id_column)
    refuse_other_ids(found, ids, where=where)
    by_id = dict(zip(found.example_id, found.weight, strict=True))
    usable = [row for row, name in enumerate(ids) if by_id[name] is not None]
    if not usable:
        raise WeightError(f"{where}: no row has a weight")
    if len(usable) < len(ids):
        why = Counter(status for status in found.status if status != "ok")
        _log.warning(
            "%d rows have no weight and are left out: %s",
            len(ids) - len(usable),
            ", ".join(f"{count} {status}" for status, count in why.items()),
        )
    chosen = dataset.select(usable)
    column: Any = [by_id[ids[row]] for row in usable]
    return chosen.add_column("weight", column)  # pyright: ignore[reportCallIssue]


def _ids(dataset: Dataset, column: str) -> list[str]:
    if column not in dataset.column_names:
        raise DataError(
            f"the data set has no column {column!r} to join the weights by (it has "
            f"{', '.join(dataset.column_names)}); name it with id_column"
        )
    if "weight" in dataset.column_names:
        raise DataError("the data set has a column 'weight' already; remove it first")
    ids = [str(name) for name in dataset[column]]
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"id {repeated[0]!r} stands in column {column!r} more than once")
    return ids
