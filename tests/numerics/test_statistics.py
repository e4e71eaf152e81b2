"""Bootstrap counts and intervals against plain loops and known distributions."""

import numpy as np
import pytest

from atlantis.numerics.statistics import paired_bootstrap_counts, percentile_interval


def counts_of(num_items, num_replicates, *, seed=0, **options):
    chunks = paired_bootstrap_counts(
        num_items, num_replicates, np.random.default_rng(seed), **options
    )
    return np.concatenate(list(chunks))


def test_every_replicate_draws_as_many_items_as_there_are():
    counts = counts_of(7, 50)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_counts_equal_a_plain_loop_over_drawn_indices():
    drawn = np.random.default_rng(3).integers(5, size=(4, 5))
    expected = [[list(row).count(item) for item in range(5)] for row in drawn]
    assert counts_of(5, 4, seed=3).tolist() == expected


def test_the_size_of_a_chunk_changes_no_count():
    whole = counts_of(11, 23)
    for max_cells in (1, 11, 50, 10_000):
        np.testing.assert_array_equal(whole, counts_of(11, 23, max_cells=max_cells))


def test_chunks_stay_below_the_bound():
    chunks = paired_bootstrap_counts(10, 35, np.random.default_rng(0), max_cells=100)
    assert [len(chunk) for chunk in chunks] == [10, 10, 10, 5]


def test_the_share_of_items_never_drawn_is_that_of_the_bootstrap():
    # (1 - 1/n)^n; over 400 x 200 cells its standard deviation is below 0.002, the bound is five.
    assert (counts_of(200, 400) == 0).mean() == pytest.approx((1 - 1 / 200) ** 200, abs=0.01)


@pytest.mark.parametrize(("num_items", "num_replicates"), [(0, 5), (5, 0)])
def test_nothing_to_draw_is_refused(num_items, num_replicates):
    with pytest.raises(ValueError, match="cannot draw"):
        paired_bootstrap_counts(num_items, num_replicates, np.random.default_rng(0))


def test_interval_holds_the_central_share_of_the_replicates():
    replicates = np.random.default_rng(0).permutation(np.arange(101) / 100)
    interval = percentile_interval(0.4, replicates, level=0.9)
    assert interval == pytest.approx((0.4, 0.05, 0.95), abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_outside_zero_and_one_is_refused(level):
    with pytest.raises(ValueError, match="not between 0 and 1"):
        percentile_interval(0.5, np.array([0.5]), level=level)


@pytest.mark.parametrize("replicates", [[], [0.5, np.nan], [np.inf]])
def test_replicates_that_are_no_numbers_are_refused(replicates):
    with pytest.raises(ValueError, match="finite"):
        percentile_interval(0.5, np.array(replicates, dtype=np.float64), level=0.9)


def test_interval_covers_a_mean_about_as_often_as_it_says():
    # 300 trials at 90 %: standard deviation of the coverage 1.7 %, and the percentile interval of
    # 60 values is a little too short; six of the former on both sides.
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = rng.normal(size=60)
        counts = np.concatenate(list(paired_bootstrap_counts(60, 200, rng)))
        interval = percentile_interval(values.mean(), counts @ values / 60, level=0.9)
        covered += interval.low <= 0.0 <= interval.high
    assert covered / 300 == pytest.approx(0.9, abs=0.1)
