"""Relation metrics against scikit-learn, the official scorer's vectors and plain definitions."""

import re
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from atlantis.data.formats import NO_RELATION, read_conll04, read_semeval
from atlantis.errors import DataError
from atlantis.evaluation.relations import (
    confusion,
    entity_type_baseline,
    headline_metric,
    relation_metrics,
)
from atlantis.records import Example, LabelSet, RelationExample, base_relation

BASES = ("Cause-Effect", "Component-Whole", "Message-Topic")
DIRECTED = tuple(f"{base}({d})" for base in BASES for d in ("e1,e2", "e2,e1"))
WITH_OTHER = LabelSet(tuple(sorted((*DIRECTED, "Other"))), "Other")


def noisy_answers(labels: LabelSet, *, num_items=400, skipped=0.1, seed=0):
    """Lopsided true labels, and answers that are right about half of the time."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, len(labels.names) + 1) / np.arange(1, len(labels.names) + 1).sum()
    gold = rng.choice(labels.names, size=num_items, p=share)
    guess = rng.choice(labels.names, size=num_items)
    answers = np.where(rng.random(num_items) < 0.5, gold, guess)
    drop = rng.random(num_items) < skipped
    return gold.tolist(), [None if d else str(a) for a, d in zip(answers, drop, strict=True)]


def metrics_of(gold, predicted, labels):
    metrics = relation_metrics(confusion(gold, predicted, labels), labels)
    return {name: float(value) for name, value in metrics.items()}


def official_by_hand(gold, predicted):
    """The definition with sets of items and exact fractions."""
    scores = []
    items = list(zip(gold, predicted, strict=True))
    for relation in sorted({base_relation(true) for true in gold} - {"Other"}):
        hits = sum(true == said and base_relation(true) == relation for true, said in items)
        answered = sum(said is not None and base_relation(said) == relation for _, said in items)
        in_key = sum(base_relation(true) == relation for true, _ in items)
        precision = Fraction(hits, answered) if answered else Fraction(0)
        recall = Fraction(hits, in_key)
        total = precision + recall
        scores.append(2 * precision * recall / total if total else Fraction(0))
    return float(sum(scores) / len(scores))


def sklearn_macro(gold, predicted, classes):
    answers = ["(none)" if said is None else said for said in predicted]
    return f1_score(gold, answers, labels=sorted(classes), average="macro", zero_division=0)


def test_confusion_is_that_of_sklearn_with_a_column_for_no_answer():
    gold, predicted = noisy_answers(WITH_OTHER)
    classes = [*WITH_OTHER.names, "(none)"]
    expected = confusion_matrix(gold, [p or "(none)" for p in predicted], labels=classes)
    np.testing.assert_array_equal(confusion(gold, predicted, WITH_OTHER), expected[:-1])


def test_text_that_is_no_label_counts_as_no_answer():
    gold = ["Other", "Other"]
    table = confusion(gold, ["perhaps Cause-Effect", None], WITH_OTHER)
    assert table[:, -1].sum() == 2
    assert table.sum() == 2


@pytest.mark.parametrize("skipped", [0.0, 0.2])
def test_macro_scores_and_accuracy_are_those_of_sklearn(skipped):
    gold, predicted = noisy_answers(WITH_OTHER, skipped=skipped)
    merged = [base_relation(true) for true in gold]
    merged_answers = [None if said is None else base_relation(said) for said in predicted]
    found = metrics_of(gold, predicted, WITH_OTHER)
    answers = ["(none)" if said is None else said for said in predicted]
    expected = {
        "official_f1": official_by_hand(gold, predicted),
        "macro6": sklearn_macro(gold, predicted, set(gold) - {"Other"}),
        "macro7": sklearn_macro(gold, predicted, set(gold)),
        "macro3_nodir": sklearn_macro(merged, merged_answers, set(merged) - {"Other"}),
        "macro4_nodir": sklearn_macro(merged, merged_answers, set(merged)),
        "accuracy": accuracy_score(gold, answers),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    assert next(iter(found)) == headline_metric(WITH_OTHER) == "official_f1"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LabelSet(("a", "b", "c")), ["macro3", "accuracy"]),
        (LabelSet(("a", "b", "none"), "none"), ["macro2", "macro3", "accuracy"]),
        (LabelSet(DIRECTED), ["macro6", "macro3_nodir", "accuracy"]),
        (
            WITH_OTHER,
            ["official_f1", "macro6", "macro7", "macro3_nodir", "macro4_nodir", "accuracy"],
        ),
    ],
)
def test_metrics_follow_the_label_set_and_the_headline_comes_first(labels, names):
    gold, predicted = noisy_answers(labels)
    assert list(metrics_of(gold, predicted, labels)) == names
    assert headline_metric(labels) == names[0]


def test_negative_label_is_left_out_of_the_mean_but_its_false_alarms_count():
    labels = LabelSet(("a", "b", "none"), "none")
    gold = ["a", "b", "none", "none", "none"]
    predicted = ["a", "none", "a", "none", None]
    found = metrics_of(gold, predicted, labels)
    assert found["macro2"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["macro3"] == pytest.approx((2 / 3 + 0 + 2 * 1 / (2 + 3)) / 3)
    assert found["macro2"] == pytest.approx(sklearn_macro(gold, predicted, ["a", "b"]))
    assert found["accuracy"] == pytest.approx(2 / 5)


def test_wrong_direction_is_a_miss_and_a_false_alarm_of_the_same_relation():
    gold = ["Cause-Effect(e1,e2)"] * 3 + ["Message-Topic(e1,e2)"]
    predicted = ["Cause-Effect(e1,e2)", "Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", gold[3]]
    found = metrics_of(gold, predicted, WITH_OTHER)
    assert found["official_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro3_nodir"] == 1.0


def test_labels_that_are_not_in_the_key_do_not_enter_the_mean():
    gold = ["Cause-Effect(e1,e2)"] * 2
    found = metrics_of(gold, [gold[0], "Message-Topic(e1,e2)"], WITH_OTHER)
    assert found["macro6"] == found["official_f1"] == pytest.approx(2 / 3)


def test_a_key_without_any_relation_scores_zero():
    found = metrics_of(["Other"], ["Other"], WITH_OTHER)
    assert found["official_f1"] == 0.0
    assert found["macro7"] == found["accuracy"] == 1.0


def test_batch_axes_give_what_single_tables_give():
    tables = np.stack([confusion(*noisy_answers(WITH_OTHER, seed=s), WITH_OTHER) for s in range(6)])
    batched = relation_metrics(tables.reshape(2, 3, 7, 8), WITH_OTHER)
    for name, values in batched.items():
        single = [relation_metrics(table, WITH_OTHER)[name] for table in tables]
        np.testing.assert_array_equal(values.ravel(), single)


def test_bad_tables_and_labels_are_refused():
    with pytest.raises(DataError, match="does not fit 7 labels"):
        relation_metrics(np.zeros((7, 7), dtype=np.int64), WITH_OTHER)
    with pytest.raises(DataError, match="2 true labels but 1 answers"):
        confusion(["Other", "Other"], ["Other"], WITH_OTHER)
    with pytest.raises(DataError, match="true label 'Kill' is none of"):
        confusion(["Kill"], ["Other"], WITH_OTHER)


# --- Real data --------------------------------------------------------------------------------


def read_answers(path):
    pairs = [line.split("\t") for line in path.read_text().splitlines()]
    return {number: label.strip() for number, label in pairs}


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_official_scorer_prints_the_same_two_decimals(shared_data, number):
    folder = shared_data / "semeval2010_task8" / "scorer_vectors"
    key = read_answers(folder / f"answer_key{number}.txt")
    answers = read_answers(folder / f"proposed_answer{number}.txt")
    names = {*key.values(), *answers.values(), "Other"}
    labels = LabelSet(tuple(sorted(names)), "Other")
    found = metrics_of(list(key.values()), [answers.get(item) for item in key], labels)
    num_relations = len({base_relation(name) for name in names}) - 1
    ours = [found[f"macro{len(names) - 1}"], found[f"macro{num_relations}_nodir"]]
    ours.append(found["official_f1"])
    printed = (folder / f"result_scores{number}.txt").read_text()
    theirs = re.findall(r"MACRO-averaged result.*?\n.*?F1 = +([\d.]+)%", printed)
    assert [f"{100 * score:.2f}" for score in ours] == theirs
    wrong = re.search(r"considering all skipped examples as Wrong.*= +([\d.]+)%", printed)
    assert wrong is not None
    assert f"{100 * found['accuracy']:.2f}" == wrong[1]


def test_semeval_has_the_metrics_under_their_usual_names(shared_data):
    rows = read_semeval(shared_data / "semeval2010_task8" / "TEST_FILE_FULL.TXT").rows
    gold = [row.label for row in rows]
    labels = LabelSet(tuple(sorted(set(gold))), "Other")
    found = metrics_of(gold, gold, labels)
    usual = {"official_f1", "macro19", "macro18", "macro9_nodir", "macro10_nodir", "accuracy"}
    assert found == dict.fromkeys(usual, 1.0)


def test_entity_types_alone_solve_conll04_on_gold_pairs(shared_data):
    train, test = (
        read_conll04(shared_data / "conll04" / f"conll04_{name}.json", mode="gold_pairs").rows
        for name in ("train", "test")
    )
    gold = [row.label for row in test]
    labels = LabelSet(tuple(sorted(set(gold))))
    assert metrics_of(gold, entity_type_baseline(train, test), labels)["macro5"] == 1.0


def test_entity_types_alone_do_not_solve_conll04_among_all_pairs(shared_data):
    train, test = (
        read_conll04(shared_data / "conll04" / f"conll04_{name}.json", mode="with_none").rows
        for name in ("train", "test")
    )
    gold = [row.label for row in test]
    labels = LabelSet(tuple(sorted(set(gold))), NO_RELATION)
    assert metrics_of(gold, entity_type_baseline(train, test), labels)["macro5"] < 0.5


def pair(label, head_type="Peop", tail_type="Loc"):
    return RelationExample("x", "", "", "", label, head_type=head_type, tail_type=tail_type)


def test_entity_type_baseline_takes_the_most_frequent_label_and_falls_back_overall():
    train = [pair("b"), pair("a"), *[pair("c", "Org", "Org")] * 3]
    test = [pair("?"), pair("?", "Org", "Org"), pair("?", "Loc", "Loc")]
    assert entity_type_baseline(train, test) == ("a", "c", "c")


def test_entity_type_baseline_reads_the_types_of_rendered_examples_too():
    train = [Example(str(n), "", "", label, entity_types=types)
             for n, (label, types) in enumerate([("a", "Peop-Loc"), ("b", "Org-Loc")])]  # fmt: skip
    assert entity_type_baseline(train, train) == ("a", "b")
    assert entity_type_baseline(train, [pair("?")]) == ("a",)
    with pytest.raises(DataError, match="pair x has no entity types"):
        entity_type_baseline(train, [Example("x", "", "")])


def test_entity_type_baseline_refuses_pairs_without_types():
    with pytest.raises(DataError, match="has no entity types"):
        entity_type_baseline([pair("a", None)], [pair("a")])
    with pytest.raises(DataError, match="no training pairs"):
        entity_type_baseline([], [pair("a")])
