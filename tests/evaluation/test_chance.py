"""Does weighting stand a chance: the estimate against simulation, the verdict case by case."""

import numpy as np
import pytest
from scipy import stats

from atlantis.evaluation.chance import chance_report, estimated_label_accuracy
from atlantis.records import Example

LABELS = [f"label{i}" for i in range(10)]


def rows(gold, given=None):
    return [
        Example(str(i), "p", " c", label=given[i] if given else g, gold_label=g)
        for i, g in enumerate(gold)
    ]


def with_accuracy(rng, gold, accuracy):
    """Answers that are right so often, and otherwise any other label alike."""
    right = np.array([LABELS.index(g) for g in gold])
    wrong = (right + rng.integers(1, len(LABELS), len(gold))) % len(LABELS)
    chosen = np.where(rng.random(len(gold)) < accuracy, right, wrong)
    return [LABELS[i] for i in chosen]


def report(
    *, reference=0.8, labels=0.7, num_heldout=400, num_train=4000, groups=None, ess=0.4, seed=0
):
    """A check of simulated data: a reference and given labels of known accuracy."""
    rng = np.random.default_rng(seed)
    heldout = rng.choice(LABELS, num_heldout).tolist()
    gold = rng.choice(LABELS, num_train).tolist()
    given = with_accuracy(rng, gold, labels)
    return chance_report(
        heldout=rows(heldout),
        reference_answers=with_accuracy(rng, heldout, reference),
        small_answers=with_accuracy(rng, heldout, 0.1),
        reference_logprobs=-0.5,
        small_logprobs=-9.0,
        train=rows(gold, given),
        reference_train_answers=with_accuracy(rng, gold, reference),
        num_labels=len(LABELS),
        diagnostics={
            "ess_fraction": ess,
            "mean_weight_by_group": {} if groups is None else {"label": groups},
        },
    )


@pytest.mark.parametrize("num_labels", [2, 3, 19])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("accuracy", [0.75, 0.95, 1.0])
def test_the_estimate_inverts_the_probability_of_agreement(num_labels, right, accuracy):
    agreement = accuracy * right + (1 - accuracy) * (1 - right) / (num_labels - 1)
    found = estimated_label_accuracy(agreement, accuracy, num_labels)
    assert found == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize(("labels", "reference"), [(0.7, 0.8), (0.5, 0.4), (0.95, 0.9)])
def test_the_estimate_finds_the_accuracy_of_simulated_labels(labels, reference):
    found = [
        report(labels=labels, reference=reference, seed=seed)["label_accuracy_estimate"]
        for seed in range(10)
    ]
    # Deviation of q = (A - b) / (a - b): that of A over 4,000 rows and of a over 400, both over
    # a - b; five of the mean of ten, and 0.01 for the bias of a quotient.
    scale = reference - (1 - reference) / 9
    deviation = np.sqrt(0.25 / 4000 + labels**2 * 0.25 / 400) / scale / np.sqrt(10)
    assert np.mean(found) == pytest.approx(labels, abs=5 * deviation + 0.01)


@pytest.mark.parametrize(("agreement", "expected"), [(0.01, 0.0), (0.99, 1.0)])
def test_the_estimate_stays_a_share(agreement, expected):
    assert estimated_label_accuracy(agreement, 0.8, 10) == expected


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.18])
def test_a_reference_near_chance_says_nothing_about_labels(accuracy):
    assert estimated_label_accuracy(0.3, accuracy, 10) is None


def test_accuracies_have_an_exact_binomial_interval():
    found = report(num_heldout=60)["reference_accuracy"]
    assert found["n"] == 60
    num_right = round(found["mean"] * 60)
    # Clopper and Pearson by their definition, as quantiles of beta distributions.
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, num_right, 61 - num_right))
    assert found["high"] == pytest.approx(stats.beta.ppf(0.975, num_right + 1, 60 - num_right))


def test_true_labels_of_the_training_rows_are_not_used():
    heldout, answers = ["label0"] * 20, ["label0"] * 20
    results = []
    for gold in ("label0", "label5"):
        results.append(
            chance_report(
                heldout=rows(heldout),
                reference_answers=answers,
                small_answers=answers,
                reference_logprobs=-1.0,
                small_logprobs=-2.0,
                train=rows([gold] * 10, ["label0"] * 10),
                reference_train_answers=["label0"] * 10,
                num_labels=10,
                diagnostics={"ess_fraction": 0.5, "mean_weight_by_group": {}},
            )
        )
    assert results[0] == results[1]
    assert results[0]["agreement_with_given_labels"] == 1.0


def test_held_out_rows_without_a_gold_label_count_their_own():
    (row,) = [Example("1", "p", " c", label="label3")]
    found = chance_report(
        heldout=[row] * 4,
        reference_answers=["label3", "label3", "label3", "label1"],
        small_answers=["label1"] * 4,
        reference_logprobs=-1.0,
        small_logprobs=-2.0,
        train=[row],
        reference_train_answers=["label3"],
        num_labels=10,
        diagnostics={"ess_fraction": 0.5, "mean_weight_by_group": {}},
    )
    assert found["reference_accuracy"]["mean"] == 0.75
    assert found["small_accuracy"]["mean"] == 0.0


@pytest.mark.parametrize(
    ("settings", "verdict", "words"),
    [
        ({"reference": 0.95, "labels": 0.6}, "help", "knows more than the labels"),
        ({"reference": 0.4, "labels": 0.9}, "harm", "knows less than the labels"),
        ({"reference": 0.12, "labels": 0.9}, "harm", "too weak to tell"),
        ({"reference": 0.8, "labels": 0.8}, "unclear", "about as much as the labels"),
        ({"reference": 0.95, "labels": 0.6, "ess": 0.995}, "nothing", "nearly constant"),
        ({"reference": 0.12, "labels": 0.6, "ess": 0.995}, "nothing", "nearly constant"),
    ],
)
def test_the_verdict_follows_from_reference_labels_and_weights(settings, verdict, words):
    found = report(**settings)
    assert found["verdict"] == verdict
    assert words in found["sentence"]
    assert f"{found['reference_accuracy']['n']} held-out rows" in found["sentence"]


@pytest.mark.parametrize("num_heldout", [44, 400])
def test_a_reference_as_good_as_the_labels_is_seldom_judged_better_or_worse(num_heldout):
    # The estimate of the labels falls when the measured accuracy of the reference rises, so one
    # bound has to be carried through both. At 95 % a wrong verdict should come 1 time in 20; with
    # 200 draws its standard deviation is 0.015, and the bound is 0.05 + 4 of those.
    verdicts = [
        report(reference=0.7, labels=0.7, num_heldout=num_heldout, num_train=500, seed=seed)[
            "verdict"
        ]
        for seed in range(200)
    ]
    wrong = sum(verdict in ("help", "harm") for verdict in verdicts) / 200
    assert wrong < 0.11


def test_few_held_out_rows_leave_it_open():
    assert report(reference=0.8, labels=0.75, num_heldout=12)["verdict"] == "unclear"


def test_mass_moved_between_classes_is_a_total_variation_distance():
    groups = {
        "a": {"mean": 2.0, "n": 100},
        "b": {"mean": 0.5, "n": 300},
        "c": {"mean": 1.25, "n": 200},
    }
    total = 200 + 150 + 250
    moved = (abs(1 / 6 - 200 / total) + abs(1 / 2 - 150 / total) + abs(1 / 3 - 250 / total)) / 2
    found = report(reference=0.95, labels=0.6, groups=groups)
    assert found["mass_moved_between_classes"] == pytest.approx(moved, rel=1e-12)
    assert moved > 0.2


def test_weights_that_move_much_mass_between_classes_do_harm():
    groups = {"a": {"mean": 3.0, "n": 100}, "b": {"mean": 1 / 3, "n": 300}}
    found = report(reference=0.95, labels=0.6, groups=groups)
    assert found["mass_moved_between_classes"] == pytest.approx(0.5)
    assert found["verdict"] == "harm"
    assert "50%" in found["sentence"]


def test_weights_that_leave_the_mix_alone_move_nothing():
    groups = {name: {"mean": 1.0, "n": n} for name, n in (("a", 5), ("b", 500))}
    assert report(groups=groups)["mass_moved_between_classes"] == 0.0


CLEAR = {"mean": 0.8, "low": 0.7, "high": 0.9, "n": 100}
BLURRED = {"mean": 0.54, "low": 0.46, "high": 0.62, "n": 100}


def judged(separation, *, within, reference=0.4, labels=0.9):
    rng = np.random.default_rng(0)
    heldout, gold = rng.choice(LABELS, 400).tolist(), rng.choice(LABELS, 4000).tolist()
    return chance_report(
        heldout=rows(heldout),
        reference_answers=with_accuracy(rng, heldout, reference),
        small_answers=heldout,
        reference_logprobs=-0.5,
        small_logprobs=-9.0,
        train=rows(gold, with_accuracy(rng, gold, labels)),
        reference_train_answers=with_accuracy(rng, gold, reference),
        num_labels=len(LABELS),
        diagnostics={
            "ess_fraction": 0.7,
            "mean_weight_by_group": {},
            "scheme": {"normalise_within": within},
        },
        separation=separation,
    )


def test_weights_that_do_not_tell_right_labels_from_wrong_do_harm_whoever_made_them():
    found = judged(BLURRED, within="none", reference=0.95, labels=0.6)
    assert (found["verdict"], "54% of pairs" in found["sentence"]) == ("harm", True)


def test_a_weak_reference_may_still_rank_the_sentences_of_a_class():
    assert judged(CLEAR, within="label")["verdict"] == "unclear"
    assert judged(BLURRED, within="label")["verdict"] == "harm"
    assert judged(CLEAR, within="none")["verdict"] == "harm"
    assert judged(None, within="label")["verdict"] == "harm"
