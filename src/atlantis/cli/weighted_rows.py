"""Training rows and their weights, joined by id; anything that does not fit is refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlantis.data.rendering import RowDigest
from atlantis.data.tokenization import Truncation
from atlantis.errors import WeightError
from atlantis.numerics.diagnostics import effective_sample_size
from atlantis.records import Row
from atlantis.weighting.diagnosis import refuse_uneven, warnings_of
from atlantis.weighting.weights import Weights, read_weights, refuse_other_ids


class WeightedRows(NamedTuple):
    """The rows to train on."""

    rows: Sequence[Row]
    weights: dict[str, float] | None
    """Weight of each row by id; None for ones."""
    left_out: dict[str, int]
    """Rows without a weight, counted by the reason."""
    warnings: tuple[str, ...]
    weighing: dict[str, Any]
    """What is known of how the weights were made."""

    @property
    def normalised_for(self) -> str | None:
        """``tokens`` or ``examples``; None where the file does not say."""
        return self.weighing.get("normalise_for")


class Reading(NamedTuple):
    """How rows become what the model reads."""

    max_length: int
    truncation: Truncation
    digest: RowDigest
    """Of the rows as the trained model reads them."""


def weighted_rows(
    rows: Sequence[Row], path: Path | None, *, reading: Reading, force: bool
) -> WeightedRows:
    """Join rows with the weights file ``path``; without one every row weighs one.

    Args:
        rows: All rows, whether they have a weight or not.
        path: A file of ``atlantis weigh``.
        reading: How training reads the rows; scoring must have read them so too.
        force: Train even on weights that leave almost no data.

    Raises:
        WeightError: An id is missing, unknown or there twice, the weights were made from other
            data, or they are so uneven that almost no data are left (unless ``force``).
        StoreError: The file is missing or damaged.
    """
    if path is None:
        return WeightedRows(rows, None, {}, (), {})
    weights = read_weights(path)
    _refuse_other_data(rows, weights, path, reading)
    kept = {
        name: weight
        for name, weight, status in zip(
            weights.example_id, weights.weight, weights.status, strict=True
        )
        if status == "ok" and weight is not None
    }
    if not force:
        _refuse_few(kept, path)
    left_out = Counter(status for status in weights.status if status != "ok")
    chosen = [row for row in rows if row.example_id in kept]
    return WeightedRows(chosen, kept, dict(left_out), _warnings(weights, path), weights.diagnostics)


def _refuse_other_data(rows: Sequence[Row], weights: Weights, path: Path, reading: Reading) -> None:
    refuse_other_reading(weights.diagnostics, path, reading)
    refuse_other_ids(weights, [row.example_id for row in rows], where=str(path))


def refuse_other_reading(made: Mapping[str, Any], path: Path, reading: Reading) -> None:
    """Refuse weights or scores of rows that were read in another way than training reads them.

    Args:
        made: What is known of how the rows were scored; what is missing is taken to fit.
        path: The weights file or score store.
        reading: How training reads the rows.

    Raises:
        WeightError: The data, the template, the truncation or the limit differ.
    """
    ours = {"source": reading.digest.source, "rendered_text": reading.digest.rendered_text}
    scoring = made.get("scoring", {})
    for field in ("source",) if scoring.get("template") == "native" else ours:
        if made.get(field, ours[field]) != ours[field]:
            raise WeightError(
                f"{path}: made from other data or another chat template (its {field} differs); "
                "score and weigh these rows"
            )
    cut = scoring.get("truncation", reading.truncation)
    same_cut = cut == "drop" or scoring["max_length"] == reading.max_length
    if cut != reading.truncation or not same_cut:
        raise WeightError(
            f"{path}: its rows were scored with --truncation {cut} --max-length "
            f"{scoring['max_length']}; train with the same"
        )


def _refuse_few(weights: dict[str, float], path: Path) -> None:
    """Weights that are zero are a selection, however small; the others must not be a few's."""
    values = np.array([weight for weight in weights.values() if weight > 0])
    ess = effective_sample_size(np.log(values))
    refuse_uneven({"ess_fraction": ess / values.size}, where=str(path))


def _warnings(weights: Weights, path: Path) -> tuple[str, ...]:
    report: dict[str, Any] = weights.diagnostics
    if not report:
        return (f"{path.with_suffix('.json')} is missing: cannot tell which data {path} is for",)
    return tuple(warnings_of(report))
