"""Wrong-label detection against plain definitions; the extreme examples and their markers."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from atlantis.report.artifacts import TrainTable, WeightTable
from atlantis.report.audit import Ranking, detection_section, extreme_examples, segments


def plain_auroc(suspicion, is_wrong):
    """The definition: over all pairs of a wrong and a right label."""
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, wrong in zip(suspicion, is_wrong, strict=True)
        if wrong
        for b, other in zip(suspicion, is_wrong, strict=True)
        if not other
    ]
    return sum(wins) / len(wins)


def plain_precision_at_wrong(suspicion, is_wrong):
    """Averaged over every order that the ties allow."""
    limit, shares = int(sum(is_wrong)), []
    for order in itertools.permutations(range(len(suspicion))):
        ranked = [suspicion[i] for i in order]
        if ranked == sorted(ranked, reverse=True):
            shares.append(sum(is_wrong[i] for i in order[:limit]) / limit)
    return sum(shares) / len(shares)


def measured(suspicion, is_wrong, counts=None):
    counts = np.ones(len(suspicion), dtype=np.int64) if counts is None else counts
    measures = Ranking.of(np.asarray(suspicion, float), is_wrong).measure(counts[None])
    return [float(values[0]) for values in measures]


@pytest.fixture
def tied_scores():
    rng = np.random.default_rng(3)
    is_wrong = rng.random(83) < 0.2
    return np.round(rng.normal(0, 1, 83) + is_wrong, 1), is_wrong  # one decimal: many ties


def test_auroc_is_the_double_loop_over_pairs(tied_scores):
    suspicion, is_wrong = tied_scores
    assert measured(*tied_scores)[0] == pytest.approx(plain_auroc(suspicion, is_wrong), rel=1e-12)


def test_average_precision_is_scikit_learns(tied_scores):
    suspicion, is_wrong = tied_scores
    expected = average_precision_score(is_wrong, suspicion)
    assert measured(*tied_scores)[1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("suspicion", "wrong"),
    [
        ([3, 2, 2, 2, 1, 0], [0, 1, 0, 1, 1, 0]),
        ([1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0]),
        ([5, 4, 3, 2, 1, 0], [1, 1, 0, 0, 0, 1]),
        ([5, 5, 3, 3, 3, 0], [1, 0, 1, 1, 0, 0]),
    ],
)
def test_precision_at_the_true_number_averages_over_the_orders_of_ties(suspicion, wrong):
    is_wrong = np.array(wrong, dtype=bool)
    expected = plain_precision_at_wrong(suspicion, wrong)
    assert measured(suspicion, is_wrong)[2] == pytest.approx(expected, rel=1e-12)


def test_count_two_is_the_example_twice_and_count_zero_is_its_absence(tied_scores):
    suspicion, is_wrong = tied_scores
    counts = np.random.default_rng(0).integers(0, 4, suspicion.size)
    repeated = measured(np.repeat(suspicion, counts), np.repeat(is_wrong, counts))
    assert measured(suspicion, is_wrong, counts) == pytest.approx(repeated, rel=1e-12)


def table(golds, labels, texts=None):
    ids = tuple(f"row-{i}" for i in range(len(labels)))
    return TrainTable(ids, tuple(labels), tuple(golds), tuple(texts or ["text"] * len(labels)))


def test_only_rows_with_gold_and_every_number_are_compared():
    train = table(["a", "b", "a", None, "b"], ["a", "a", "a", "a", "b"])
    ranked_by = {
        "one": {0: np.array([0.0, 9.0, 1.0, 5.0, 2.0])},
        "other": {0: np.array([0.0, 1.0, 2.0, 3.0, np.nan])},
    }
    section = detection_section(train, ranked_by, level=0.95)
    assert section is not None
    assert (section["num_known"], section["n"], section["num_wrong"]) == (4, 3, 1)
    one, other, chance = section["rows"]
    assert (one["auroc"]["mean"], other["auroc"]["mean"]) == (1.0, 0.5)
    assert chance["average_precision"]["mean"] == pytest.approx(1 / 3)


def test_detection_has_no_rows_where_no_label_is_wrong_and_none_without_gold():
    ranked_by = {"one": {0: np.arange(3.0)}}
    clean = detection_section(table("aab", "aab"), ranked_by, level=0.95)
    assert clean is not None
    assert (clean["num_wrong"], clean["rows"]) == (0, [])
    assert detection_section(table([None] * 3, "aab"), ranked_by, level=0.95) is None


def test_the_interval_of_the_bootstrap_is_near_the_known_standard_error():
    """Hanley and McNeil (1982): 0.8 AUROC from 100 + 400 exponential scores has SE 0.023."""
    rng = np.random.default_rng(1)
    is_wrong = np.arange(500) < 100
    suspicion = np.where(is_wrong, 4.0, 1.0) * rng.exponential(size=500)  # AUROC 4 / (4 + 1)
    golds = np.where(is_wrong, "b", "a").tolist()
    section = detection_section(table(golds, ["a"] * 500), {"s": {0: suspicion}}, level=0.95)
    assert section is not None
    auroc = section["rows"][0]["auroc"]
    error = (auroc["high"] - auroc["low"]) / (2 * 1.96)
    theta = auroc["mean"]
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
    variance = theta * (1 - theta) + 99 * (q1 - theta**2) + 399 * (q2 - theta**2)
    # 1000 replicates estimate a standard error to 2 %; the formula assumes exponential scores.
    assert error == pytest.approx((variance / (100 * 400)) ** 0.5, rel=0.15)


def test_extremes_are_averaged_over_seeds_with_ties_by_id_and_without_unscored_rows():
    def weights(values):
        values = np.array(values)
        return WeightTable(("ok",) * 5, np.log(values), values, {})

    train = table("abcde", "abcdx")
    tables = {0: weights([1.0, 3.0, np.nan, 2.0, 0.5]), 1: weights([3.0, 1.0, 1.0, 2.0, 0.1])}
    found = extreme_examples(train, tables, num_examples=2)
    assert [row["example_id"] for row in found["lowest"]] == ["row-4", "row-0"]
    assert [row["example_id"] for row in found["highest"]] == ["row-0", "row-1"]
    assert [row["is_wrong"] for row in found["lowest"]] == [True, False]


def test_markers_become_segments_and_unbalanced_ones_stay_text():
    assert segments("A <e1>cat</e1> on <e2>mat</e2>.") == [
        {"text": "A ", "entity": None},
        {"text": "cat", "entity": "e1"},
        {"text": " on ", "entity": None},
        {"text": "mat", "entity": "e2"},
        {"text": ".", "entity": None},
    ]
    assert segments("<e1>open</e2>") == [{"text": "<e1>open</e2>", "entity": None}]
    assert len(segments("x" * 5000)[0]["text"] or "") == 601
