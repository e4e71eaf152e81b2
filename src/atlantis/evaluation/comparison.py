"""Arms against each other: metrics with intervals, and paired differences.

The result is plain JSON, so that the report and other programs read the same numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlantis.errors import DataError
from atlantis.evaluation.relations import (
    Counts,
    Shares,
    confusion,
    headline_metric,
    label_codes,
    relation_metrics,
)
from atlantis.numerics.statistics import paired_bootstrap_counts, percentile_interval
from atlantis.records import LabelSet

Predictions = Mapping[str, Mapping[int, Sequence[str | None]]]
"""For each arm and each seed, one answer per test item; ``None`` where there is none."""


class _Metric(NamedTuple):
    """One metric of one arm."""

    per_seed: Shares
    """On the test items as they are, ``[seed]``."""
    replicates: Shares
    """The mean over the seeds of each bootstrap replicate, ``[replicate]``."""


_Arm = dict[str, _Metric]


def compare(
    predictions: Predictions,
    gold: Sequence[str],
    labels: LabelSet,
    *,
    baseline: str,
    control: str | None,
    num_replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of every arm, and its difference from the baseline and from the control.

    The intervals come from a two-level paired bootstrap. Each replicate draws test items with
    replacement and training seeds with replacement, both the same for every arm, and its
    statistic is the mean over the drawn seeds. So an interval covers the choice of test items
    and of seeds, and what two arms have in common cancels in their difference.

    Args:
        predictions: For each arm and seed, the answers in the order of ``gold``. All arms must
            have the same seeds, since seeds are paired.
        gold: The true labels of the test items.
        labels: The label set that decides which metrics there are.
        baseline: The arm that ``versus_baseline`` compares with.
        control: The arm that ``versus_control`` compares with, if there is one.
        num_replicates: Bootstrap replicates.
        level: Coverage of the percentile intervals.
        seed: Makes the draws; the same arguments give the same numbers.

    Raises:
        DataError: Arms, seeds or answers do not fit together.
    """
    seeds = _paired_seeds(predictions, gold, baseline, control)
    replicates = _bootstrap(predictions, gold, labels, seeds, num_replicates, seed)
    arms = {
        arm: {
            name: _Metric(observed, replicates[arm][name])
            for name, observed in _observed(by_seed, gold, labels, seeds).items()
        }
        for arm, by_seed in predictions.items()
    }
    return {
        "headline": headline_metric(labels),
        "num_test": len(gold),
        "seeds": seeds,
        "num_replicates": num_replicates,
        "level": level,
        "labels": list(labels.names),
        "negative": labels.negative,
        "baseline": baseline,
        "control": control,
        "interval": _interval_sentence(len(gold), len(seeds), num_replicates, level),
        "arms": {
            arm: {
                "metrics": {name: _summary(m, len(gold), level) for name, m in metrics.items()},
                "unparsed": _unparsed(predictions[arm], labels, seeds),
                "versus_baseline": _versus(arms, arm, baseline, level),
                "versus_control": _versus(arms, arm, control, level),
            }
            for arm, metrics in arms.items()
        },
    }


def _paired_seeds(
    predictions: Predictions, gold: Sequence[str], baseline: str, control: str | None
) -> list[int]:
    for role, arm in (("baseline", baseline), ("control", control)):
        if arm is not None and arm not in predictions:
            raise DataError(f"{role} {arm!r} is no arm; the arms are {', '.join(predictions)}")
    seeds = sorted(predictions[baseline])
    if not gold or not seeds:
        raise DataError(f"{len(gold)} test items and {len(seeds)} seeds; one of each is the least")
    for arm, by_seed in predictions.items():
        if sorted(by_seed) != seeds:
            raise DataError(
                f"arm {arm!r} has seeds {sorted(by_seed)} but {baseline!r} has {seeds}; seeds are "
                "paired, so run every arm with the same ones"
            )
    return seeds


def _observed(
    by_seed: Mapping[int, Sequence[str | None]],
    gold: Sequence[str],
    labels: LabelSet,
    seeds: Sequence[int],
) -> dict[str, Shares]:
    """Each metric on the test items as they are, ``[seed]``."""
    tables = np.stack([confusion(gold, by_seed[seed], labels) for seed in seeds])
    return relation_metrics(tables, labels)


def _bootstrap(
    predictions: Predictions,
    gold: Sequence[str],
    labels: LabelSet,
    seeds: Sequence[int],
    num_replicates: int,
    seed: int,
) -> dict[str, dict[str, Shares]]:
    """For each arm and metric, the mean over the drawn seeds, ``[replicate]``."""
    item_rng, seed_rng = np.random.default_rng(seed).spawn(2)
    seed_counts = np.concatenate([*paired_bootstrap_counts(len(seeds), num_replicates, seed_rng)])
    resamplers = {
        arm: [_Resampler.of(label_codes(gold, by_seed[s], labels), labels) for s in seeds]
        for arm, by_seed in predictions.items()
    }
    chunks: dict[str, list[dict[str, Shares]]] = {arm: [] for arm in predictions}
    for item_counts in paired_bootstrap_counts(len(gold), num_replicates, item_rng):
        for arm, of_seeds in resamplers.items():
            tables = np.stack([resampler.tables(item_counts) for resampler in of_seeds], axis=1)
            chunks[arm].append(relation_metrics(tables, labels))
    return {arm: _mean_over_seeds(parts, seed_counts) for arm, parts in chunks.items()}


def _mean_over_seeds(chunks: list[dict[str, Shares]], seed_counts: Counts) -> dict[str, Shares]:
    weights = seed_counts / seed_counts.sum(axis=1, keepdims=True)
    return {
        name: (np.concatenate([chunk[name] for chunk in chunks]) * weights).sum(axis=1)
        for name in chunks[0]
    }


class _Resampler(NamedTuple):
    """Confusion tables of resampled items, by summing counts over runs of equal codes."""

    order: NDArray[np.intp]
    """Items sorted by code, so that each code is one run."""
    starts: NDArray[np.intp]
    codes: NDArray[np.intp]
    """The codes that occur, one for each run."""
    num_labels: int

    @classmethod
    def of(cls, codes: NDArray[np.intp], labels: LabelSet) -> "_Resampler":
        order = np.argsort(codes, kind="stable")
        present, starts = np.unique(codes[order], return_index=True)
        return cls(order, starts, present, len(labels.names))

    def tables(self, item_counts: Counts) -> Counts:
        """One confusion array for each row of counts: ``[replicate, label, label + 1]``."""
        num_replicates, num_labels = len(item_counts), self.num_labels
        tables = np.zeros((num_replicates, num_labels * (num_labels + 1)), dtype=np.int64)
        tables[:, self.codes] = np.add.reduceat(item_counts[:, self.order], self.starts, axis=1)
        return tables.reshape(num_replicates, num_labels, num_labels + 1)


def _summary(metric: _Metric, num_test: int, level: float) -> dict[str, Any]:
    mean = float(metric.per_seed.mean())
    interval = percentile_interval(mean, metric.replicates, level=level)
    return {
        "mean": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "per_seed": metric.per_seed.tolist(),
        "n": num_test,
    }


def _versus(
    arms: Mapping[str, _Arm], arm: str, other: str | None, level: float
) -> dict[str, dict[str, float]] | None:
    """The paired difference ``arm - other`` in every metric; None for the arm itself."""
    if other is None or arm == other:
        return None
    return {
        name: _difference(metric, arms[other][name], level) for name, metric in arms[arm].items()
    }


def _difference(metric: _Metric, other: _Metric, level: float) -> dict[str, float]:
    interval = percentile_interval(
        float((metric.per_seed - other.per_seed).mean()),
        metric.replicates - other.replicates,
        level=level,
    )
    return {"difference": interval.estimate, "low": interval.low, "high": interval.high}


def _unparsed(
    by_seed: Mapping[int, Sequence[str | None]], labels: LabelSet, seeds: Sequence[int]
) -> list[float]:
    """For each seed, the share of answers that are no label."""
    return [
        sum(answer not in labels.names for answer in by_seed[seed]) / len(by_seed[seed])
        for seed in seeds
    ]


def _interval_sentence(num_test: int, num_seeds: int, num_replicates: int, level: float) -> str:
    sentence = (
        f"{level:.0%} percentile intervals of a two-level paired bootstrap: {num_replicates} "
        f"replicates resample the {num_test} test items and the {num_seeds} seeds together, "
        "with the same draw for every arm"
    )
    if num_seeds == 1:
        sentence += "; with one seed, differences between training runs are not covered"
    return sentence + "."
