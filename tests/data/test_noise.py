"""Noise flips exactly what it says, as it says, and refuses what would have no effect."""

from collections import Counter

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from atlantis.data.noise import (
    ConfusableNoise,
    MixGoldNoise,
    NoiseConfig,
    UniformNoise,
    direction_confusion,
)
from atlantis.errors import DataError

LABELS = ("A(e1,e2)",) * 50 + ("A(e2,e1)",) * 30 + ("B(e1,e2)",) * 25 + ("Other",) * 12


def flips(before, after):
    return [(old, new) for old, new in zip(before, after, strict=True) if old != new]


def apply(noise, labels=LABELS, gold=None, *, seed=0):
    return noise.apply(labels, labels if gold is None else gold, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("kind", [UniformNoise, ConfusableNoise])
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.333, 1.0])
def test_exactly_the_rounded_share_of_rows_is_flipped(kind, rate):
    assert len(flips(LABELS, apply(kind(rate=rate)))) == round(rate * len(LABELS))


@pytest.mark.parametrize("noise", [UniformNoise(rate=0.3), ConfusableNoise(rate=0.3)])
def test_the_seed_decides_and_the_input_is_left_alone(noise):
    labels = list(LABELS)
    assert apply(noise, labels) == apply(noise, labels) != apply(noise, labels, seed=1)
    assert labels == list(LABELS)


def shares(noise, labels):
    """The share of each outcome among the flips of the first label."""
    counts = Counter(new for old, new in flips(labels, apply(noise, labels)) if old == labels[0])
    return {label: count / counts.total() for label, count in counts.items()}


# Shares of 6000 flips have a standard deviation of at most 0.0065; tolerances are five of them.
MANY = ("A(e1,e2)",) * 6000 + ("A(e2,e1)", "B(e1,e2)", "Other") * 5


def test_uniform_noise_spreads_evenly_over_the_other_labels():
    expected = {"A(e2,e1)": 1 / 3, "B(e1,e2)": 1 / 3, "Other": 1 / 3}
    assert shares(UniformNoise(rate=1.0), MANY) == pytest.approx(expected, abs=0.033)


def test_confusable_noise_turns_half_of_the_directions_round():
    expected = {"A(e2,e1)": 0.5, "B(e1,e2)": 0.25, "Other": 0.25}
    assert shares(ConfusableNoise(rate=1.0), MANY) == pytest.approx(expected, abs=0.033)


def test_confusable_noise_follows_the_confusion_it_is_given():
    others = {label: {"A(e1,e2)": 1.0} for label in ("A(e2,e1)", "B(e1,e2)", "Other")}
    confusion = {"A(e1,e2)": {"Other": 0.9, "B(e1,e2)": 0.1}, **others}
    found = shares(ConfusableNoise(rate=1.0, confusion=confusion), MANY)
    assert found == pytest.approx({"Other": 0.9, "B(e1,e2)": 0.1}, abs=0.033)


def test_default_confusion_gives_each_label_a_distribution_over_the_others():
    names = sorted(set(LABELS))
    confusion = direction_confusion(names)
    assert confusion["Other"] == pytest.approx(dict.fromkeys(names[:3], 1 / 3))
    assert confusion["B(e1,e2)"] == pytest.approx(dict.fromkeys({*names} - {"B(e1,e2)"}, 1 / 3))
    for name, row in confusion.items():
        assert name not in row
        assert sum(row.values()) == pytest.approx(1.0)
    assert direction_confusion(["A(e1,e2)", "A(e2,e1)"]) == {
        "A(e1,e2)": {"A(e2,e1)": 1.0},
        "A(e2,e1)": {"A(e1,e2)": 1.0},
    }


@pytest.mark.parametrize("target", [0.0, 0.2, 0.41])
def test_mixing_in_gold_leaves_exactly_the_target_wrong_and_makes_no_new_labels(target):
    weak = apply(UniformNoise(rate=0.5))
    mixed = apply(MixGoldNoise(target_rate=target), weak, LABELS)
    assert len(flips(LABELS, mixed)) == round(target * len(LABELS))
    assert all(new in (old, true) for new, old, true in zip(mixed, weak, LABELS, strict=True))


def test_mixing_in_gold_draws_the_mended_rows_by_seed():
    weak = apply(UniformNoise(rate=0.5))
    noise = MixGoldNoise(target_rate=0.2)
    assert apply(noise, weak, LABELS) == apply(noise, weak, LABELS)
    assert apply(noise, weak, LABELS) != apply(noise, weak, LABELS, seed=1)


@pytest.mark.parametrize(
    ("noise", "labels", "gold", "message"),
    [
        (UniformNoise(rate=0.1), ("a", "b"), None, "rate 0.1 of 2 rows flips none"),
        (UniformNoise(rate=0.5), ("a", "a"), None, "needs two labels or more, found a"),
        (ConfusableNoise(rate=0.5), ("a", "b"), None, "no label occurs in both directions"),
        (
            ConfusableNoise(rate=0.5, confusion={"a": {"c": 1.0}}),
            ("a", "b"),
            None,
            r"lacks \['b'\] and names unknown \['c'\]; the labels are a, b",
        ),
        (MixGoldNoise(target_rate=0.5), ("a", "b"), ("a", "b"), "0 of 2 labels are wrong"),
        (MixGoldNoise(target_rate=0.5), ("a", "b"), ("a", None), "row 1 has no true label"),
    ],
)
def test_noise_without_effect_or_ground_is_refused(noise, labels, gold, message):
    with pytest.raises(DataError, match=message):
        apply(noise, labels, gold)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "uniform", "rate": 0}, "greater than 0"),
        ({"kind": "uniform", "rate": 1.5}, "less than or equal to 1"),
        ({"kind": "uniform", "rate": 0.1, "confusion": {}}, "Extra inputs"),
        ({"kind": "gaussian", "rate": 0.1}, "'uniform', 'confusable', 'mix_gold'"),
        ({"kind": "mix_gold", "target_rate": 1.0}, "less than 1"),
        ({"kind": "confusable", "rate": 0.1, "confusion": {"a": {"b": 0.5}}}, "sum to 1"),
        ({"kind": "confusable", "rate": 0.1, "confusion": {"a": {"a": 1}}}, "leave it out"),
        ({"kind": "confusable", "rate": 0.1, "confusion": {"a": {"b": 2, "c": -1}}}, "sum to 1"),
    ],
)
def test_bad_configs_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(NoiseConfig).validate_python(given)
