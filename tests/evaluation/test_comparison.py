"""Comparisons of arms against a bootstrap written as a plain loop, and against their meaning."""

import json
import time

import numpy as np
import pytest

from atlantis.errors import DataError
from atlantis.evaluation.comparison import compare
from atlantis.evaluation.relations import confusion, relation_metrics
from atlantis.numerics.statistics import paired_bootstrap_counts
from atlantis.records import LabelSet

LABELS = LabelSet(("Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Message-Topic(e1,e2)", "Other"),
                  "Other")  # fmt: skip
SEEDS = (0, 1, 2)


def make_gold(num_items, *, labels=LABELS, seed=0):
    return np.random.default_rng(seed).choice(labels.names, size=num_items).tolist()


def answers(gold, *, right, seed, skipped=0.05, labels=LABELS):
    rng = np.random.default_rng(seed)
    draws = zip(rng.random(len(gold)), rng.random(len(gold)), gold, strict=True)
    return [
        None if skip < skipped else true if luck < right else str(rng.choice(labels.names))
        for luck, skip, true in draws
    ]


def make_predictions(gold, **right):
    return {
        arm: {s: answers(gold, right=share, seed=[s, place]) for s in SEEDS}
        for place, (arm, share) in enumerate(right.items())
    }


@pytest.fixture(scope="module")
def gold():
    return make_gold(120)


@pytest.fixture(scope="module")
def predictions(gold):
    return make_predictions(gold, sft=0.6, shuffled=0.6, weighted=0.8)


@pytest.fixture(scope="module")
def result(predictions, gold):
    return compare(
        predictions, gold, LABELS, baseline="sft", control="shuffled", num_replicates=200
    )


def test_the_shape_is_what_the_report_reads(result):
    assert list(result) == [
        "headline", "num_test", "seeds", "num_replicates", "level", "labels", "negative",
        "baseline", "control", "interval", "arms",
    ]  # fmt: skip
    assert result["headline"] == "official_f1"
    assert (result["num_test"], result["seeds"], result["num_replicates"]) == (120, [0, 1, 2], 200)
    weighted = result["arms"]["weighted"]
    assert list(weighted) == ["metrics", "unparsed", "versus_baseline", "versus_control"]
    assert list(weighted["metrics"]["official_f1"]) == ["mean", "low", "high", "per_seed", "n"]
    assert list(weighted["versus_control"]["accuracy"]) == ["difference", "low", "high"]
    assert result["arms"]["sft"]["versus_baseline"] is None
    assert result["arms"]["shuffled"]["versus_control"] is None


def test_the_result_is_plain_json(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_estimates_are_means_over_seeds_on_the_test_items_as_they_are(result, predictions, gold):
    for arm, by_seed in predictions.items():
        for name, summary in result["arms"][arm]["metrics"].items():
            per_seed = [
                float(relation_metrics(confusion(gold, by_seed[s], LABELS), LABELS)[name])
                for s in SEEDS
            ]
            assert summary["per_seed"] == pytest.approx(per_seed, rel=1e-12)
            assert summary["mean"] == pytest.approx(sum(per_seed) / 3, rel=1e-12)


def replicates_by_loop(predictions, gold, arm, name, *, num_replicates, seed):
    """Every replicate as lists of drawn items and seeds, repeated as often as they were drawn."""
    item_rng, seed_rng = np.random.default_rng(seed).spawn(2)
    (item_counts,) = paired_bootstrap_counts(len(gold), num_replicates, item_rng)
    (seed_counts,) = paired_bootstrap_counts(len(SEEDS), num_replicates, seed_rng)
    values = []
    for items, seeds in zip(item_counts, seed_counts, strict=True):
        drawn = [item for item, count in enumerate(items) for _ in range(count)]
        scores = []
        for s in [s for s, count in zip(SEEDS, seeds, strict=True) for _ in range(count)]:
            table = confusion(
                [gold[i] for i in drawn], [predictions[arm][s][i] for i in drawn], LABELS
            )
            scores.append(float(relation_metrics(table, LABELS)[name]))
        values.append(sum(scores) / len(scores))
    return np.array(values)


@pytest.mark.parametrize("name", ["official_f1", "macro4", "accuracy"])
def test_intervals_equal_those_of_a_plain_loop(predictions, gold, name):
    options = {"num_replicates": 60, "seed": 5}
    found = compare(predictions, gold, LABELS, baseline="sft", control=None, level=0.8, **options)
    arm = replicates_by_loop(predictions, gold, "weighted", name, **options)
    base = replicates_by_loop(predictions, gold, "sft", name, **options)
    weighted, sft = (found["arms"][a]["metrics"][name]["mean"] for a in ("weighted", "sft"))
    summary = found["arms"]["weighted"]["metrics"][name]
    difference = found["arms"]["weighted"]["versus_baseline"][name]
    assert [summary["low"], summary["high"]] == pytest.approx(np.quantile(arm, [0.1, 0.9]))
    assert [difference["low"], difference["high"]] == pytest.approx(
        np.quantile(arm - base, [0.1, 0.9])
    )
    assert difference["difference"] == pytest.approx(weighted - sft)


def test_the_same_arguments_give_the_same_numbers_and_another_seed_does_not(predictions, gold):
    def run(seed):
        return compare(
            predictions, gold, LABELS, baseline="sft", control=None, num_replicates=50, seed=seed
        )

    assert run(1) == run(1)
    assert run(1)["arms"] != run(2)["arms"]


def test_an_arm_with_the_same_answers_differs_by_exactly_nothing(predictions, gold):
    twins = {"sft": predictions["sft"], "twin": predictions["sft"]}
    found = compare(twins, gold, LABELS, baseline="sft", control=None, num_replicates=50)
    for difference in found["arms"]["twin"]["versus_baseline"].values():
        assert difference == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_makes_the_difference_of_like_arms_narrower_than_either():
    gold = make_gold(300)
    sft = {s: answers(gold, right=0.6, seed=s) for s in SEEDS}
    mended = {s: [*gold[:9], *sft[s][9:]] for s in SEEDS}
    found = compare(
        {"sft": sft, "mended": mended}, gold, LABELS, baseline="sft", control=None,
        num_replicates=300,
    )  # fmt: skip
    arm = found["arms"]["mended"]["metrics"]["accuracy"]
    difference = found["arms"]["mended"]["versus_baseline"]["accuracy"]
    assert difference["high"] - difference["low"] < (arm["high"] - arm["low"]) / 2


def test_seeds_that_disagree_widen_the_interval():
    gold = make_gold(300)
    equal = {s: answers(gold, right=0.6, seed=0) for s in SEEDS}
    spread = {s: answers(gold, right=0.3 + 0.3 * s, seed=0) for s in SEEDS}
    found = compare(
        {"equal": equal, "spread": spread}, gold, LABELS, baseline="equal", control=None,
        num_replicates=300,
    )  # fmt: skip
    width = {}
    for arm, part in found["arms"].items():
        accuracy = part["metrics"]["accuracy"]
        width[arm] = accuracy["high"] - accuracy["low"]
    assert width["spread"] > 2 * width["equal"]


def test_unparsed_shares_count_missing_answers_and_foreign_text():
    gold = ["Other"] * 4
    found = compare(
        {"sft": {0: ["Other", None, "I think Other", "Other"], 1: gold}},
        gold, LABELS, baseline="sft", control=None, num_replicates=5,
    )  # fmt: skip
    assert found["arms"]["sft"]["unparsed"] == [0.5, 0.0]


def test_one_seed_is_possible_and_says_what_is_not_covered(gold, predictions):
    one = {arm: {0: by_seed[0]} for arm, by_seed in predictions.items()}
    found = compare(one, gold, LABELS, baseline="sft", control=None, num_replicates=20)
    assert "differences between training runs are not covered" in found["interval"]


def test_arms_that_do_not_fit_together_are_refused(predictions, gold):
    def run(predictions, *, baseline="sft", control=None, gold=gold):
        return compare(predictions, gold, LABELS, baseline=baseline, control=control)

    with pytest.raises(DataError, match="baseline 'dft' is no arm; the arms are sft, shuffled"):
        run(predictions, baseline="dft")
    with pytest.raises(DataError, match="control 'dft' is no arm"):
        run(predictions, control="dft")
    with pytest.raises(DataError, match="run every arm with the same ones"):
        run(predictions | {"weighted": {0: gold, 1: gold}})
    with pytest.raises(DataError, match="120 true labels but 119 answers"):
        run(predictions | {"weighted": dict.fromkeys(SEEDS, gold[1:])})
    with pytest.raises(DataError, match="0 test items"):
        run(predictions, gold=[])


def test_a_full_semeval_comparison_takes_seconds():
    bases = [f"Relation-{letter}" for letter in "ABCDEFGHI"]
    directed = [f"{base}({d})" for base in bases for d in ("e1,e2", "e2,e1")]
    labels = LabelSet(tuple(sorted([*directed, "Other"])), "Other")
    gold = make_gold(2717, labels=labels)
    predictions = {
        f"arm{place}": {s: answers(gold, right=0.7, seed=[s, place], labels=labels) for s in SEEDS}
        for place in range(7)
    }
    began = time.perf_counter()
    found = compare(predictions, gold, labels, baseline="arm0", control="arm1")
    assert found["headline"] == "official_f1"
    # Under a second alone on one core; the bound leaves room for a machine that is shared.
    assert time.perf_counter() - began < 30
