"""Join the models' scores by id, apply a scheme, and say how far the weights can be trusted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlantis.disk import digest_json
from atlantis.errors import WeightError
from atlantis.numerics.diagnostics import length_deciles
from atlantis.numerics.importance import (
    Clipped,
    clip_after_mean_one,
    clip_around_median,
    mean_one,
    mean_one_within,
    pareto_smooth,
    temper,
)
from atlantis.store import ScoreStore
from atlantis.weighting.diagnosis import Groups, mean_weights, measures, warnings_of
from atlantis.weighting.join import Joined, join
from atlantis.weighting.ratios import Floats
from atlantis.weighting.schemes import ClipAfterMeanOne, ClipAroundMedian, WeightingConfig
from atlantis.weighting.weights import Weights

VERSION = 1
"""Raised when a change of the code changes weights."""


def weigh(
    *,
    large: ScoreStore | None = None,
    reference: ScoreStore | None = None,
    small: ScoreStore | None = None,
    proxy: ScoreStore | None = None,
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
        proxy: Scores of the large model by the back end ``proxy``.
        config: The scheme and what follows it.
        normalise_for: ``tokens`` makes the mean weight per trained token one (the token-mean and
            sequence-sum losses keep the scale of plain SFT), ``examples`` the mean per example.
        labels: Class of each example, for what the configuration does within labels and for the
            mean weight per class.

    Raises:
        WeightError: Scores are missing, belong to other data, or cannot be combined.
    """
    stores = {"large": large, "reference": reference, "small": small, "proxy": proxy}
    given = {name: store for name, store in stores.items() if store is not None}
    joined = join(_used(given, config), same_tokens=config.scheme.compares_tokens)
    groups = _groups(joined, labels)
    masses = joined.num_trained_tokens
    if normalise_for == "examples":
        masses = np.ones_like(masses)
    try:
        outcome = _apply(joined, config, masses=masses, groups=groups)
    except WeightError:
        raise
    except ValueError as error:  # what the numerics refuse
        raise WeightError(f"scheme {config.scheme.kind!r}: {error}") from None
    first = next(iter(given.values())).fingerprint
    origin = {
        "scheme": config.model_dump(mode="json"),
        "normalise_for": normalise_for,
        "rendered_text": first["rendered_text"],
        "source": first["source"],
        "scoring": first["scoring"],
        "scores": {name: digest_json(store.fingerprint) for name, store in given.items()},
    }
    return _complete(joined, outcome, groups, origin)


def _used(given: Mapping[str, ScoreStore], config: WeightingConfig) -> dict[str, ScoreStore]:
    """The stores that the scheme needs, once it is clear that all are of the same data."""
    needed = config.scheme.models
    for name in needed:
        if name not in given:
            raise WeightError(f"scheme {config.scheme.kind!r} needs scores of the {name} model")
    if not given:
        raise WeightError("no scores given: at least one store has to say which examples there are")
    _check_same_data(given)
    return {name: given[name] for name in needed} or dict(list(given.items())[:1])


def _check_same_data(stores: Mapping[str, ScoreStore]) -> None:
    """All stores hold the same rows, read in the same way; native templates may read otherwise."""
    prints = {name: store.fingerprint for name, store in stores.items()}
    first_name, first = next(iter(prints.items()))
    is_native = first["scoring"].get("template") == "native"
    for name, fingerprint in prints.items():
        for field in ("source", "scoring") if is_native else ("source", "scoring", "rendered_text"):
            if fingerprint[field] != first[field]:
                raise WeightError(
                    f"the {name} and the {first_name} scores differ in {field}: {_SAME[field]}"
                )


_SAME = {
    "source": "score both over the same rows",
    "scoring": "score both with the same settings",
    "rendered_text": "their chat templates differ; score both with the same --chat-template, or "
    "with --template native if that is what you want",
}


def _groups(joined: Joined, labels: Mapping[str, str] | None) -> dict[str, Groups]:
    """Groups of the rows that are ok, by the name of the grouping."""
    # Ten at most: one digit, so that names sort as numbers do.
    deciles, numbers = np.unique(length_deciles(joined.scores.num_tokens), return_inverse=True)
    groups = {"length_decile": Groups([str(decile) for decile in deciles.tolist()], numbers)}
    if labels is not None:
        ids = joined.example_id.filter(joined.is_ok).to_pylist()
        missing = [i for i in ids if i not in labels]
        if missing:
            raise WeightError(f"example {missing[0]!r} has scores but no label")
        groups["label"] = Groups.of([str(labels[i]) for i in ids])
    return groups


@dataclass(frozen=True)
class _Outcome:
    log_weights: Floats
    log_normaliser: float | None
    """What takes a log-weight back to its value before mean one; None where groups differ in it."""
    kappa: float
    before_clipping: Floats
    low_fraction: float
    high_fraction: float


def _apply(
    joined: Joined,
    config: WeightingConfig,
    *,
    masses: NDArray[np.int64],
    groups: Mapping[str, Groups],
) -> _Outcome:
    """The steps of METHODS in their order: combine, temper, clip or smooth, normalise."""
    labels = groups["label"].numbers if "label" in groups else None
    raw = config.scheme.log_weights(joined.scores._replace(labels=labels))
    if np.isnan(raw).any() or np.isposinf(raw).any():
        raise WeightError("some log-weights are not finite; look for scores of exactly 0")
    tempered = temper(raw, kappa=config.kappa, min_ess_fraction=config.min_ess_fraction)
    clipped = _clip(tempered.log_weights, config, masses=masses)
    normalised = _normalise(clipped.log_weights, config, masses=masses, groups=groups)
    largest = int(normalised.argmax())  # finite, or nothing could be normalised
    shift = float(clipped.log_weights[largest] - normalised[largest])
    return _Outcome(
        normalised,
        shift if config.normalise_within == "none" else None,
        tempered.kappa,
        tempered.log_weights,
        clipped.low_fraction,
        clipped.high_fraction,
    )


def _clip(log_weights: Floats, config: WeightingConfig, *, masses: NDArray[np.int64]) -> Clipped:
    if config.pareto_smooth:
        return Clipped(pareto_smooth(log_weights), 0.0, 0.0)
    if isinstance(config.clip, ClipAroundMedian):
        return clip_around_median(log_weights, factor=config.clip.factor)
    if isinstance(config.clip, ClipAfterMeanOne):
        return clip_after_mean_one(
            log_weights, low=config.clip.low, high=config.clip.high, masses=masses
        )
    return Clipped(log_weights, 0.0, 0.0)


def _normalise(
    log_weights: Floats,
    config: WeightingConfig,
    *,
    masses: NDArray[np.int64],
    groups: Mapping[str, Groups],
) -> Floats:
    within = config.normalise_within
    if within == "none":
        return mean_one(log_weights, masses=masses)
    if within not in groups:
        raise WeightError(f"normalise_within {within!r} needs the examples' labels")
    names, numbers = groups[within]
    num_positive = np.bincount(numbers, weights=~np.isneginf(log_weights))
    if not num_positive.all():
        raise ValueError(f"all weights of group {names[int(num_positive.argmin())]!r} are zero")
    return mean_one_within(log_weights, masses=masses, groups=numbers)


def _complete(
    joined: Joined,
    outcome: _Outcome,
    groups: Mapping[str, Groups],
    origin: Mapping[str, Any],
) -> Weights:
    """Put the rows without a weight back in, and add the diagnostics."""
    lengths = joined.scores.num_tokens
    status = joined.status.to_pylist()
    report = {
        **measures(outcome.log_weights, lengths),
        **origin,
        "num_examples": len(status),
        "num_ok": int(joined.is_ok.sum()),
        "status_counts": dict(sorted(Counter(status).items())),
        "kappa": outcome.kappa,
        "log_normaliser": outcome.log_normaliser,
        "clipped_low_fraction": outcome.low_fraction,
        "clipped_high_fraction": outcome.high_fraction,
        "before_clipping": measures(outcome.before_clipping, lengths),
        "mean_weight_by_group": {
            name: mean_weights(outcome.log_weights, grouping) for name, grouping in groups.items()
        },
    }
    report["warnings"] = warnings_of(report)
    return Weights(
        joined.example_id.to_pylist(),
        status,
        _with_nulls(outcome.log_weights, joined.is_ok),
        _with_nulls(np.exp(outcome.log_weights), joined.is_ok),
        report,
    )


def _with_nulls(values: Floats, is_ok: NDArray[np.bool_]) -> list[float | None]:
    """One value for every row: None where there is none."""
    everything = np.full(is_ok.size, None, dtype=object)
    everything[is_ok] = values
    return everything.tolist()
