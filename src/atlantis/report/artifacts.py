"""Reads the files of earlier stages, and refuses what is missing or malformed by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from atlantis import disk
from atlantis.disk import read_table
from atlantis.errors import DataError, StoreError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrainTable:
    """The training rows, in file order."""

    example_ids: tuple[str, ...]
    labels: tuple[str | None, ...]
    gold_labels: tuple[str | None, ...]
    texts: tuple[str, ...]
    """The bare sentence where there is one, else the prompt."""


@dataclass(frozen=True, slots=True)
class WeightTable:
    """The weights of one arm and seed, aligned to the training rows, with their diagnostics."""

    status: tuple[str, ...]
    """``ok``, the reason why there is no weight, or ``not weighted`` for a row the file lacks."""
    log_weights: FloatArray
    """NaN where ``status`` is not ``ok``."""
    weights: FloatArray
    """NaN where ``status`` is not ``ok``."""
    diagnostics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """What one model assigns to the completions, in the order of the rows; NaN without score."""

    sequence_logprobs: FloatArray
    num_tokens: FloatArray


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DataError: The file is missing, is no JSON object, or holds NaN or an infinity.
    """
    document = disk.read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def read_train(path: Path) -> TrainTable:
    """The training rows; ``gold_label`` and ``text`` may be absent or null.

    Raises:
        DataError: A column is missing, or an id occurs twice.
        StoreError: The file is missing or damaged.
    """
    table = _read_table(path, ("example_id", "prompt", "label"))
    ids, prompts = table.column("example_id").to_pylist(), table.column("prompt").to_pylist()
    empty: list[str | None] = [None] * len(ids)
    golds, texts = (
        table.column(name).to_pylist() if name in table.column_names else empty
        for name in ("gold_label", "text")
    )
    _require_unique(ids, path)
    return TrainTable(
        example_ids=tuple(ids),
        labels=tuple(table.column("label").to_pylist()),
        gold_labels=tuple(golds),
        texts=tuple(
            prompt if text is None else text for text, prompt in zip(texts, prompts, strict=True)
        ),
    )


def read_weights(path: Path, example_ids: Sequence[str]) -> WeightTable:
    """The weights file and its diagnostics, in the order of the training rows.

    Raises:
        DataError: The diagnostics or a column are missing, an id occurs twice, or no training row
            has a positive weight.
        StoreError: The file is missing or damaged.
    """
    table = _read_table(path, ("example_id", "status", "log_weight", "weight"))
    places = _places(table, path, example_ids)
    status: list[str] = [*table.column("status").to_pylist(), "not weighted"]
    weights = _aligned(table, "weight", places)
    if not np.nansum(weights) > 0:
        raise DataError(f"{path}: no training row has a positive weight; weigh the data again")
    return WeightTable(
        status=tuple(status[place] for place in places),
        log_weights=_aligned(table, "log_weight", places),
        weights=weights,
        diagnostics=read_json(path.with_suffix(".json")),
    )


def read_scores(folder: Path, example_ids: Sequence[str]) -> ScoreTable:
    """A score store's parts, in the order of the training rows.

    Raises:
        StoreError: The folder holds no parts, or one is damaged or lacks a column.
        DataError: An id occurs twice, or no id is a training row.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise StoreError(f"{folder} holds no part-*.parquet; run the scoring stage")
    columns = ("example_id", "status", "num_tokens", "sequence_logprob")
    table = pa.concat_tables([read_table(part, columns) for part in parts])
    places = _places(table, folder, example_ids)
    return ScoreTable(
        sequence_logprobs=_aligned(table, "sequence_logprob", places),
        num_tokens=_aligned(table, "num_tokens", places),
    )


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    table = read_table(path)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise DataError(f"{path}: column {missing[0]!r} is missing; found {found}")
    return table


def _require_unique(ids: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for example_id in ids:
        if example_id in seen:
            raise DataError(f"{path}: example_id {example_id!r} occurs twice")
        seen.add(example_id)


def _places(table: pa.Table, path: Path, example_ids: Sequence[str]) -> list[int]:
    """For each training row its row in the table, or one past the end where it has none."""
    ids: list[str] = table.column("example_id").to_pylist()
    _require_unique(ids, path)
    row_of = {example_id: row for row, example_id in enumerate(ids)}
    places = [row_of.get(example_id, len(ids)) for example_id in example_ids]
    if ids and min(places, default=len(ids)) == len(ids):
        raise DataError(
            f"{path}: none of its {len(ids)} ids is a training row; made from other data"
        )
    return places


def _aligned(table: pa.Table, name: str, places: list[int]) -> FloatArray:
    ok = np.array([status == "ok" for status in table.column("status").to_pylist()], dtype=bool)
    column = table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    values = np.append(np.where(ok, column.astype(np.float64), np.nan), np.nan)
    return values[np.array(places, dtype=np.intp)]
