"""From scores or weights to a selection: a weights file in which most weights are zero."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlantis.errors import WeightError
from atlantis.numerics.diagnostics import length_deciles
from atlantis.selection.diversity import facility_location
from atlantis.selection.ranking import (
    Floats,
    ifd_loss_ratio,
    ifd_perplexity_ratio,
    matched_rows,
    num_selected,
    random_rows,
    top,
)
from atlantis.store import ScoreStore
from atlantis.weighting.diagnosis import measures, warnings_of
from atlantis.weighting.weights import Weights

Method = Literal[
    "ifd_perplexity_ratio", "ifd_loss_ratio", "weight", "random", "longest", "length_matched"
]
VERSION = 1
"""Raised when a change of the code changes selections."""

_IFD = ("ifd_perplexity_ratio", "ifd_loss_ratio", "length_matched")
_NEEDS_SCORES = (*_IFD, "longest")
Share = Annotated[float, Field(gt=0.0, le=1.0)] | Annotated[int, Field(ge=1)]


class SelectionConfig(BaseModel):
    """Which rows are selected, and how many."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    method: Method = "ifd_perplexity_ratio"
    """What rows are ranked by: instruction-following difficulty as Superfiltering
    (``ifd_perplexity_ratio``) or Cherry (``ifd_loss_ratio``) defines it, the highest ``weight``, or
    as baselines ``random``, ``longest`` completions, and ``length_matched``: random rows with as
    many of each length decile as ``ifd_perplexity_ratio`` selects."""
    share: Share = 0.1
    """How many: a fraction, rounded down but not to none, or a count."""
    of: Literal["all", "kept"] = "all"
    """What a fraction is of: all rows that could be scored, or those that no rule drops."""
    min_tokens: int = Field(default=1, ge=1)
    """Completions with fewer tokens are dropped: a mean over few tokens says little."""
    drop_unhelped: bool = True
    """For IFD: drop rows at 1 and above, whose prompt does not help; often it is another's."""
    pool: Share | None = None
    """Take so many by the method first, and of these the ones that cover the others best (facility
    location over embeddings)."""
    keep_weights: bool = False
    """Give selected rows their weights, at mean one, instead of one."""
    seed: int = Field(default=0, ge=0)
    """Seed of random choices."""

    @model_validator(mode="after")
    def _pool_holds_the_selection(self) -> Self:
        if self.pool is None:
            return self
        if isinstance(self.pool, int) == isinstance(self.share, int) and self.pool < self.share:
            raise ValueError(f"pool {self.pool} is smaller than share {self.share}")
        return self


class Selection(BaseModel):
    """The selection, and what it was made from."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    weights: Weights
    """Zero for rows that are not selected."""
    ranking: pa.Table
    """Value and rank of every row that was ranked: ``example_id``, ``status``, ``value``,
    ``num_tokens``, ``is_selected``, sorted by id. A row without a value says why not."""


@dataclass(frozen=True)
class _Candidates:
    """All rows by id, and what is known of those that can be ranked."""

    ids: list[str]
    status: list[str]
    is_ok: NDArray[np.bool_]
    num_tokens: NDArray[np.int64] | None
    """Tokens of the completion; zero where the row is not ok."""
    masses: NDArray[np.float64]
    """Trained tokens, for mean one."""
    values: dict[str, Floats]
    """What rows can be ranked by; NaN where the row is not ok."""
    origin: dict[str, Any]


def select(
    config: SelectionConfig,
    *,
    given: ScoreStore | None = None,
    alone: ScoreStore | None = None,
    weights: Weights | None = None,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> Selection:
    """Select rows.

    Args:
        config: Which and how many.
        given: Scores of the completions after their prompts.
        alone: Scores of the same completions by themselves, under the same model.
        weights: Weights of the same rows, for ``weight``, ``keep_weights`` and ``random``.
        embeddings: One vector per row by id, for ``pool``.

    Raises:
        WeightError: What the method needs is missing, belongs to other rows, or leaves no row.
    """
    _refuse_missing(config, given, alone, weights, embeddings)
    found = _candidates(given, alone, weights)
    kept, dropped = _kept(found, config)
    if not kept.size:
        raise WeightError(f"no row is left to select from; dropped: {dropped}")
    base = int(found.is_ok.sum()) if config.of == "all" else kept.size
    count = min(num_selected(config.share, base), kept.size)
    chosen = _choose(found, config, kept, count, base=base, embeddings=embeddings)
    values = _weights_of(found, config, chosen)
    selected = values > 0
    diagnostics = {
        **measures(_log(values[selected]), _lengths(found)[selected]),
        **found.origin,
        "scheme": {"scheme": {"kind": "selection"}, **config.model_dump(mode="json")},
        "normalise_for": "tokens",
        "num_examples": len(found.ids),
        "num_ok": int(found.is_ok.sum()),
        "num_selected": len(chosen),
        "status_counts": dict(sorted(Counter(found.status).items())),
        "dropped": dropped,
        "clipped_low_fraction": 0.0,
        "clipped_high_fraction": 0.0,
    }
    diagnostics["warnings"] = warnings_of(diagnostics)
    return Selection(
        weights=_as_weights(found, values, diagnostics), ranking=_ranking(found, config, chosen)
    )


def _refuse_missing(
    config: SelectionConfig,
    given: ScoreStore | None,
    alone: ScoreStore | None,
    weights: Weights | None,
    embeddings: Mapping[str, NDArray[np.float32]] | None,
) -> None:
    method = config.method
    if method in _NEEDS_SCORES and given is None:
        raise WeightError(f"method {method} needs scores: name a model")
    if method in _IFD and alone is None:
        raise WeightError(f"method {method} needs scores of the completions by themselves, too")
    if (method == "weight" or config.keep_weights) and weights is None:
        what = "keep_weights" if config.keep_weights else "method weight"
        raise WeightError(f"{what} needs a weights file")
    if weights is not None and given is not None and not config.keep_weights and method != "weight":
        raise WeightError(f"weights have no effect on method {method}; give keep_weights, too")
    if given is None and weights is None:
        raise WeightError(f"method {method} needs scores or weights, to know which rows there are")
    if given is None and config.min_tokens > 1:
        raise WeightError("min_tokens needs scores, to know how long completions are: name a model")
    if config.pool is not None and embeddings is None:
        raise WeightError("pool needs embeddings: one vector per row")


def _candidates(
    given: ScoreStore | None, alone: ScoreStore | None, weights: Weights | None
) -> _Candidates:
    """The rows sorted by id, so that their order in the data means nothing."""
    if given is None:
        assert weights is not None  # `_refuse_missing`
        return _from_weights(weights)
    fingerprint = given.fingerprint
    columns = ["example_id", "status", "num_tokens", "sequence_logprob", "num_trained_tokens"]
    table = given.read(columns).sort_by("example_id")
    origin = {name: fingerprint[name] for name in ("source", "rendered_text", "scoring")}
    status: list[str] = table["status"].to_pylist()
    nll = _mean_nll(table)
    values = {"longest": _filled(table["num_tokens"], np.nan)}
    if alone is not None:
        other = _same_rows(given, alone).read(columns).sort_by("example_id")
        # What only one of the two passes could score has no ratio.
        pairs = zip(status, other["status"].to_pylist(), strict=True)
        status = [first if first != "ok" else second for first, second in pairs]
        nll_alone = _mean_nll(other)
        values["ifd_perplexity_ratio"] = ifd_perplexity_ratio(nll, nll_alone)
        values["ifd_loss_ratio"] = ifd_loss_ratio(nll, nll_alone)
    ids: list[str] = table["example_id"].to_pylist()
    if weights is not None:
        values["weight"] = _weights_by_id(weights, ids)
        status = [
            "no_weight" if state == "ok" and np.isnan(weight) else state
            for state, weight in zip(status, values["weight"], strict=True)
        ]
    is_ok = np.array([state == "ok" for state in status])
    lengths = _filled(table["num_tokens"], 0).astype(np.int64)
    masses = _filled(table["num_trained_tokens"], 0)
    return _Candidates(ids, status, is_ok, lengths, masses, values, origin)


def _from_weights(weights: Weights) -> _Candidates:
    order = sorted(range(len(weights.example_id)), key=lambda row: weights.example_id[row])
    status = [weights.status[row] for row in order]
    ids = [weights.example_id[row] for row in order]
    is_ok = np.array([state == "ok" for state in status])
    made = weights.diagnostics
    origin = {n: made[n] for n in ("source", "rendered_text", "scoring") if n in made}
    values = {"weight": _weights_by_id(weights, ids)}
    return _Candidates(ids, status, is_ok, None, is_ok.astype(np.float64), values, origin)


def _same_rows(given: ScoreStore, alone: ScoreStore) -> ScoreStore:
    first, second = given.fingerprint, alone.fingerprint
    for field in ("source", "rendered_text", "model", "loading"):
        if first.get(field) != second.get(field):
            raise WeightError(f"{alone.folder} and {given.folder} differ in {field}; score again")
    conditions = [f["scoring"]["condition"] for f in (first, second)]
    if conditions != ["prompt", "none"]:
        raise WeightError(
            f"{given.folder} and {alone.folder} have the conditions {conditions}, not prompt, none"
        )
    return alone


def _mean_nll(table: pa.Table) -> Floats:
    """Mean negative log-likelihood per token, NaN where a row has none."""
    return -_filled(table["sequence_logprob"], np.nan) / _filled(table["num_tokens"], np.nan)


def _filled(column: pa.ChunkedArray, value: float) -> Floats:
    return np.array([value if x is None else x for x in column.to_pylist()], dtype=np.float64)


def _weights_by_id(weights: Weights, ids: list[str]) -> Floats:
    by_id = dict(zip(weights.example_id, weights.weight, strict=True))
    missing = [name for name in ids if name not in by_id]
    if missing or len(by_id) != len(ids):
        name = missing[0] if missing else min(set(by_id) - set(ids))
        raise WeightError(f"weights and scores are of other rows (example {name!r}); weigh again")
    return np.array([np.nan if by_id[i] is None else by_id[i] for i in ids], dtype=np.float64)


def _kept(found: _Candidates, config: SelectionConfig) -> tuple[NDArray[np.intp], dict[str, int]]:
    """Rows that no rule drops, and how many each rule drops."""
    keep = found.is_ok.copy()
    dropped: dict[str, int] = {}
    if found.num_tokens is not None and config.min_tokens > 1:
        short = keep & (found.num_tokens < config.min_tokens)
        dropped["fewer than min_tokens"] = int(short.sum())
        keep &= ~short
    if config.method in _IFD and config.drop_unhelped:
        name = "ifd_loss_ratio" if config.method == "ifd_loss_ratio" else "ifd_perplexity_ratio"
        with np.errstate(invalid="ignore"):
            unhelped = keep & (found.values[name] >= 1)
        dropped["the prompt does not help"] = int(unhelped.sum())
        keep &= ~unhelped
    return np.flatnonzero(keep), dropped


def _choose(
    found: _Candidates,
    config: SelectionConfig,
    kept: NDArray[np.intp],
    count: int,
    *,
    base: int,
    embeddings: Mapping[str, NDArray[np.float32]] | None,
) -> NDArray[np.intp]:
    """Row numbers of the selection."""
    size = count if config.pool is None else min(num_selected(config.pool, base), kept.size)
    pool = kept[_best(found, config, kept, size)]
    if config.pool is None or embeddings is None:
        return pool
    missing = [found.ids[row] for row in pool if found.ids[row] not in embeddings]
    if missing:
        raise WeightError(f"example {missing[0]!r} has no embedding")
    vectors = np.stack([embeddings[found.ids[row]] for row in pool])
    return pool[facility_location(vectors, [found.ids[row] for row in pool], count)]


def _best(
    found: _Candidates, config: SelectionConfig, kept: NDArray[np.intp], count: int
) -> NDArray[np.intp]:
    """Places in ``kept`` of the rows that the method takes first."""
    ids = [found.ids[row] for row in kept]
    if config.method == "random":
        return random_rows(ids, count, seed=config.seed)
    if config.method != "length_matched":
        return top(found.values[config.method][kept], ids, count)
    assert found.num_tokens is not None  # `_refuse_missing`
    by_ifd = top(found.values["ifd_perplexity_ratio"][kept], ids, count)
    return matched_rows(length_deciles(found.num_tokens[kept]), by_ifd, ids, seed=config.seed)


def _weights_of(found: _Candidates, config: SelectionConfig, chosen: NDArray[np.intp]) -> Floats:
    values = np.zeros(len(found.ids))
    if not config.keep_weights:
        values[chosen] = 1.0
        return values
    kept = found.values["weight"][chosen]
    masses = found.masses[chosen]
    if not (kept * masses).any():
        raise WeightError("all selected rows have weight zero")
    values[chosen] = kept * masses.sum() / (kept * masses).sum()
    return values


def _as_weights(found: _Candidates, values: Floats, diagnostics: dict[str, Any]) -> Weights:
    logs = _log(values)
    return Weights(
        found.ids,
        found.status,
        [float(v) if ok else None for v, ok in zip(logs, found.is_ok, strict=True)],
        [float(v) if ok else None for v, ok in zip(values, found.is_ok, strict=True)],
        diagnostics,
    )


def _ranking(found: _Candidates, config: SelectionConfig, chosen: NDArray[np.intp]) -> pa.Table:
    method = "ifd_perplexity_ratio" if config.method == "length_matched" else config.method
    values = found.values.get(method)
    is_selected = np.zeros(len(found.ids), dtype=bool)
    is_selected[chosen] = True
    shown: list[float | None] = [
        None if values is None or not ok else float(values[row])
        for row, ok in enumerate(found.is_ok)
    ]
    return pa.table(
        {
            "example_id": found.ids,
            "status": found.status,
            "value": pa.array(shown, pa.float64()),
            "num_tokens": pa.array(_lengths(found), pa.int64()),
            "is_selected": is_selected,
        }
    )


def _lengths(found: _Candidates) -> NDArray[np.int64]:
    if found.num_tokens is None:
        return np.zeros(len(found.ids), dtype=np.int64)
    return found.num_tokens


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(values)
