"""How far weights can be trusted: figures, the mean weight per group, warnings and a refusal."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlantis.errors import WeightError
from atlantis.numerics import diagnostics
from atlantis.numerics.importance import mean_one
from atlantis.weighting.ratios import Floats

REFUSED_ESS_FRACTION = 0.01
WARNED_ESS_FRACTION = 0.1
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Groups(NamedTuple):
    """Which group each example is in. Numbers are compared, for names of many rows are slow."""

    names: Sequence[str]
    """Sorted; every group has an example."""
    numbers: NDArray[np.intp]
    """Position in ``names`` of each example's group."""

    @staticmethod
    def of(names: Sequence[str]) -> "Groups":
        """Groups of examples from the name of each one's group."""
        distinct = sorted(set(names))
        numbers = {name: number for number, name in enumerate(distinct)}
        return Groups(distinct, np.array([numbers[name] for name in names], dtype=np.intp))


def measures(log_weights: Floats, lengths: NDArray[np.int64]) -> dict[str, Any]:
    """Figures of a set of weights, and their correlation with the lengths of the completions."""
    ess = diagnostics.effective_sample_size(log_weights)
    weights = np.exp(mean_one(log_weights, masses=np.ones(log_weights.size)))
    quantiles = np.quantile(weights, _QUANTILES).tolist()
    return {
        "effective_sample_size": ess,
        "ess_fraction": ess / log_weights.size,
        "largest_share": diagnostics.largest_share(log_weights),
        "top_1_percent_share": diagnostics.top_share(log_weights, fraction=0.01),
        "pareto_k": diagnostics.pareto_k(log_weights),
        "spearman_length": diagnostics.rank_correlation(weights, lengths),
        "quantiles": {str(q): value for q, value in zip(_QUANTILES, quantiles, strict=True)},
    }


def mean_weights(log_weights: Floats, groups: Groups) -> dict[str, Any]:
    """Mean weight and size of every group."""
    weights = np.exp(log_weights)[np.argsort(groups.numbers, kind="stable")]
    ends = np.cumsum(np.bincount(groups.numbers))
    parts = np.split(weights, ends[:-1])
    return {
        name: {"mean": float(part.mean()), "n": part.size}
        for name, part in zip(groups.names, parts, strict=True)
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
    if ess > 1 - 1e-9 and report["scheme"]["scheme"]["kind"] not in ("uniform", "selection"):
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
