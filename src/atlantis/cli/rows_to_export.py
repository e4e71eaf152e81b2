"""Rows to export and their weights, joined before any chat template is known."""

from pathlib import Path
from typing import Any

from atlantis.cli.weighted_rows import Reading, WeightedRows, weighted_rows
from atlantis.data.rendering import PlainTemplate, RowDigest
from atlantis.data.sources import open_source
from atlantis.weighting.weights import read_weights


class _AnyTemplate(RowDigest):
    """The rows as they are: which template they will be read in, the other trainer decides."""

    def __init__(self, rendered_text: str) -> None:
        super().__init__(PlainTemplate())
        self._scored = rendered_text

    @property
    def rendered_text(self) -> str:
        """What scoring read; taken to be what training will read."""
        return self._scored


def rows_to_export(data: str, path: Path, *, force: bool) -> WeightedRows:
    """The rows that have a weight, once it is clear that the weights are theirs.

    Args:
        data: What ``--data`` names.
        path: A file of ``atlantis weigh``.
        force: Take even weights that leave almost no data.

    Raises:
        DataError: The data are missing or malformed.
        WeightError: See `weighted_rows`.
        StoreError: The weights are missing or damaged.
    """
    made: dict[str, Any] = read_weights(path).diagnostics
    scoring: dict[str, Any] = made.get("scoring", {})
    rows = list(open_source(data))
    digest = _AnyTemplate(made.get("rendered_text", ""))
    for row in rows:
        digest.add(row)
    truncation = scoring.get("truncation", "drop")
    reading = Reading(scoring.get("max_length", 0), truncation, digest)
    joined = weighted_rows(rows, path, reading=reading, force=force)
    if truncation == "drop":
        return joined
    cut = f"the rows were scored with --truncation {truncation}: cut them at "
    cut += f"{scoring['max_length']} tokens in training too"
    return joined._replace(warnings=(*joined.warnings, cut))
