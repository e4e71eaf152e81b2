"""One weight per example, and the file that keeps them."""

# pyarrow.compute makes its functions when it is imported, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from atlantis.disk import read_json, read_table, write_json, write_table
from atlantis.errors import WeightError

WEIGHTS_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("status", pa.string()),
        ("log_weight", pa.float64()),
        ("weight", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Weights:
    """One weight per example, sorted by id; rows that are not ``ok`` have null numbers."""

    example_id: list[str]
    status: list[str]
    log_weight: list[float | None]
    weight: list[float | None]
    diagnostics: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write ``path`` (Parquet) and the diagnostics beside it (``.json``)."""
        write_json(path.with_suffix(".json"), self.diagnostics)
        columns = {name: getattr(self, name) for name in WEIGHTS_SCHEMA.names}
        write_table(path, pa.table(columns, schema=WEIGHTS_SCHEMA))


def read_weights(path: Path) -> Weights:
    """Read a weights file and the diagnostics beside it.

    Raises:
        WeightError: It lacks a column, or a weight is negative, NaN or infinite, or all are zero.
        StoreError: It is missing or damaged.
    """
    table = read_table(path)
    missing = [name for name in WEIGHTS_SCHEMA.names if name not in table.column_names]
    if missing:
        raise WeightError(f"{path}: no column {missing[0]!r}; write it with 'atlantis weigh'")
    try:
        table = table.select(WEIGHTS_SCHEMA.names).cast(WEIGHTS_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise WeightError(f"{path}: a column has another type ({error})") from None
    _refuse_repeated_ids(table, path)
    _refuse_bad_weights(table, path)
    columns = {name: table[name].to_pylist() for name in WEIGHTS_SCHEMA.names}
    beside = path.with_suffix(".json")
    return Weights(**columns, diagnostics=read_json(beside) if beside.exists() else {})


def refuse_other_ids(weights: Weights, ids: Collection[str], *, where: str) -> None:
    """Refuse weights that are not those of the rows with these ids.

    Args:
        weights: One weight per example.
        ids: Ids of all rows, whether they could be scored or not.
        where: What the weights are called.

    Raises:
        WeightError: A row has no weight, or a weight has no row.
    """
    given, wanted = set(weights.example_id), set(ids)  # `read_weights` refuses repeated ids
    missing = [name for name in ids if name not in given]
    if missing:
        raise WeightError(
            f"{where}: example {missing[0]!r} has no weight ({len(missing):,} of {len(ids):,} have "
            "none); weigh the same data again"
        )
    extra = given - wanted
    if extra:
        raise WeightError(
            f"{where}: {len(extra):,} ids such as {min(map(str, extra))!r} are not in the data; "
            "weigh the same data again"
        )


def _refuse_repeated_ids(table: pa.Table, path: Path) -> None:
    ids = table["example_id"]
    if pc.count_distinct(ids, mode="all").as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    first = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    raise WeightError(f"{path}: example {first['values']!r} stands there {first['counts']} times")


def _refuse_bad_weights(table: pa.Table, path: Path) -> None:
    kept = table.filter(pc.equal(table["status"], "ok"))
    weights = kept["weight"]
    good = pc.and_(pc.is_finite(weights), pc.greater_equal(weights, 0))
    bad = kept.filter(pc.invert(pc.fill_null(good, False)))
    if bad.num_rows:
        row = bad.slice(0, 1).to_pylist()[0]
        raise WeightError(
            f"{path}: weight {row['weight']} of example {row['example_id']!r}; weights are finite "
            "numbers of at least 0"
        )
    if not pc.any(pc.greater(weights, 0)).as_py():
        raise WeightError(f"{path}: the weights sum to zero, there is nothing to train on")
