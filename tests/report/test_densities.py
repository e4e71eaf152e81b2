"""Distributions of weights: densities against the plain definition, and their drawings."""

import numpy as np
import pytest
from scipy.stats import norm

from atlantis.report.artifacts import WeightTable
from atlantis.report.charts import svg
from atlantis.report.densities import WeightSample, arm_densities, densities
from atlantis.report.weight_figures import distribution_chart, joint_chart


def sample(title, logs, shift=None):
    logs = np.asarray(logs, dtype=float)
    return WeightSample(title, logs, None if shift is None else logs + shift)


def curve(found, axis, title):
    points = [(point["x"], point["y"]) for point in found[axis] if point["title"] == title]
    return np.array(points).T


def table(logs, **diagnostics):
    logs = np.asarray(logs, dtype=float)
    return WeightTable(("ok",) * logs.size, logs, np.exp(logs), diagnostics)


def test_lognormal_weights_have_the_lognormal_density_on_both_axes():
    logs = np.random.default_rng(0).normal(0.1, 0.2, 50_000)  # more than an estimate takes
    found = densities([sample("a", logs, 0.0)])
    assert found["axis"] == "ratio"
    x, y = curve(found, "linear", "a")
    expected = norm.pdf(np.log(x), 0.1, 0.2) / x
    assert np.abs(y - expected).max() < 0.06 * expected.max()
    x, y = curve(found, "log", "a")
    expected = norm.pdf(np.log(x), 0.1, 0.2) * np.log(10)
    assert np.abs(y - expected).max() < 0.06 * expected.max()
    # The axes end where the last half per cent of the weights begins.
    assert x[[0, -1]] == pytest.approx(np.quantile(np.exp(logs), (0.005, 0.995)), rel=1e-3)


def test_a_density_holds_the_share_of_the_rows_that_its_axis_shows():
    rng = np.random.default_rng(1)
    found = densities([sample("a", rng.normal(0, 0.1, 4000)), sample("b", rng.normal(0, 1, 4000))])
    for title, share in (("a", 1.0), ("b", 0.99)):
        x, y = curve(found, "log", title)
        assert np.trapezoid(y, np.log10(x)) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("shifts", "axis"),
    [((0.5, -2.0), "ratio"), ((0.5, None), "weight, mean one"), ((0.5, 4e3), "weight, mean one")],
)
def test_one_means_the_same_for_all(shifts, axis):
    logs = np.linspace(-1, 1, 50)
    found = densities([sample(str(place), logs, shift) for place, shift in enumerate(shifts)])
    assert found["axis"] == axis
    x, _ = curve(found, "log", "0")
    moved = 0.5 if axis == "ratio" else 0.0
    assert -1 + moved - 1.5 < np.log(x).mean() < 1 + moved + 0.5
    assert np.isfinite(x).all()


def test_arms_are_pooled_over_seeds_and_permuted_arms_share_a_line():
    rng = np.random.default_rng(2)
    seeds = [rng.normal(0, 0.3, 200) for _ in range(2)]
    seeds[0][:5] = np.nan  # rows without a weight
    arms = {
        "atlantis": {s: table(w, log_normaliser=0.1 * s) for s, w in enumerate(seeds)},
        # Another mean per token, as a permutation has.
        "shuffled": {
            s: table(rng.permutation(w) - 0.01, log_normaliser=0.1 * s + 0.01)
            for s, w in enumerate(seeds)
        },
        "drop_lowest": {0: table(np.where(np.arange(200) < 10, 0.3 * rng.random(200), -np.inf))},
        "ones": {0: table(np.zeros(200))},
    }
    found = arm_densities(arms)
    title = "ATLANTIS / shuffled weights (control)"
    pooled = np.concatenate([seeds[0][5:], seeds[1] + 0.1])
    assert found == densities([sample(title, pooled, 0.0)])
    assert found["axis"] == "ratio"
    assert arm_densities({name: arms[name] for name in ("drop_lowest", "ones")}) is None


def test_charts_are_drawn_even_of_constant_weights():
    rng = np.random.default_rng(3)
    first = rng.normal(0, 1, 300)
    second = first + rng.normal(0, 1, 300)
    drawn = svg(distribution_chart(densities([sample("a", first, 0.0), sample("b", second, 0.0)])))
    assert drawn.startswith("<svg")
    assert drawn.count("ratio") >= 2  # one per axis
    assert svg(joint_chart(first, second, titles=("a", "b"))).startswith("<svg")
    constant = np.zeros(30)
    assert svg(distribution_chart(densities([sample("a", constant, 0.0)]))).startswith("<svg")
    assert svg(joint_chart(constant, constant, titles=("a", "b"))).startswith("<svg")
