"""Models trained in several ways on the same maths problems: avg@n side by side.

The result is plain JSON, so that the report and other programs read the same numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlantis.disk import read_table
from atlantis.errors import DataError
from atlantis.numerics.statistics import paired_bootstrap_counts, percentile_interval

Results = Mapping[str, Mapping[int, Path]]
"""``problems.parquet`` of every arm and seed, as `atlantis.evaluation.maths_stage` writes it."""
_Shares = NDArray[np.float64]
VERSION = 1
"""Raised when a change of the code changes numbers."""
MEAN = "mean"
"""The benchmarks together, each counting the same."""


def compare_maths(
    results: Results,
    *,
    baseline: str,
    grader: str,
    num_replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Every arm's share of right samples on every benchmark, and its difference from the baseline.

    The intervals come from a two-level paired bootstrap: each replicate draws problems of every
    benchmark, and training seeds, the same for all arms; its statistic is the mean over the drawn
    seeds of the mean over the drawn problems.

    Args:
        results: What each arm and seed gave. All arms have the same seeds and problems.
        baseline: The arm that the others are compared with.
        grader: Whose verdicts count.
        num_replicates: Bootstrap replicates.
        level: Coverage of the percentile intervals.
        seed: Makes the draws; the same arguments give the same numbers.

    Raises:
        DataError: Arms, seeds or problems do not fit together.
    """
    shares, num_samples = _shares(results, baseline, grader)
    seeds = sorted(results[baseline])
    rng = np.random.default_rng(seed)
    drawn_seeds = _draws(len(seeds), num_replicates, rng)
    replicates: dict[str, dict[str, _Shares]] = {arm: {} for arm in results}
    for benchmark, by_arm in shares.items():
        counts = _draws(next(iter(by_arm.values())).shape[1], num_replicates, rng)
        for arm, found in by_arm.items():  # [seed, problem]
            per_seed = counts @ found.T / found.shape[1]  # [replicate, seed]
            replicates[arm][benchmark] = (per_seed * drawn_seeds).sum(1) / len(seeds)
    for by_benchmark in replicates.values():
        by_benchmark[MEAN] = np.mean(list(by_benchmark.values()), axis=0)
    means = {arm: _means({b: by_arm[arm] for b, by_arm in shares.items()}) for arm in results}

    def summary(arm: str, name: str) -> dict[str, Any]:
        found = percentile_interval(
            float(means[arm][name].mean()), replicates[arm][name], level=level
        )
        difference = percentile_interval(
            float((means[arm][name] - means[baseline][name]).mean()),
            replicates[arm][name] - replicates[baseline][name],
            level=level,
        )
        versus = {"difference": difference.estimate, "low": difference.low, "high": difference.high}
        return {
            "mean": found.estimate,
            "low": found.low,
            "high": found.high,
            "per_seed": means[arm][name].tolist(),
            "versus_baseline": None if arm == baseline else versus,
        }

    names = [*shares, *([MEAN] if len(shares) > 1 else [])]
    return {
        "metric": f"avg@{num_samples}",
        "grader": grader,
        "baseline": baseline,
        "seeds": seeds,
        "num_replicates": num_replicates,
        "level": level,
        "num_problems": {
            name: next(iter(by_arm.values())).shape[1] for name, by_arm in shares.items()
        },
        "arms": {arm: {name: summary(arm, name) for name in names} for arm in results},
    }


def _shares(
    results: Results, baseline: str, grader: str
) -> tuple[dict[str, dict[str, _Shares]], int]:
    """Shares of right samples ``[seed, problem]`` by benchmark and arm, and samples per problem."""
    if baseline not in results:
        raise DataError(f"baseline {baseline!r} is no arm; the arms are {', '.join(results)}")
    seeds = sorted(results[baseline])
    found: dict[str, dict[str, list[_Shares]]] = {}
    expected: list[tuple[str, str]] | None = None
    sizes: set[int] = set()
    for arm, by_seed in results.items():
        if sorted(by_seed) != seeds:
            raise DataError(f"arm {arm!r} has seeds {sorted(by_seed)}, {baseline!r} has {seeds}")
        for number in seeds:
            rows = [
                row for row in read_table(by_seed[number]).to_pylist() if row["grader"] == grader
            ]
            ids = [(row["benchmark"], row["example_id"]) for row in rows]
            expected = expected or ids
            if not ids or ids != expected:
                raise DataError(f"{by_seed[number]}: other problems than in the first arm")
            sizes |= {row["num_samples"] for row in rows}
            for benchmark in dict(ids):
                shares = [
                    row["num_correct"] / row["num_samples"]
                    for row in rows
                    if row["benchmark"] == benchmark
                ]
                found.setdefault(benchmark, {}).setdefault(arm, []).append(np.array(shares))
    if len(sizes) != 1:
        raise DataError(f"the problems have {sorted(sizes)} samples; compare equal numbers")
    stacked = {
        benchmark: {arm: np.stack(by_seed) for arm, by_seed in by_arm.items()}
        for benchmark, by_arm in found.items()
    }
    return stacked, sizes.pop()


def _draws(num_items: int, num_replicates: int, rng: np.random.Generator) -> _Shares:
    counts = [*paired_bootstrap_counts(num_items, num_replicates, rng)]
    return np.concatenate(counts).astype(np.float64)


def _means(by_benchmark: Mapping[str, _Shares]) -> dict[str, _Shares]:
    """Means over the problems, ``[seed]``, and those of all benchmarks together."""
    means = {name: shares.mean(1) for name, shares in by_benchmark.items()}
    return means | {MEAN: np.mean(list(means.values()), axis=0)}
