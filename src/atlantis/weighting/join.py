"""The models' scores side by side, joined by id.

Columns stay Arrow or NumPy from the file to the formula, and the log-probabilities of single tokens
are never read, so that a million rows take seconds.
"""

# pyarrow.compute makes its functions when it is imported, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from atlantis.errors import WeightError
from atlantis.store import ScoreStore
from atlantis.weighting.ratios import ModelScores

_COLUMNS = (
    "example_id",
    "status",
    "sequence_logprob",
    "num_tokens",
    "num_bytes",
    "num_trained_tokens",
)


class Joined(NamedTuple):
    """Rows of all stores, sorted by id."""

    example_id: pa.ChunkedArray
    """Ids in the order of their code points."""
    status: pa.ChunkedArray
    """``ok``, or the first reason why some model has no score."""
    is_ok: NDArray[np.bool_]
    """Which rows are ok under every model."""
    scores: ModelScores
    """Scores of those rows."""
    num_trained_tokens: NDArray[np.int64]
    """Tokens of each of them that the loss is over: the end of turn is, scored or not."""


def join(stores: Mapping[str, ScoreStore], *, same_tokens: bool) -> Joined:
    """Join the scores of some models by id.

    Args:
        stores: At least one store, by the model's role.
        same_tokens: Whether the models have to split every completion into as many tokens.

    Raises:
        WeightError: A store holds an example twice, the stores cover other examples or are made of
            other tokens, or no example is ok in all of them.
    """
    tables = {name: _sorted_rows(store) for name, store in stores.items()}
    first = next(iter(tables))
    ids = tables[first]["example_id"]
    for name, table in tables.items():
        if not table["example_id"].equals(ids):
            raise WeightError(f"the {name} scores cover other examples than the rest")
    status = _first_reason(tables)
    is_ok = pc.equal(status, "ok")
    if not pc.any(is_ok).as_py():
        raise WeightError("no example could be scored under every model")
    kept = {name: table.filter(is_ok) for name, table in tables.items()}
    if same_tokens:
        _refuse_other_tokens(kept)
    # The large model is the one that is trained: its tokens are those of the loss.
    scores = _scores(kept, lengths_of="large" if "large" in kept else first)
    trained = kept["large" if "large" in kept else first]["num_trained_tokens"]
    return Joined(ids, status, is_ok.to_numpy(), scores, trained.cast(pa.int64()).to_numpy())


def _sorted_rows(store: ScoreStore) -> pa.Table:
    """Rows of a store without their tokens, sorted by id."""
    table = store.read(_COLUMNS)
    # 64-bit offsets: the ids of many rows together can pass 2 GiB.
    table = table.set_column(0, "example_id", table["example_id"].cast(pa.large_string()))
    table = table.combine_chunks()
    # UTF-8 sorts by its bytes as Python sorts text, by code points.
    table = table.take(pc.sort_indices(table["example_id"]))
    ids = table["example_id"]
    if pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
        raise WeightError(f"{store.folder} holds an example twice")
    return table


def _first_reason(tables: Mapping[str, pa.Table]) -> pa.ChunkedArray:
    """For each row the first status that is not ok, else ``ok``."""
    found, *others = (table["status"] for table in tables.values())
    for other in others:
        found = pc.if_else(pc.equal(found, "ok"), other, found)
    return found


def _refuse_other_tokens(tables: Mapping[str, pa.Table]) -> None:
    first, *others = (table["num_tokens"] for table in tables.values())
    if not all(other.equals(first) for other in others):
        raise WeightError(
            "the models split the completions into different tokens, so that a ratio per token "
            "is not defined; score with models that share a tokenizer, or use unit: byte"
        )


def _scores(tables: Mapping[str, pa.Table], *, lengths_of: str) -> ModelScores:
    logprobs = {name: table["sequence_logprob"].to_numpy() for name, table in tables.items()}
    lengths = tables[lengths_of]
    return ModelScores(
        large=logprobs.get("large"),
        reference=logprobs.get("reference"),
        small=logprobs.get("small"),
        proxy=logprobs.get("proxy"),
        num_tokens=lengths["num_tokens"].cast(pa.int64()).to_numpy(),
        num_bytes=lengths["num_bytes"].cast(pa.int64()).to_numpy(),
    )
