"""How far weights tell right labels from wrong ones on held-out rows."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from atlantis.evaluation.separation import probe_rows, separation
from atlantis.records import Example

LABELS = ("a", "b", "c")
COMPLETIONS = {label: f" {label}" for label in LABELS}


def rows(labels, prefix="row"):
    return [
        Example(f"{prefix}{i}", f"p{i}", f" {label}", label=label, gold_label=label)
        for i, label in enumerate(labels)
    ]


def test_every_held_out_row_stands_there_right_and_wrong():
    heldout = rows("abcabc")
    probes = probe_rows(heldout, rows("aabbbc", "train"), COMPLETIONS, seed=0)
    right, wrong = probes[:6], probes[6:]
    assert [row.label for row in right] == list("abcabc")
    assert [row.prompt for row in right] == [row.prompt for row in wrong]
    assert all(w.label != r.label for r, w in zip(right, wrong, strict=True))
    assert all(row.completion == COMPLETIONS[row.label] for row in probes)
    assert len({row.example_id for row in probes}) == 12


def test_wrong_labels_come_as_often_as_they_are_given_in_training():
    probes = probe_rows(rows("a" * 2000), rows("b" * 30 + "c" * 10, "train"), COMPLETIONS, seed=0)
    share = np.mean([row.label == "b" for row in probes[2000:]])
    # Binomial: standard deviation sqrt(0.75 * 0.25 / 2000) = 0.0097; five of them.
    assert share == pytest.approx(0.75, abs=0.049)


def test_a_row_without_another_label_is_left_out():
    assert probe_rows(rows("a"), rows("aaa", "train"), COMPLETIONS, seed=0) == []


def test_it_is_the_area_under_the_roc_curve():
    probes = probe_rows(rows("abc" * 20), rows("abc" * 5, "train"), COMPLETIONS, seed=1)
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=120) + np.repeat([0.8, 0.0], 60), 1)  # with ties
    weights = {row.example_id: float(v) for row, v in zip(probes, values, strict=True)}
    found = separation(probes, weights, within_label=False, seed=0)
    expected = roc_auc_score(np.repeat([1, 0], 60), values)
    assert found["mean"] == pytest.approx(expected, abs=1e-12)
    assert found["low"] < expected < found["high"]
    assert found["n"] == 60


def test_within_labels_a_constant_per_label_cancels():
    probes = probe_rows(rows("abc" * 20), rows("abc" * 5, "train"), COMPLETIONS, seed=1)
    rng = np.random.default_rng(0)
    plain = {row.example_id: float(rng.normal() + (i < 60)) for i, row in enumerate(probes)}
    shift = {"a": -9.0, "b": 0.0, "c": 9.0}
    shifted = {row.example_id: plain[row.example_id] + shift[row.label] for row in probes}
    within = [separation(probes, w, within_label=True, seed=0) for w in (plain, shifted)]
    assert within[0]["mean"] == pytest.approx(within[1]["mean"], abs=1e-12)
    assert within[0]["low"] > 0.5
    blurred = separation(probes, shifted, within_label=False, seed=0)
    assert blurred["mean"] < within[1]["mean"]


def test_without_two_rows_of_one_label_there_is_nothing_to_compare():
    probes = probe_rows(rows("a"), rows("b", "train"), COMPLETIONS, seed=0)
    weights = {row.example_id: 0.0 for row in probes}
    assert separation(probes, weights, within_label=True, seed=0) is None


def test_a_row_without_a_weight_is_left_out_with_its_pair():
    probes = probe_rows(rows("abc" * 20), rows("abc" * 5, "train"), COMPLETIONS, seed=1)
    rng = np.random.default_rng(0)
    weights = {row.example_id: float(rng.normal() + (i < 60)) for i, row in enumerate(probes)}
    for lost in ("right-row3", "wrong-row7", "right-row11", "wrong-row11"):
        del weights[lost]
    found = separation(probes, weights, within_label=False, seed=0)
    left = [i for i in range(60) if i not in (3, 7, 11)]
    values = [weights[f"{side}-row{i}"] for side in ("right", "wrong") for i in left]
    assert found["mean"] == pytest.approx(roc_auc_score(np.repeat([1, 0], 57), values), abs=1e-12)
    assert found["n"] == 57
    kept = [row for row in probes if int(row.example_id.split("row")[1]) in left]
    assert found == separation(kept, weights, within_label=False, seed=0)


@pytest.mark.parametrize("within_label", [False, True])
def test_without_a_pair_that_has_both_weights_there_is_nothing_to_compare(within_label):
    probes = probe_rows(rows("ab"), rows("abc", "train"), COMPLETIONS, seed=0)
    weights = {"right-row0": 1.0, "wrong-row1": 0.0}
    assert separation(probes, weights, within_label=within_label, seed=0) is None
