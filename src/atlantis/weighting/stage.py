"""Join the models' scores by id, apply a scheme, and say how far the weights can be trusted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from atlantis.errors import WeightError
from atlantis.numerics import diagnostics
from atlantis.numerics.importance import (
    clip_after_mean_one,
    clip_around_median,
    mean_one,
    mean_one_within,
    pareto_smooth,
    temper,
)
from atlantis.store import ScoreStore, digest_json, read_json, read_table, write_json, write_table
from atlantis.weighting.schemes import (
    ClipAfterMeanOne,
    ClipAroundMedian,
    Floats,
    ModelScores,
    WeightingConfig,
)

VERSION = 1
"""Raised when a change of the code changes weights."""

REFUSED_ESS_FRACTION = 0.01
WARNED_ESS_FRACTION = 0.1
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

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
    columns = {name: table[name].to_pylist() for name in WEIGHTS_SCHEMA.names}
    for example_id, count in Counter(columns["example_id"]).items():
        if count > 1:
            raise WeightError(f"{path}: example {example_id!r} stands there {count} times")
    weights = dict(zip(columns["example_id"], columns["weight"], strict=True))
    kept = [i for i, s in zip(columns["example_id"], columns["status"], strict=True) if s == "ok"]
    for example_id in kept:
        weight = weights[example_id]
        if weight is None or not np.isfinite(weight) or weight < 0:
            raise WeightError(
                f"{path}: weight {weight} of example {example_id!r}; weights are finite numbers of "
                "at least 0"
            )
    if not any(weights[example_id] for example_id in kept):
        raise WeightError(f"{path}: the weights sum to zero, there is nothing to train on")
    beside = path.with_suffix(".json")
    return Weights(**columns, diagnostics=read_json(beside) if beside.exists() else {})


def weigh(
    *,
    large: ScoreStore | None = None,
    reference: ScoreStore | None = None,
    small: ScoreStore | None = None,
    config: WeightingConfig,
    normalise_for: Literal["tokens", "examples"] = "tokens",
    labels: Mapping[str, str] | None = None,
) -> Weights:
    r"""Turn scores into weights.

    .. math:: \log w_i = \kappa (c_L S_{L,i} + c_r S_{r,i} + c_S S_{S,i}) / n_i^\alpha

    then clip or smooth, then normalise to mean one.

    Args:
        large: Scores of the model to be trained. A scheme needs only the models that it names.
        reference: Scores of the tuned small model.
        small: Scores of the small base model.
        config: The scheme and what follows it.
        normalise_for: ``tokens`` makes the mean weight per trained token one (the token-mean and
            sequence-sum losses keep the scale of plain SFT), ``examples`` the mean per example.
        labels: Class of each example, for ``normalise_within: label`` and the mean per class.

    Raises:
        WeightError: Scores are missing, belong to other data, or cannot be combined.
    """
    stores = {"large": large, "reference": reference, "small": small}
    given = {name: store for name, store in stores.items() if store is not None}
    needed = config.scheme.models
    for name in needed:
        if name not in given:
            raise WeightError(f"scheme {config.scheme.kind!r} needs scores of the {name} model")
    if not given:
        raise WeightError("no scores given: at least one store has to say which examples there are")
    _check_same_data(given)
    used = {name: given[name] for name in needed} or dict(list(given.items())[:1])
    joined = _Joined.read(used, same_tokens=config.scheme.compares_tokens)
    try:
        outcome = _apply(joined, config, normalise_for=normalise_for, labels=labels)
    except WeightError:
        raise
    except ValueError as error:  # what the numerics refuse
        raise WeightError(f"scheme {config.scheme.kind!r}: {error}") from None
    return _complete(joined, outcome, config, given, normalise_for=normalise_for)


@dataclass(frozen=True)
class _Joined:
    """Rows of all stores by id; ``scores`` holds the rows that are ok everywhere."""

    example_id: list[str]
    status: list[str]
    scores: ModelScores
    kept_ids: list[str]
    end_of_turn_tokens: int

    @staticmethod
    def read(stores: Mapping[str, ScoreStore], *, same_tokens: bool) -> "_Joined":
        tables = {name: _by_id(store) for name, store in stores.items()}
        ids = sorted(next(iter(tables.values())))
        for name, rows in tables.items():
            if sorted(rows) != ids:
                raise WeightError(f"the {name} scores cover other examples than the rest")
        status = [
            next((rows[i][0] for rows in tables.values() if rows[i][0] != "ok"), "ok") for i in ids
        ]
        kept = [i for i, s in zip(ids, status, strict=True) if s == "ok"]
        if not kept:
            raise WeightError("no example could be scored under every model")
        # The large model is the one that is trained: its tokens are those of the loss.
        first = tables.get("large") or next(iter(tables.values()))
        lengths = {name: [rows[i][2] for i in kept] for name, rows in tables.items()}
        logprobs = {
            name: np.array([rows[i][1] for i in kept], dtype=np.float64)
            for name, rows in tables.items()
        }
        scored_end = next(iter(stores.values())).fingerprint["scoring"]["score_end_of_turn"]
        scores = ModelScores(
            large=logprobs.get("large"),
            reference=logprobs.get("reference"),
            small=logprobs.get("small"),
            num_tokens=np.array([first[i][2] for i in kept], dtype=np.int64),
            num_bytes=np.array([first[i][3] for i in kept], dtype=np.int64),
        )
        if same_tokens and len({tuple(values) for values in lengths.values()}) > 1:
            raise WeightError(
                "the models split the completions into different tokens, so that a ratio per token "
                "is not defined; score with models that share a tokenizer, or use unit: byte"
            )
        return _Joined(ids, status, scores, kept, 0 if scored_end else 1)


@dataclass(frozen=True)
class _Outcome:
    log_weights: Floats
    kappa: float
    before_clipping: Floats
    low_fraction: float
    high_fraction: float
    groups: dict[str, NDArray[np.str_]]


def _by_id(store: ScoreStore) -> dict[str, tuple[str, float | None, int | None, int | None]]:
    names = ["example_id", "status", "sequence_logprob", "num_tokens", "num_bytes"]
    table = store.read(names)
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    result = {example_id: tuple(rest) for example_id, *rest in rows}
    if len(result) != table.num_rows:
        raise WeightError(f"{store.folder} holds an example twice")
    return result


def _check_same_data(stores: Mapping[str, ScoreStore]) -> None:
    prints = {name: store.fingerprint for name, store in stores.items()}
    first_name, first = next(iter(prints.items()))
    for name, fingerprint in prints.items():
        for field in ("rendered_text", "scoring"):
            ours, theirs = fingerprint[field], first[field]
            if field == "scoring":  # the batch size does not change what was scored
                ours, theirs = (
                    {k: v for k, v in x.items() if k != "token_budget"} for x in (ours, theirs)
                )
            if ours != theirs:
                raise WeightError(
                    f"the {name} and the {first_name} scores differ in {field}: score both over "
                    "the same rows with the same settings"
                )


def _apply(
    joined: _Joined,
    config: WeightingConfig,
    *,
    normalise_for: Literal["tokens", "examples"],
    labels: Mapping[str, str] | None,
) -> _Outcome:
    trained_tokens = joined.scores.num_tokens + joined.end_of_turn_tokens
    masses = trained_tokens if normalise_for == "tokens" else np.ones_like(trained_tokens)
    raw = config.scheme.log_weights(joined.scores)
    if np.isnan(raw).any() or np.isposinf(raw).any():
        raise WeightError("some log-weights are not finite; look for scores of exactly 0")
    tempered = temper(raw, kappa=config.kappa, min_ess_fraction=config.min_ess_fraction)
    log_weights, low, high = tempered.log_weights, 0.0, 0.0
    if config.pareto_smooth:
        log_weights = pareto_smooth(log_weights)
    if isinstance(config.clip, ClipAroundMedian):
        log_weights, low, high = clip_around_median(log_weights, factor=config.clip.factor)
    elif isinstance(config.clip, ClipAfterMeanOne):
        log_weights, low, high = clip_after_mean_one(
            log_weights, low=config.clip.low, high=config.clip.high, masses=masses
        )
    groups = _groups(joined, labels)
    if config.normalise_within == "none":
        log_weights = mean_one(log_weights, masses=masses)
    elif config.normalise_within not in groups:
        raise WeightError(
            f"normalise_within {config.normalise_within!r} needs the examples' labels"
        )
    else:
        log_weights = mean_one_within(
            log_weights, masses=masses, groups=groups[config.normalise_within]
        )
    return _Outcome(log_weights, tempered.kappa, tempered.log_weights, low, high, groups)


def _groups(joined: _Joined, labels: Mapping[str, str] | None) -> dict[str, NDArray[np.str_]]:
    lengths = joined.scores.num_tokens
    edges = np.quantile(lengths, np.linspace(0.1, 0.9, 9))
    groups = {"length_decile": np.searchsorted(np.unique(edges), lengths).astype(np.str_)}
    if labels is not None:
        missing = [i for i in joined.kept_ids if i not in labels]
        if missing:
            raise WeightError(f"example {missing[0]!r} has scores but no label")
        groups["label"] = np.array([labels[i] for i in joined.kept_ids], dtype=np.str_)
    return groups


def _complete(
    joined: _Joined,
    outcome: _Outcome,
    config: WeightingConfig,
    stores: Mapping[str, ScoreStore],
    *,
    normalise_for: str,
) -> Weights:
    """Put the rows without a weight back in, and add the diagnostics."""
    values = dict(zip(joined.kept_ids, outcome.log_weights.tolist(), strict=True))
    log_weight = [values.get(i) for i in joined.example_id]
    weight = [None if value is None else float(np.exp(value)) for value in log_weight]
    lengths = joined.scores.num_tokens
    report = _measures(outcome.log_weights, lengths) | {
        "scheme": config.model_dump(mode="json"),
        "normalise_for": normalise_for,
        "rendered_text": next(iter(stores.values())).fingerprint["rendered_text"],
        "scores": {name: digest_json(store.fingerprint) for name, store in stores.items()},
        "num_examples": len(joined.example_id),
        "num_ok": len(joined.kept_ids),
        "status_counts": {s: joined.status.count(s) for s in sorted(set(joined.status))},
        "kappa": outcome.kappa,
        "clipped_low_fraction": outcome.low_fraction,
        "clipped_high_fraction": outcome.high_fraction,
        "before_clipping": _measures(outcome.before_clipping, lengths),
        "mean_weight_by_group": {
            name: _means(outcome.log_weights, groups) for name, groups in outcome.groups.items()
        },
    }
    report["warnings"] = warnings_of(report)
    return Weights(joined.example_id, joined.status, log_weight, weight, report)


def _measures(log_weights: Floats, lengths: NDArray[np.int64]) -> dict[str, Any]:
    ess = diagnostics.effective_sample_size(log_weights)
    weights = np.exp(mean_one(log_weights, masses=np.ones(log_weights.size)))
    return {
        "effective_sample_size": ess,
        "ess_fraction": ess / log_weights.size,
        "largest_share": diagnostics.largest_share(log_weights),
        "top_1_percent_share": diagnostics.top_share(log_weights, fraction=0.01),
        "pareto_k": diagnostics.pareto_k(log_weights),
        "spearman_length": diagnostics.rank_correlation(weights, lengths),
        "quantiles": {str(q): float(np.quantile(weights, q)) for q in _QUANTILES},
    }


def _means(log_weights: Floats, groups: NDArray[np.str_]) -> dict[str, Any]:
    weights = np.exp(log_weights)
    return {
        str(group): {
            "mean": float(weights[groups == group].mean()),
            "n": int((groups == group).sum()),
        }
        for group in np.unique(groups)
    }


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """What is wrong with weights of these diagnostics, in words."""
    found: list[str] = []
    ess = report["ess_fraction"]
    if ess < WARNED_ESS_FRACTION:
        found.append(
            f"effective sample size is {ess:.2%} of the examples; a few of them decide the training"
        )
    clipped = report["clipped_low_fraction"] + report["clipped_high_fraction"]
    if clipped > 0.5:
        found.append(f"{clipped:.0%} of the weights sit at a clip bound")
    if ess > 1 - 1e-9 and report["scheme"]["scheme"]["kind"] != "uniform":
        found.append("the weights are constant: training with them is plain SFT")
    return found


def refuse_uneven(report: Mapping[str, Any], *, where: str) -> None:
    """Refuse weights that leave almost no data.

    Raises:
        WeightError: ESS/N is under 0.01.
    """
    if report.get("ess_fraction", 1.0) < REFUSED_ESS_FRACTION:
        raise WeightError(
            f"{where}: effective sample size is {report['ess_fraction']:.3%} of the examples; set "
            "min_ess_fraction or a clip in the weighting, or use --force"
        )
