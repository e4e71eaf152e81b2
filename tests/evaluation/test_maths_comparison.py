"""Arms on the same maths problems: means, differences, and intervals against a naive bootstrap."""

import numpy as np
import pyarrow as pa
import pytest

from atlantis.disk import write_table
from atlantis.errors import DataError
from atlantis.evaluation.maths_comparison import compare_maths

SIZES = {"easy": 12, "hard": 30}
NUM_SAMPLES = 8


def written(path, counts):
    rows = [
        {
            "benchmark": name,
            "grader": grader,
            "example_id": f"{name}{place}",
            "num_samples": NUM_SAMPLES,
            "num_correct": int(count) if grader == "math_verify" else 0,
        }
        for grader in ("math_verify", "relative_tolerance")
        for name, found in counts.items()
        for place, count in enumerate(found)
    ]
    write_table(path, pa.Table.from_pylist(rows))
    return path


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    chances = {"base": 0.2, "sft": 0.4, "dft": 0.6}
    return {
        arm: {
            seed: {name: rng.binomial(NUM_SAMPLES, p, size) for name, size in SIZES.items()}
            for seed in (0, 1, 2)
        }
        for arm, p in chances.items()
    }


@pytest.fixture
def results(counts, tmp_path):
    return {
        arm: {
            seed: written(tmp_path / f"{arm}{seed}.parquet", found)
            for seed, found in by_seed.items()
        }
        for arm, by_seed in counts.items()
    }


def test_means_are_those_of_all_samples(counts, results):
    found = compare_maths(results, baseline="sft", grader="math_verify", num_replicates=200)
    assert found["metric"] == "avg@8"
    for arm, by_seed in counts.items():
        for name in SIZES:
            naive = [by_seed[seed][name].mean() / NUM_SAMPLES for seed in (0, 1, 2)]
            assert found["arms"][arm][name]["per_seed"] == pytest.approx(naive)
            assert found["arms"][arm][name]["mean"] == pytest.approx(np.mean(naive))
        both = [found["arms"][arm][name]["mean"] for name in SIZES]
        assert found["arms"][arm]["mean"]["mean"] == pytest.approx(np.mean(both))
    assert found["arms"]["sft"]["easy"]["versus_baseline"] is None
    assert found["num_problems"] == SIZES


def test_intervals_are_those_of_a_naive_two_level_bootstrap(counts, results):
    found = compare_maths(results, baseline="sft", grader="math_verify", num_replicates=4000)
    rng, differences = np.random.default_rng(7), []
    for _ in range(4000):
        seeds = rng.integers(3, size=3)
        value = 0.0
        for name, size in SIZES.items():
            drawn = rng.integers(size, size=size)
            pairs = [counts["dft"][s][name][drawn] - counts["sft"][s][name][drawn] for s in seeds]
            value += np.mean(pairs) / NUM_SAMPLES / len(SIZES)
        differences.append(value)
    versus = found["arms"]["dft"]["mean"]["versus_baseline"]
    low, high = np.quantile(differences, [0.025, 0.975])
    assert versus["low"] == pytest.approx(low, abs=0.01)
    assert versus["high"] == pytest.approx(high, abs=0.01)
    assert versus["difference"] == pytest.approx(
        found["arms"]["dft"]["mean"]["mean"] - found["arms"]["sft"]["mean"]["mean"]
    )


def test_the_other_grader_has_its_own_numbers(results):
    found = compare_maths(results, baseline="sft", grader="relative_tolerance", num_replicates=100)
    assert found["arms"]["dft"]["mean"]["mean"] == 0


def test_what_does_not_fit_together_is_refused(results, tmp_path, counts):
    with pytest.raises(DataError, match="'none' is no arm"):
        compare_maths(results, baseline="none", grader="math_verify")
    with pytest.raises(DataError, match="has seeds"):
        compare_maths(
            results | {"dft": {0: results["dft"][0]}}, baseline="sft", grader="math_verify"
        )
    other = written(tmp_path / "other.parquet", {"easy": counts["dft"][0]["easy"]})
    with pytest.raises(DataError, match="other problems"):
        compare_maths(
            results | {"dft": results["dft"] | {1: other}}, baseline="sft", grader="math_verify"
        )
